"""What a checkpoint is measured on, and that its figures are those of training."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from models.checkpoint import CheckpointInfo
from models.checkpoint_model import load_model
from models.decoding.corpus import decode_corpus
from models.language_model import LanguageModel
from models.precision import Precision
from models.seq2seq import Seq2Seq
from models.tokenizers import EOS_ID
from tests.training.conftest import MakePreset, Trained
from training import decoding
from training.decoding import translate_texts
from training.evaluation import DecodingSettings, amount_of_work, compare, deviations, measure
from training.evaluation_data import (
    EvaluationData,
    EvaluationError,
    SentenceData,
    may_have_seen,
    read_card_data,
    read_own_sentences,
    read_own_text,
    unknown_texts,
)
from training.language_modelling import text_loss
from training.sources import DataError

CPU = torch.device("cpu")
SETTINGS = DecodingSettings()
ON_A_PROCESSOR = [name for name in get_args(Precision) if name != "float16"]


def _figures(
    info: CheckpointInfo,
    data: EvaluationData,
    precision: Precision = "float32",
    settings: DecodingSettings = SETTINGS,
) -> dict[str, float]:
    found = measure(info, data, precision, settings, CPU).figures
    return {name: score.rounded for name, score in found.items()}


def _quality(info: CheckpointInfo) -> dict[str, float]:
    """The card's figures, but for those of the training itself."""
    others = ("training_tokens_per_second", "last_epoch_training_perplexity", "test_sentences")
    return {name: value for name, value in info.training.metrics.items() if name not in others}


@pytest.fixture(autouse=True)
def _beside_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records keep but the names of local texts, which are then looked for where one is."""
    monkeypatch.chdir(tmp_path)


def test_a_translators_figures_are_its_cards(
    trained: Trained, pairs_preset: MakePreset, tmp_path: Path
) -> None:
    info = trained(pairs_preset())
    data = read_card_data(info, None, tmp_path)
    assert isinstance(data, SentenceData)
    assert data.is_cards
    assert len(data.sentences) == info.training.metrics["test_sentences"]
    measurement = measure(info, data, "float32", SETTINGS, CPU)
    found = {name: score.rounded for name, score in measurement.figures.items()}
    card = _quality(info)
    assert len(card) == 6
    assert {name: found[name] for name in card} == card
    assert deviations(measurement, info.training.metrics) == []
    assert {"greedy_ter_first_reference", "beam4_ter_first_reference"} <= found.keys()
    assert all(score.signature for score in measurement.figures.values())
    changed = {**card, "greedy_bleu_first_reference": 99.5}
    (deviation,) = deviations(measurement, changed)
    assert deviation.endswith("and 99.5 on the card")
    assert deviations(measurement, {}) == ["the card has none of the figures that were measured"]


def test_a_language_models_figures_are_its_cards(
    trained: Trained, text_preset: MakePreset, tmp_path: Path
) -> None:
    for overrides in ((), ("data.held_out_share=0",), ("tokenizer.kind=word",)):
        info = trained(text_preset(*overrides), "-".join(overrides) or "plain")
        data = read_card_data(info, None, tmp_path)
        assert data.is_cards
        assert _figures(info, data) == _quality(info)


def test_without_test_sentences_those_of_the_validation_are_measured(
    trained: Trained, pairs_preset: MakePreset, tmp_path: Path
) -> None:
    info = trained(pairs_preset("data.test_share=0", "data.moses_bleu=true"))
    data = read_card_data(info, None, tmp_path)
    assert isinstance(data, SentenceData)
    found, card = _figures(info, data), _quality(info)
    assert "greedy_bleu_moses" in card
    assert card["validation_sentences"] == len(data.sentences)
    assert found.items() >= {k: v for k, v in card.items() if k != "validation_sentences"}.items()


def test_without_any_held_out_sentences_the_textbooks_bleu_is_measured(
    trained: Trained, pairs_preset: MakePreset, tmp_path: Path
) -> None:
    info = trained(pairs_preset("data.test_share=0", "data.validation_share=0"))
    data = read_card_data(info, None, tmp_path)
    greedy = DecodingSettings(beam_sizes=(1,))
    assert _figures(info, data, settings=greedy) == _quality(info)
    wide = _figures(info, data, settings=DecodingSettings(beam_sizes=(2,)))
    assert wide.keys() == {"beam2_training_textbook_bleu_k2"}


@pytest.mark.parametrize("precision", ON_A_PROCESSOR)
def test_every_precision_runs(
    trained: Trained, pairs_preset: MakePreset, text_preset: MakePreset, precision: Precision
) -> None:
    for preset in (pairs_preset(), text_preset()):
        info = trained(preset)
        data = read_card_data(info, None, info.path)
        exact, found = _figures(info, data), _figures(info, data, precision)
        assert found.keys() == exact.keys()
        assert all(map(math.isfinite, found.values()))
        if "held_out_perplexity" in found:
            assert found == pytest.approx(exact, rel=0.01)


def test_progress_tells_of_every_sentence_and_token(
    trained: Trained, pairs_preset: MakePreset, text_preset: MakePreset
) -> None:
    for preset in (pairs_preset(), text_preset()):
        info = trained(preset)
        data = read_card_data(info, None, info.path)
        told: list[tuple[str, int]] = []

        def tell(what: str, count: int, told: list[tuple[str, int]] = told) -> None:
            told.append((what, count))

        measure(info, data, "int8", SETTINGS, CPU, tell)
        assert sum(count for _, count in told) == amount_of_work(info, data, SETTINGS)
        assert all(what.startswith("int8") for what, _ in told)


def test_the_length_penalty_is_that_of_the_beam(
    trained: Trained, pairs_preset: MakePreset, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = trained(pairs_preset())
    data = read_card_data(info, None, info.path)
    asked: list[tuple[int, float]] = []

    def decode(model: Any, prompts: Any, params: Any) -> Any:
        each = params if isinstance(params, list | tuple) else [params]
        asked.extend((one.beam_size, one.length_penalty) for one in each)
        return decode_corpus(model, prompts, params)

    monkeypatch.setattr(decoding, "decode_corpus", decode)
    measure(info, data, "float32", DecodingSettings((4,), 1.5), CPU)
    assert set(asked) == {(4, 1.5)}


def test_a_blank_text_has_an_empty_translation_and_others_the_services_length(
    trained: Trained, pairs_preset: MakePreset
) -> None:
    info = trained(pairs_preset("tokenizer.kind=character"))
    model = load_model(info, CPU)
    assert isinstance(model, Seq2Seq)
    told: list[int] = []
    texts = translate_texts(
        model,
        info.tokenizers,
        ["", "a cat", " \t", "a cat and a dog"],
        beam_size=1,
        on_translation=lambda: told.append(1),
    )
    assert texts[0] == texts[2] == ""
    assert len(told) == 4
    assert all(len(text) <= 3 * 16 + 16 for text in texts)
    with torch.no_grad():
        dict(model.named_parameters())["decoder.output_layer.bias"][EOS_ID] = -1e9
    (endless,) = translate_texts(model, info.tokenizers, ["a cat"], beam_size=1)
    assert len(endless) == 3 * 6 + 16


def test_the_perplexity_of_an_own_text_is_per_character_of_it(
    trained: Trained, text_preset: MakePreset, tmp_path: Path
) -> None:
    info = trained(text_preset("tokenizer.kind=word"))
    file = tmp_path / "own.txt"
    file.write_text("Time machine fire.\nWhite garden xyz\n")
    data = read_own_text(info, str(file), tmp_path)
    tokens = info.tokenizers["text"].encode(file.read_text())
    model = load_model(info, CPU)
    assert isinstance(model, LanguageModel)
    nats = text_loss(model, tokens) * len(tokens)
    expected = math.exp(nats / len(file.read_text()))
    assert _figures(info, data) == {"perplexity": pytest.approx(expected, abs=1e-4)}
    assert "xyz" in unknown_texts(info, data)
    assert not data.is_cards


def test_an_own_text_is_prepared_as_the_training_text(
    trained: Trained, text_preset: MakePreset, tmp_path: Path
) -> None:
    info = trained(text_preset("data.preparation=book_characters"))
    (tmp_path / "own.txt").write_text("Time, MACHINE!")
    data = read_own_text(info, str(tmp_path / "own.txt"), tmp_path)
    assert data.texts == {"perplexity": "time machine "}
    (tmp_path / "own.txt").write_text("")
    with pytest.raises(DataError, match=r"own\.txt: is empty"):
        read_own_text(info, str(tmp_path / "own.txt"), tmp_path)


def _write(folder: Path, **files: str | bytes) -> dict[str, str]:
    for name, content in files.items():
        file = folder / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content)
    return {name: str(folder / name) for name in files}


def test_own_sentences_have_a_reference_of_each_file(tmp_path: Path) -> None:
    files = _write(tmp_path, source="i see\r\n\r\na cat", one="A\nB\nC\n", two="D\n\nF")
    data = read_own_sentences(files["source"], [files["one"], files["two"]], tmp_path)
    assert [s.source for s in data.sentences] == ["i see", "", "a cat"]
    assert [s.references for s in data.sentences] == [("A", "D"), ("B",), ("C", "F")]
    assert [source.name for source in data.sources] == ["source", "one", "two"]
    assert not any("/" in source.origin for source in data.sources)
    assert data.max_new_tokens is None


@pytest.mark.parametrize(
    ("source", "reference", "sentence"),
    [
        ("a\nb\n", "x\n", "reference: has 1 lines, but .*source has 2: line 2 has no counterpart"),
        ("a\n", "x\ny\n", "reference: has 2 lines, but .*source has 1: line 2 has no"),
        ("a\nb\n", b"x\ncaf\xe9\n", "reference: line 2 is not UTF-8"),
        ("", "x\n", "source: is empty"),
        ("a\n", "\n", "reference: is empty"),
        ("a\nb\nc\n", "x\n \nz\n", "reference: line 2 is blank: every sentence needs a reference"),
    ],
)
def test_own_sentences_that_cannot_be_used_are_one_sentence(
    tmp_path: Path, source: str, reference: str | bytes, sentence: str
) -> None:
    files = _write(tmp_path, source=source, reference=reference)
    with pytest.raises(DataError, match=sentence) as caught:
        read_own_sentences(files["source"], [files["reference"]], tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file"):
        read_own_sentences(str(tmp_path / "nowhere"), [], tmp_path)
    with pytest.raises(DataError, match="the name of a file is empty"):
        read_own_sentences("", [], tmp_path)


def test_the_data_may_lie_elsewhere_and_other_data_are_not_the_cards(
    trained: Trained, pairs_preset: MakePreset, pairs_file: Path, tmp_path: Path
) -> None:
    info = trained(pairs_preset())
    moved = pairs_file.rename(tmp_path / "moved.txt")
    assert read_card_data(info, str(moved), tmp_path).is_cards
    moved.write_text(moved.read_text() + "i see you\tje te vois\n")
    assert not read_card_data(info, str(moved), tmp_path).is_cards
    with pytest.raises(EvaluationError, match=r"trained on Tiny pairs, .* with --data PATH"):
        read_card_data(info, None, tmp_path)


def test_data_that_only_their_owner_has_must_be_named(
    trained: Trained, text_preset: MakePreset, tmp_path: Path
) -> None:
    info = trained(text_preset())
    own = info.training.data[0].model_copy(update={"name": "mine.txt", "origin": "mine.txt"})
    info.training.data[0] = own
    with pytest.raises(EvaluationError, match=r"trained on mine\.txt, .* with --data PATH"):
        read_card_data(info, None, tmp_path)


def test_a_checkpoint_that_does_not_say_what_to_measure_on(
    trained: Trained, text_preset: MakePreset, tmp_path: Path
) -> None:
    info = trained(text_preset())
    (tmp_path / "own.txt").write_text("Fire")
    info.training.preset["training"] = {}
    with pytest.raises(EvaluationError, match=r"training\.json: preset\.training.*: give --text"):
        read_card_data(info, None, tmp_path)
    info.training.preset.clear()
    with pytest.raises(EvaluationError, match=r"no preset that says .*: give --text"):
        read_card_data(info, None, tmp_path)
    assert read_own_text(info, str(tmp_path / "own.txt"), tmp_path).texts == {"perplexity": "Fire"}


def test_a_comparison_has_every_figure_of_both(
    trained: Trained, pairs_preset: MakePreset, tmp_path: Path
) -> None:
    one = trained(pairs_preset(), "one")
    two = trained(pairs_preset("training.seed=2"), "two")
    data = read_card_data(one, None, tmp_path)
    assert isinstance(data, SentenceData)
    found = [measure(info, data, "float32", SETTINGS, CPU) for info in (one, two)]
    differences = compare(found[0], found[1], data)
    assert differences.keys() == found[0].figures.keys()
    for name, difference in differences.items():
        assert difference.baseline.value == pytest.approx(found[0].figures[name].value)
        assert difference.other.value == pytest.approx(found[1].figures[name].value)


def test_who_was_trained_with_the_same_cut_has_not_seen_the_test_sentences(
    trained: Trained, pairs_preset: MakePreset
) -> None:
    one = trained(pairs_preset(), "one")
    assert not may_have_seen(trained(pairs_preset("training.seed=2"), "two"), one)
    assert may_have_seen(trained(pairs_preset("data.test_share=0.05"), "three"), one)
    assert not may_have_seen(trained(pairs_preset("data.validation_share=0.2"), "four"), one)
    assert may_have_seen(trained(pairs_preset("data.first_pairs=30"), "five"), one)


def test_who_began_with_another_model_may_have_seen_what_that_one_had(
    trained: Trained, pairs_preset: MakePreset
) -> None:
    one = trained(pairs_preset(), "one")
    training = one.training.model_copy(update={"initial_may_know_held_out": True})
    assert may_have_seen(replace(one, training=training), one)
    # Of one that was imported nobody knows what it was trained on.
    imported = replace(one, training=one.training.model_copy(update={"preset": {}}))
    assert may_have_seen(imported, imported)


def test_without_test_sentences_the_validation_cut_decides(
    trained: Trained, pairs_preset: MakePreset
) -> None:
    one = trained(pairs_preset("data.test_share=0"), "one")
    other = pairs_preset("data.test_share=0", "data.validation_share=0.2")
    assert may_have_seen(trained(other, "two"), one)


def test_language_models_have_a_cut_too(trained: Trained, text_preset: MakePreset) -> None:
    one = trained(text_preset(), "one")
    assert not may_have_seen(trained(text_preset("training.seed=2"), "two"), one)
    assert may_have_seen(trained(text_preset("data.held_out_share=0.1"), "three"), one)


def test_the_data_must_be_for_the_kind_of_model(
    trained: Trained, pairs_preset: MakePreset, text_preset: MakePreset
) -> None:
    translator, writer = trained(pairs_preset()), trained(text_preset())
    sentences, texts = (read_card_data(info, None, info.path) for info in (translator, writer))
    with pytest.raises(EvaluationError, match="it translates no sentences"):
        measure(writer, sentences, "float32", SETTINGS, CPU)
    with pytest.raises(EvaluationError, match="it reads no running text"):
        measure(translator, texts, "float32", SETTINGS, CPU)
