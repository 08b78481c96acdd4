"""Averages of checkpoints: their weights, their record and card, and what has none."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.checkpoint import CheckpointError, CheckpointInfo, read_checkpoint
from models.checkpoint_model import load_model
from tests.training.conftest import MakePreset, Trained
from training.average_cli import _require_alike, main
from training.preset import PresetError
from training.record import read_record

CPU = torch.device("cpu")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _beside_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records keep but the names of local texts, which are then looked for where one is."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command: exit status, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        places = ["--out", str(tmp_path / "averages"), "--cache", str(tmp_path / "cache")]
        status = main([*map(str, words), *places], prog="average")
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def _weights(info: CheckpointInfo) -> dict[str, torch.Tensor]:
    return load_model(info, CPU).state_dict()


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_the_weights_are_the_mean(
    text_preset: MakePreset,
    pairs_preset: MakePreset,
    trained: Trained,
    run: Run,
    tmp_path: Path,
    kind: str,
) -> None:
    make = text_preset if kind == "text" else pairs_preset
    one, other = trained(make(), "one"), trained(make("training.seed=2"), "other")
    status, out, _ = run(one.path, other.path, "--name", "both")
    folder = tmp_path / "averages" / "both"
    assert (status, out) == (0, f"wrote {folder}\n")
    found = read_checkpoint(folder)
    ones, others = _weights(one), _weights(other)
    for name, weight in _weights(found).items():
        mean = (ones[name] + others[name]) / 2
        torch.testing.assert_close(weight, mean, rtol=1e-3, atol=1e-4)  # stored in float16
    record = found.training
    assert [(a.name, a.fingerprint, a.steps) for a in record.averaged] == [
        ("one", one.fingerprint, 6),
        ("other", other.fingerprint, 6),
    ]
    assert record.name == "both"
    assert record.metrics.keys() <= one.training.metrics.keys()
    assert record.metrics
    assert record.metrics != one.training.metrics
    card = (folder / "README.md").read_text()
    assert "Averaged by Gatehouse on " in card
    assert f"a checkpoint `other` of 6 steps (fingerprint `{other.fingerprint[:16]}...`)." in card


def test_an_average_is_not_trained_again(
    text_preset: MakePreset, trained: Trained, run: Run, tmp_path: Path
) -> None:
    one, other = trained(text_preset(), "one"), trained(text_preset("training.seed=2"), "other")
    assert run(one.path, other.path)[0] == 0
    with pytest.raises(PresetError, match=r"one was not trained, but is the average of one \(fi"):
        read_record(tmp_path / "averages" / "one" / "training.json")


def test_what_has_no_average_is_refused(
    text_preset: MakePreset, trained: Trained, run: Run, tmp_path: Path, text: str
) -> None:
    one, other = trained(text_preset(), "one"), trained(text_preset("training.seed=2"), "other")
    wider = trained(text_preset("model.hidden_size=11"), "wider")
    file = tmp_path / "words.txt"
    file.write_text(text.replace("e", "é"))
    accented = trained(text_preset(f"data.source.location={file}"), "accented")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((one.path,), "an average takes two checkpoints at least"),
        ((one.path, one.path), "holds the same model as"),
        ((one.path, wider.path), "is of another architecture than"),
        ((one.path, accented.path), "has another tokenizer than"),
        ((one.path, tmp_path / "none"), "none"),
        ((one.path, other.path, "--data", file), "one was trained on other data"),
    ]
    for words, message in cases:
        status, out, err = run(*words)
        assert (status, out) == (1, "")
        assert err.startswith("average: ")
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "averages").exists()
    assert run(one.path, other.path)[0] == 0
    assert "is there already" in run(one.path, other.path)[2]


@pytest.mark.parametrize(
    ("kind", "override"),
    [("pairs", "data.test_share=0.05"), ("text", "data.held_out_share=0.3")],
)
def test_checkpoints_of_other_cuts_are_refused(
    text_preset: MakePreset, pairs_preset: MakePreset, trained: Trained, kind: str, override: str
) -> None:
    make = text_preset if kind == "text" else pairs_preset
    one, other = trained(make(), "one"), trained(make(override), "other")
    # Such small ones have other tokenizers, too, and would be refused for these.
    other = dataclasses.replace(other, tokenizers=one.tokenizers, config=one.config)
    with pytest.raises(CheckpointError, match=r"other was trained on other data than .*, or with"):
        _require_alike([one, other])


def test_targets_per_source_and_synthetic_pairs_are_no_part_of_the_cut(
    pairs_preset: MakePreset, trained: Trained, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "made.tsv").write_text("i see no cat\tje vois non chat\n")
    one = trained(pairs_preset(), "one")
    other = trained(
        pairs_preset(
            "training.seed=2",
            "data.targets_per_source=1",
            "data.synthetic.name=Made",
            "data.synthetic.location=made.tsv",
        ),
        "other",
    )
    assert run(one.path, other.path, "--name", "both")[0] == 0


def test_what_says_nothing_of_its_training_has_no_average(
    text_preset: MakePreset, trained: Trained, run: Run
) -> None:
    one, other = trained(text_preset(), "one"), trained(text_preset("training.seed=2"), "other")
    record = other.path / "training.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "preset": {}}))
    err = run(one.path, other.path, "--name", "both")[2]
    assert f"{other.path}: its training.json does not say what it was trained on" in err


@pytest.mark.parametrize("name", [".hid", "a/../../esc", ""])
def test_a_name_that_is_no_folders_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    status, out, err = run(tmp_path / "none", tmp_path / "nor", "--name", name)
    assert (status, out) == (1, "")
    assert f"--name {name!r}: letters, digits, dots, dashes and underscores only" in err
