"""``gatehouse diversify`` and training on what it made; one sentence for every mishap."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from models.checkpoint import CheckpointInfo, read_checkpoint
from tests.training.conftest import MakePreset, Trained
from training.average_cli import main as average
from training.cli import main as train
from training.corpora import read_cut
from training.diversify_cli import main
from training.evaluate_cli import main as evaluate
from training.parallel import Pair, parse_tab_pairs
from training.preset import ParallelData, Preset

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
        places = ["--cache", str(tmp_path / "cache"), "--device", "cpu"]
        status = main([*map(str, words), *places], prog="diversify")
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def _reverse(preset: Preset) -> Preset:
    changes = {"reverse": True, "source_language": "fr", "target_language": "en"}
    return preset.model_copy(update={"data": preset.data.model_copy(update=changes)})


@pytest.fixture
def forward(pairs_preset: MakePreset, trained: Trained) -> CheckpointInfo:
    return trained(pairs_preset(), "forward")


@pytest.fixture
def backward(pairs_preset: MakePreset, trained: Trained) -> CheckpointInfo:
    return trained(_reverse(pairs_preset()), "backward")


def _training_pairs(preset: Preset, tmp_path: Path) -> tuple[Pair, ...]:
    assert isinstance(preset.data, ParallelData)
    return read_cut(preset.data, None, tmp_path)[0].train


def test_what_is_made_has_one_side_of_the_training_data(
    forward: CheckpointInfo,
    backward: CheckpointInfo,
    pairs_preset: MakePreset,
    run: Run,
    tmp_path: Path,
) -> None:
    out = tmp_path / "made.tsv"
    status, said, _ = run(forward.path, backward.path, "--out", out)
    made = parse_tab_pairs(out.read_text())
    assert (status, said) == (0, f"wrote {len(made)} pairs to {out}\n")
    known = _training_pairs(pairs_preset(), tmp_path)
    sources, targets = {pair.source for pair in known}, {pair.target for pair in known}
    translated = [pair for pair in made if pair.source in sources]
    back_translated = [pair for pair in made if pair.target in targets]
    assert translated
    assert back_translated
    assert {*translated, *back_translated} == set(made)
    assert set(made).isdisjoint(known)
    assert len(set(made)) == len(made)

    first = out.read_bytes()
    assert run(forward.path, backward.path, "--out", out, "--threads", 1)[0] == 0
    assert out.read_bytes() == first, "the same models make the same pairs"
    assert run(forward.path, "--out", out)[0] == 0
    assert parse_tab_pairs(out.read_text()) == translated


def test_a_model_is_trained_measured_repeated_and_averaged_with_synthetic_pairs(
    pairs_preset_file: Path,
    pairs_file: Path,
    tmp_path: Path,
    no_pictures: None,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO, "training")
    made = tmp_path / "elsewhere" / "made.tsv"
    made.parent.mkdir()
    made.write_text("i see now here\tje vois maintenant ici\n" * 3 + "no\tnon\n")
    arguments = [str(pairs_preset_file), "--device", "cpu", "--threads", "1"]
    arguments += ["--synthetic", str(made), "--set", "training.subword_smoothing=0.5"]
    assert train([*arguments, "--out", str(tmp_path / "one")]) == 0
    assert "made.tsv: 4 synthetic pairs; left out 0 of which a side is held out" in caplog.text
    info = read_checkpoint(tmp_path / "one" / "pairs")
    record = info.training
    assert [source.name for source in record.data] == ["Tiny pairs", "made.tsv"]
    assert str(made.parent) not in (info.path / "training.json").read_text()
    assert record.arguments[1:3] == ["--synthetic", "made.tsv"]
    assert record.preset["card"]["title"] in (info.path / "README.md").read_text()

    again = [str(info.path / "training.json"), "--out", str(tmp_path / "again"), "--device", "cpu"]
    assert train(again) == 1, "who has the pairs says where they are"
    assert "made.tsv: no such file" in capsys.readouterr().err
    assert train([*again, "--synthetic", str(made)]) == 0
    twin = read_checkpoint(tmp_path / "again" / "pairs")
    assert twin.fingerprint == info.fingerprint
    made.write_text("no\tnon\n")
    assert train([*again, "--name", "other", "--synthetic", str(made)]) == 1
    assert "made.tsv: is not the text of pairs" in capsys.readouterr().err

    made.unlink()
    plain = [str(pairs_preset_file), "--device", "cpu", "--threads", "1"]
    assert train([*plain, "--out", str(tmp_path / "plain")]) == 0
    without = tmp_path / "plain" / "pairs"
    capsys.readouterr()
    # Measuring needs the held-out sentences only.
    assert evaluate([str(info.path), "--check", "--device", "cpu"]) == 0
    assert evaluate([str(without), "--compare", str(info.path), "--device", "cpu"]) == 0
    assert "it may have seen" not in capsys.readouterr().err
    assert average([str(info.path), str(without), "--out", str(tmp_path / "mean")]) == 0
    assert pairs_file.exists()


def test_own_pairs_take_synthetic_ones_and_prose_does_not(
    tmp_path: Path, text_file: Path, pairs_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (own := tmp_path / "own.en-fr.tsv").write_text(pairs_text + "one more\tun de plus\n" * 2)
    (made := tmp_path / "made.tsv").write_text("no\tnon\n")
    short = ["--set", "training.steps=1", "--set", "model.hidden_size=8"]
    words = ["--pairs", str(own), "--synthetic", str(made), "--out", str(tmp_path), *short]
    assert train([*words, "--device", "cpu"]) == 0
    record = read_checkpoint(tmp_path / "en-fr-own").training
    assert [source.name for source in record.data] == ["own.en-fr.tsv", "made.tsv"]
    assert train(["--text", str(text_file), "--synthetic", str(made)]) == 1
    assert "--synthetic goes with sentence pairs" in capsys.readouterr().err


def test_what_cannot_be_made_is_told_in_a_sentence(
    forward: CheckpointInfo,
    text_preset: MakePreset,
    trained: Trained,
    run: Run,
    tmp_path: Path,
) -> None:
    prose = trained(text_preset(), "prose")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((prose.path,), "prose is no translation model"),
        ((forward.path, forward.path), "forward does not translate from fr to en"),
        ((forward.path, prose.path), "prose does not translate from fr to en"),
        ((tmp_path / "none",), "none"),
        ((forward.path, "--out", tmp_path / "no" / "made.tsv"), "there is no folder"),
        ((forward.path, "--out", tmp_path), f"{tmp_path} is a folder: name a file in it"),
        ((forward.path, "--out", "/proc/made.tsv"), "/proc/made.tsv"),
        ((forward.path, "--data", tmp_path / "no.tsv"), "no.tsv: no such file"),
        ((forward.path, "--precision", "float16"), "float16"),
    ]
    for words, message in cases:
        status, out, err = run(*words)
        assert (status, out) == (1, ""), words
        assert err.startswith("diversify: ")
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "synthetic.tsv").exists()
