"""A text that comes before a language model's own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.tiny_runs import equal
from training.language_modelling import LanguageModelling
from training.preset import Preset, TextData, preset_record
from training.run import make_task, train
from training.running_text import read_background
from training.sources import DataError

MakePreset = Callable[..., Preset]
CPU = torch.device("cpu")
LINES = ["Où est-il ?", "Ici.", "Là-bas.", "Ici."]


@pytest.fixture
def other_text(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.txt"
    lines = [f"Where?\t{line}\tx" for line in LINES] + [f"n\tLigne {n}." for n in range(40)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _with_background(text_preset: MakePreset, other: Path, *overrides: str) -> Preset:
    return text_preset(
        'data.background.source.name="Pairs"',
        f"data.background.source.location={other}",
        "data.background.column=1",
        "data.background.epochs=2",
        *overrides,
    )


def _reads(task: LanguageModelling, epoch: int) -> str:
    streams = zip(*(targets.tolist() for _, targets, _ in task.batches(epoch)), strict=True)
    return "|".join(
        task.tokenizers["text"].decode([token for part in row for token in part]) for row in streams
    )


def test_a_column_is_read_line_by_line_once_in_an_order_of_the_seed(
    text_preset: MakePreset, other_text: Path, tmp_path: Path
) -> None:
    data = _with_background(text_preset, other_text).data
    assert isinstance(data, TextData)
    assert data.background
    text, source = read_background(data.background, data, 1, tmp_path)
    assert sorted(text.split("\n")) == sorted([*LINES[:3], *(f"Ligne {n}." for n in range(40))])
    assert source.name == "Pairs"
    assert read_background(data.background, data, 1, tmp_path)[0] == text
    assert read_background(data.background, data, 2, tmp_path)[0] != text
    whole = data.background.model_copy(update={"column": None})
    assert read_background(whole, data, 1, tmp_path)[0] == other_text.read_text("utf-8")


def test_it_is_read_in_the_first_epochs_only(
    text_preset: MakePreset, other_text: Path, tmp_path: Path
) -> None:
    task = make_task(_with_background(text_preset, other_text), None, tmp_path, CPU)
    assert isinstance(task, LanguageModelling)
    assert ["Ligne" in _reads(task, epoch) for epoch in range(4)] == [True, True, False, False]
    assert task.tokenizers["text"].encode("ù"), "the vocabulary is that of both texts"
    assert len(task.sources) == 2
    assert "Ligne" not in task._held_out


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_stopped_within_it_comes_to_the_same_weights(
    text_preset: MakePreset, other_text: Path, tmp_path: Path
) -> None:
    preset = _with_background(text_preset, other_text, "data.background.epochs=3")

    def run(folder: str, stop_after_steps: int | None = None) -> Path:
        return train(
            "tiny",
            preset,
            tmp_path / folder,
            cache_dir=tmp_path,
            device=CPU,
            show_progress=False,
            stop_after_steps=stop_after_steps,
        )

    whole = run("whole")
    parts = [run("parts", stop_after_steps=7), run("parts")][-1]
    assert "resuming at step 5" in (parts / "run" / "train.log").read_text()
    states = [torch.load(folder / "run" / "state.pt")["model"] for folder in (whole, parts)]
    assert equal(*states)


def test_a_record_says_what_was_read_but_not_where_a_person_keeps_it(
    text_preset: MakePreset, other_text: Path
) -> None:
    record = preset_record(_with_background(text_preset, other_text))
    assert record["data"]["background"]["source"]["location"] == other_text.name
    del record["data"]["source"]
    assert str(other_text.parent) not in str(record)


def test_a_line_without_the_column_is_named(text_preset: MakePreset, tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("a\tb\n\nonly one\n")
    data = _with_background(text_preset, file).data
    assert isinstance(data, TextData)
    assert data.background
    with pytest.raises(DataError, match=r"Pairs: line 3 has no column 1 \(from 0\)"):
        read_background(data.background, data, 1, tmp_path)


def test_a_line_ends_at_a_line_break_only(text_preset: MakePreset, tmp_path: Path) -> None:
    file = tmp_path / "separators.txt"
    file.write_text("a\tone\u2028and two\x0bor three\nb\tfour\n", encoding="utf-8")
    data = _with_background(text_preset, file).data
    assert isinstance(data, TextData)
    assert data.background
    text, _ = read_background(data.background, data, 1, tmp_path)
    assert sorted(text.split("\n")) == ["four", "one\u2028and two\x0bor three"]
