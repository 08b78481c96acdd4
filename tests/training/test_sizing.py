"""Settings derived from how much text there is."""

import math

import pytest

from training.preset import PRESETS_DIR, load_preset
from training.sizing import (
    HELD_OUT_SENTENCES,
    MINIMUM_CHARACTERS,
    MINIMUM_SENTENCES,
    ParallelSize,
    prose_settings,
    translation_settings,
)

SENTENCES = [MINIMUM_SENTENCES, 300, 1_000, 5_000, 29_000, 117_000, 1_000_000, 20_000_000]
CHARACTERS = [MINIMUM_CHARACTERS, 10_000, 49_999, 180_000, 1_000_000, 30_000_000]


def _of(sentences: int, distinct: int = 90) -> ParallelSize:
    return ParallelSize(sentences, sentences * 96, distinct)


@pytest.mark.parametrize("sentences", SENTENCES)
def test_a_small_file_keeps_enough_to_validate_on_and_a_large_one_no_more(sentences: int) -> None:
    share = translation_settings(_of(sentences), has_validation=False)["data.validation_share"]
    held_out = share * sentences
    assert min(0.1 * sentences, 50) * 0.99 <= held_out
    assert share <= 0.1
    assert held_out <= max(HELD_OUT_SENTENCES * 1.01, 0.0001 * sentences)


def test_less_text_gives_fewer_pieces_a_smaller_model_and_more_dropout() -> None:
    found = [translation_settings(_of(count), has_validation=False) for count in SENTENCES]
    for key in ("tokenizer.vocabulary_size", "model.hidden_size", "training.batch_tokens"):
        values = [settings[key] for settings in found]
        assert values == sorted(values), key
        assert values[0] < values[-1]
    dropouts = [settings["model.dropout"] for settings in found]
    assert dropouts == sorted(dropouts, reverse=True)
    prose = [prose_settings(count) for count in CHARACTERS]
    sizes = [settings["model.hidden_size"] for settings in prose]
    assert sizes == sorted(sizes)


def test_the_rule_goes_near_the_presets_that_it_was_taken_from() -> None:
    settings = translation_settings(ParallelSize(117_000, 11_000_000, 110), has_validation=False)
    assert settings["tokenizer.vocabulary_size"] == 8_000
    assert settings["model.hidden_size"] == 512
    assert settings["model.dropout"] == 0.2
    assert 5_000 < settings["training.steps"] < 10_000
    prose = prose_settings(180_000)
    assert prose["model.hidden_size"] == 384
    assert prose["model.dropout"] == 0.4
    assert prose["training.steps"] == pytest.approx(1_000, rel=0.2)


def test_many_distinct_characters_have_room_among_the_pieces() -> None:
    size = ParallelSize(1_000, 40_000, 3_500)
    vocabulary = translation_settings(size, has_validation=False)["tokenizer.vocabulary_size"]
    assert vocabulary > 260 + 3_500


def test_given_validation_files_leave_nothing_to_cut() -> None:
    settings = translation_settings(_of(1_000), has_validation=True)
    assert settings["data.validation_share"] == 0
    assert settings["data.test_share"] > 0


@pytest.mark.parametrize("sentences", SENTENCES)
def test_every_size_makes_a_preset(sentences: int) -> None:
    changes = {
        **translation_settings(_of(sentences), has_validation=False),
        **{"data.source.name": "x", "data.source.location": "x"},
        **{"data.source_language": "en", "data.target_language": "fr"},
    }
    _, preset = load_preset(str(PRESETS_DIR / "translation.toml"), (), changes)
    assert preset.training.warmup_steps < preset.training.steps
    assert preset.training.validate_every_steps <= preset.training.steps
    assert preset.training.batch_tokens is not None
    assert preset.data.kind == "parallel"
    assert preset.training.batch_tokens > preset.data.max_tokens


@pytest.mark.parametrize("characters", CHARACTERS)
def test_every_length_of_prose_makes_a_preset_with_rows_to_fill(characters: int) -> None:
    changes = {
        **prose_settings(characters),
        **{"data.source.name": "x", "data.source.location": "x"},
    }
    _, preset = load_preset(str(PRESETS_DIR / "prose.toml"), (), changes)
    assert preset.data.kind == "text"
    assert preset.training.batch_rows is not None
    held_out = math.floor(preset.data.held_out_share * characters)
    assert 200 <= held_out <= 200_000 * 1.01
    assert characters - held_out > 200 * preset.training.batch_rows
