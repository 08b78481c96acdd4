"""Presets: the shipped ones, what is refused, and --set in all its forms."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.preset import (
    Preset,
    PresetError,
    TextData,
    available_presets,
    load_preset,
    preset_record,
)

MakePreset = Callable[..., Preset]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", available_presets())
def test_every_shipped_preset_loads_and_says_what_it_is(name: str) -> None:
    loaded, preset = load_preset(name)
    assert loaded == name
    assert preset.description
    assert preset.card.licence
    for text in preset.data.texts():
        assert text.sha256, "a shipped preset checks its texts"
        assert text.location.startswith("http")
    assert preset.training.validate_every_steps <= preset.training.steps


def test_the_presets_of_the_book_and_of_the_service_are_there() -> None:
    assert {
        *("book-gru", "book-gru-scratch", "book-lstm", "book-lstm-scratch", "book-lstm-2-layers"),
        *("book-lstm-bidirectional", "book-seq2seq", "timemachine-gru", "timemachine-lstm"),
        *("en-fr", "fr-en", "multi30k-en-de", "multi30k-en-fr"),
    } <= available_presets().keys()


def test_set_changes_numbers_strings_booleans_and_nested_values(text_preset: MakePreset) -> None:
    preset = text_preset(
        "training.steps=7",
        "training.learning_rate=2.5e-3",
        "training.optimizer=sgd",
        'card.title="with = and spaces"',
        "card.limits=no quotes = no harm",
        "model.bidirectional=true",
        "data.source.name=Other",
        "tokenizer.kind = 'word'".replace(" = ", "="),
    )
    assert preset.training.steps == 7
    assert preset.training.learning_rate == 0.0025
    assert preset.training.optimizer == "sgd"
    assert preset.card.title == "with = and spaces"
    assert preset.card.limits == "no quotes = no harm"
    assert preset.model["bidirectional"] is True
    assert preset.data.source.name == "Other"
    assert preset.tokenizer.kind == "word"


def test_the_last_of_two_overrides_counts(text_preset: MakePreset) -> None:
    assert text_preset("training.steps=7", "training.steps=9").training.steps == 9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepz=3", "training.stepz: Extra inputs"),
        ("stepz=3", "stepz: Extra inputs"),
        ("data.source.nam=3", "data.source.nam: Extra inputs"),
        ("model.hiden_size=3", "model.hiden_size: Extra inputs"),
        ("model.hidden_size=many", "model.hidden_size: Input should be a valid integer"),
        ("model.cell=elman", "model.cell: Input should be"),
        ("model.dropout=1.0", "model.dropout: Input should be less than 1"),
        ("training.steps=0", "training.steps: Input should be greater"),
        ("training.steps=many", "training.steps: Input should be a valid integer"),
        ("training.learning_rate=0", "training.learning_rate: Input should be greater than 0"),
        ("training.optimizer=adagrad", "training.optimizer: Input should be"),
        ("training.clip_norm=0", "training.clip_norm"),
        ("training.batch_tokens=100", "training: give either batch_rows or batch_tokens"),
        ("training.label_smoothing=0.1", "label_smoothing is for sentence pairs only"),
        ("training.consistency=5", "consistency is for sentence pairs only"),
        ("training.subword_smoothing=0.5", "subword_smoothing is for sentence pairs only"),
        ("training.seed=-1", "training.seed: Input should be greater than or equal to 0"),
        ("data.held_out_share=1.0", "data.held_out_share: Input should be less than 1"),
        ("data.kind=pairs", "data: Input tag 'pairs'"),
        ("data.source.sha256=abc", "data.source.sha256: String should match"),
        ("model.kind=seq2seq", "text data train a model of kind language_model"),
        ("training.steps.more=3", "steps is a value, not a section"),
        ("training", "write section.key=value"),
        ("=3", "write section.key=value"),
    ],
)
def test_an_impossible_override_names_its_key(
    text_preset: MakePreset, override: str, message: str
) -> None:
    with pytest.raises(PresetError) as raised:
        text_preset(override)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "Value error" not in str(raised.value)


def test_a_translation_model_that_cannot_be_built_is_refused(pairs_preset: MakePreset) -> None:
    with pytest.raises(PresetError, match=r"model: .*must be even, not 11"):
        pairs_preset("model.hidden_size=11")
    with pytest.raises(PresetError, match="parallel data train a model of kind seq2seq"):
        pairs_preset("model.kind=language_model")


def test_an_unknown_preset_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match=r"no preset 'nope'.*book-gru.*timemachine-lstm"):
        load_preset("nope")
    with pytest.raises(PresetError, match="no preset"):
        load_preset(str(tmp_path))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("steps = = 3")
    with pytest.raises(PresetError, match=r"mine\.toml: .*line 1"):
        load_preset(str(file))
    file.write_bytes(b"title = '\xe9'")
    with pytest.raises(PresetError, match=r"mine\.toml"):
        load_preset(str(file))
    file.write_text("")
    with pytest.raises(PresetError, match="mine: description: Field required"):
        load_preset(str(file))


def test_the_record_builds_the_preset_again(text_preset: MakePreset) -> None:
    preset = text_preset("training.learning_rate=0.1234567890123")
    record = preset_record(preset)
    location = record["data"]["source"]["location"]
    assert location == Path(preset.data.source.location).name, "nobody's folders are recorded"
    record["data"]["source"]["location"] = preset.data.source.location
    assert Preset.model_validate(record) == preset
    assert "first_characters" not in record["data"], "what was not said is left out"
    assert isinstance(preset.data, TextData)
