"""Whole runs: from a preset to a checkpoint folder, killed and resumed on the way."""

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import CheckpointError, read_checkpoint
from models.checkpoint_model import load_model
from models.checkpoint_schema import DataSource
from models.language_model import LanguageModel
from tests.training.tiny_runs import equal, history
from training import record as record_module
from training.cli import main
from training.evaluation_data import may_know_held_out
from training.language_modelling import text_loss
from training.preset import Preset
from training.resuming import RunError
from training.run import has_run, train
from training.run_lock import run_lock
from training.text import split_held_out

MakePreset = Callable[..., Preset]
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def _train(preset: Preset, out: Path, name: str = "tiny", **options: Any) -> Path:
    return train(
        name, preset, out, cache_dir=out / "cache", device=CPU, show_progress=False, **options
    )


def _state(folder: Path) -> Any:
    return torch.load(folder / "run" / "state.pt", weights_only=True)


def _assert_same_run(one: Path, other: Path) -> None:
    assert equal(_state(one), _state(other)), "weights, optimizer, progress or random numbers"
    assert history(one / "run") == history(other / "run")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, other)]
    assert weights[0] == weights[1], "the best checkpoint"
    metrics = [
        {k: v for k, v in read_checkpoint(f).training.metrics.items() if "per_second" not in k}
        for f in (one, other)
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_language_model_that_was_stopped_ends_as_one_that_was_not(
    text_preset: MakePreset, tmp_path: Path, cell: str
) -> None:
    preset = text_preset(f"model.cell={cell}")
    whole = _train(preset, tmp_path / "whole")
    for steps in (7, 4, None):
        parts = _train(preset, tmp_path / "parts", stop_after_steps=steps)
    _assert_same_run(whole, parts)
    assert "resuming at step 5" in (parts / "run" / "train.log").read_text()


@pytest.mark.usefixtures("no_pictures")
def test_a_translation_model_that_was_stopped_ends_as_one_that_was_not(
    pairs_preset: MakePreset, tmp_path: Path
) -> None:
    preset = pairs_preset()
    whole = _train(preset, tmp_path / "whole")
    for steps in (6, 5, None):
        parts = _train(preset, tmp_path / "parts", stop_after_steps=steps)
        assert _state(parts)["progress"]["batch"] > 0, "stopped in the middle of an epoch"
    _assert_same_run(whole, parts)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_a_run_begins_with_the_weights_and_tokenizers_of_an_initial_checkpoint(
    text_preset: MakePreset, pairs_preset: MakePreset, tmp_path: Path, kind: str
) -> None:
    make = text_preset if kind == "text" else pairs_preset
    first = _train(make(), tmp_path / "first")
    # A rate so low that no weight changes in float16.
    still = make("training.steps=3", "training.learning_rate=1e-30", "model.dropout=0.5")
    second = _train(still, tmp_path / "second", initial_dir=first)
    assert read_checkpoint(second).training.steps == 3
    one, other = (load_model(read_checkpoint(f), CPU).state_dict() for f in (first, second))
    assert equal(one, other)
    tokenizers = sorted(file.name for file in first.glob("*tokenizer*"))
    assert sorted(file.name for file in second.glob("*tokenizer*")) == tokenizers
    for name in tokenizers:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    initial = read_checkpoint(second).training.initial
    assert initial is not None
    assert initial.fingerprint == read_checkpoint(first).fingerprint
    assert initial.steps == read_checkpoint(first).training.steps
    assert f"`{initial.fingerprint[:16]}...`" in (second / "README.md").read_text()
    with pytest.raises(RunError, match="other settings \\(initial\\)"):
        _train(still, tmp_path / "second")


@pytest.mark.usefixtures("no_pictures")
def test_a_run_says_if_its_initial_checkpoint_may_know_what_is_held_out(
    pairs_preset: MakePreset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = ("training.steps=2", "training.validate_every_steps=2")
    first = _train(pairs_preset(*few), tmp_path / "first")
    same_cut = ("training.seed=2", "data.validation_share=0.2", "data.reverse=true")
    languages = ("data.source_language=fr", "data.target_language=en")
    swapped = pairs_preset(*few, *same_cut, *languages)
    assert not may_know_held_out(read_checkpoint(first), swapped.data, _sources(first))
    _train(swapped, tmp_path / "swapped", initial_dir=first)
    assert "trained on some of the pairs that are for validation here" in caplog.text
    caplog.clear()
    _train(pairs_preset(*few), tmp_path / "again", initial_dir=first)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    more = pairs_preset(*few, "data.test_share=0.3")
    second = _train(more, tmp_path / "second", initial_dir=first)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [w for w in warnings if "may have seen some of what is held out" in w]
    third = _train(more, tmp_path / "third", initial_dir=second)
    infos = [read_checkpoint(folder) for folder in (first, second, third)]
    # Who begins with it knows what it knows, though the cut is the same.
    assert [i.training.initial_may_know_held_out for i in infos] == [False, True, True]
    for info, is_named in zip(infos, (False, True, True), strict=True):
        assert ("on some of what is measured here" in info.training.metrics_note) == is_named
        card = " ".join((info.path / "README.md").read_text().split())
        assert ("on some of what is measured here" in card) == is_named


def _sources(folder: Path) -> list[DataSource]:
    return read_checkpoint(folder).training.data


@pytest.mark.usefixtures("no_pictures")
def test_an_initial_checkpoint_of_another_architecture_is_refused(
    text_preset: MakePreset, pairs_preset: MakePreset, tmp_path: Path
) -> None:
    text = _train(text_preset(), tmp_path / "text")
    with pytest.raises(CheckpointError, match=r"model.hidden_size is \d+ and the preset's 3"):
        _train(text_preset("model.hidden_size=3"), tmp_path / "other", initial_dir=text)
    with pytest.raises(CheckpointError, match="is a language_model and the preset trains"):
        _train(pairs_preset(), tmp_path / "other", initial_dir=text)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_how_often_a_run_validates_does_not_change_what_it_learns(
    text_preset: MakePreset, pairs_preset: MakePreset, tmp_path: Path, kind: str
) -> None:
    make = text_preset if kind == "text" else pairs_preset
    often = _train(make("training.validate_every_steps=5"), tmp_path / "often")
    never = _train(make("training.validate_every_steps=1000"), tmp_path / "never")
    for part in ("model", "optimizer", "random"):
        assert equal(_state(often)[part], _state(never)[part])


def test_a_run_leaves_everything_that_it_promises(
    text_preset: MakePreset, tmp_path: Path, text: str
) -> None:
    folder = _train(text_preset(), tmp_path / "out")
    assert {file.name for file in folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.json", "training.json"),
        "run",
    }
    run = folder / "run"
    assert (run / "curves.png").stat().st_size > 1000
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    log = (run / "train.log").read_text()
    assert "validation: loss" in log
    assert "final: held_out_perplexity" in log
    assert has_run(folder)

    info = read_checkpoint(folder)
    model = load_model(info, CPU)
    assert isinstance(model, LanguageModel)
    record = info.training
    assert (record.name, record.seed, record.steps) == ("tiny", 1, 24)
    assert record.data[0].sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert record.licence == "Licence of the tiny text"
    assert record.preset["training"]["steps"] == 24
    assert record.versions.keys() >= {"python", "torch", "gatehouse"}
    train_text, held_out = split_held_out(text, 0.2)
    for name, part in (("held_out_perplexity", held_out), ("training_perplexity", train_text)):
        fresh = torch.tensor(text_loss(model, info.tokenizers["text"].encode(part))).exp()
        assert record.metrics[name] == pytest.approx(float(fresh), abs=1e-4)
    card = (folder / "README.md").read_text()
    assert f"| held out perplexity | {record.metrics['held_out_perplexity']:g} |" in card
    assert record.metrics_note in card
    assert "By nobody at all." in card


@pytest.mark.usefixtures("no_pictures")
def test_a_translation_run_leaves_a_checkpoint_with_its_direction(
    pairs_preset: MakePreset, tmp_path: Path
) -> None:
    folder = _train(pairs_preset(), tmp_path)
    info = read_checkpoint(folder)
    load_model(info, CPU)
    assert info.languages is not None
    assert (info.languages.source, info.languages.target) == ("en", "fr")
    assert "greedy_bleu_first_reference" in info.training.metrics


@pytest.mark.usefixtures("no_pictures")
def test_the_checkpoint_is_the_best_and_not_the_last(
    text_preset: MakePreset, tmp_path: Path, text: str
) -> None:
    """A learning rate that grows until it spoils what was learned."""
    preset = text_preset(
        *("training.schedule=constant", "training.learning_rate=2.0", "training.steps=20"),
        *("training.validate_every_steps=2", "training.warmup_steps=20"),
    )
    folder = _train(preset, tmp_path)
    losses = [row["validation_loss"] for row in history(folder / "run") if "validation_loss" in row]
    assert len(losses) == 10
    assert min(losses) < losses[-1], "the test needs a run that gets worse"
    info = read_checkpoint(folder)
    model = load_model(info, CPU)
    assert isinstance(model, LanguageModel)
    held_out = info.tokenizers["text"].encode(split_held_out(text, 0.2)[1])
    assert text_loss(model, held_out) == pytest.approx(min(losses), rel=1e-2)
    assert abs(text_loss(model, held_out) - min(losses)) < abs(losses[-1] - min(losses))


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_stays_as_it_is_when_asked_for_again(
    text_preset: MakePreset, tmp_path: Path
) -> None:
    folder = _train(text_preset(), tmp_path)
    before = read_checkpoint(folder)
    figures = history(folder / "run")
    _train(text_preset(), tmp_path)
    after = read_checkpoint(folder)
    assert after.fingerprint == before.fingerprint
    assert after.training.metrics == before.training.metrics
    assert history(folder / "run") == figures


@pytest.mark.usefixtures("no_pictures")
def test_another_preset_or_text_in_the_same_folder_is_refused(
    text_preset: MakePreset, tmp_path: Path, text: str
) -> None:
    _train(text_preset(), tmp_path, stop_after_steps=6)
    with pytest.raises(RunError, match=r"other settings \(training.learning_rate\); choose anoth"):
        _train(text_preset("training.learning_rate=0.02"), tmp_path)
    other = tmp_path / "other.txt"
    other.write_text(text + "And so on.")
    with pytest.raises(RunError, match=r"other settings \(texts\)"):
        _train(text_preset(), tmp_path, data_location=str(other))
    copy = tmp_path / "copy.txt"
    copy.write_text(text)
    _train(text_preset(), tmp_path, data_location=str(copy))


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("checked", [True, False])
def test_another_text_gets_no_licence_of_the_presets(
    text_preset: MakePreset, tmp_path: Path, text: str, checked: bool
) -> None:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    preset = text_preset(*([f"data.source.sha256={sha256}"] if checked else []))
    other = tmp_path / "other.txt"
    other.write_text(text.upper())
    folder = _train(preset, tmp_path, name="mine", data_location=str(other))
    record = read_checkpoint(folder).training
    assert record.licence == "as the training data"
    assert record.attribution is None
    assert record.data[0].name == "other.txt"
    card = (folder / "README.md").read_text()
    assert card.startswith("# mine\n")
    assert "Licence of the tiny text" not in card
    assert "nobody at all" not in card
    assert "Tiny text" not in card


@pytest.mark.usefixtures("no_pictures")
def test_a_copy_of_the_presets_text_is_recorded_with_its_public_origin(
    text_preset: MakePreset, text_file: Path, tmp_path: Path, text: str
) -> None:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    preset = text_preset(
        f"data.source.sha256={sha256}", "data.source.location=https://example.org/tiny.txt"
    )
    folder = _train(preset, tmp_path / "out", data_location=str(text_file))
    record = read_checkpoint(folder).training
    assert record.data[0].origin == "https://example.org/tiny.txt"
    assert record.data[0].name == "Tiny text"
    assert record.licence == "Licence of the tiny text"
    for file in ("README.md", "training.json", "config.json"):
        assert str(tmp_path) not in (folder / file).read_text()


@pytest.mark.usefixtures("no_pictures")
def test_a_checkout_that_is_not_installed_can_train(
    text_preset: MakePreset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == "gatehouse":
            raise metadata.PackageNotFoundError(name)
        return metadata.version(name)

    monkeypatch.setattr(record_module, "version", version)
    folder = _train(text_preset("training.steps=1"), tmp_path)
    assert read_checkpoint(folder).training.versions["gatehouse"] == "not installed"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_the_same_command_after_a_kill_ends_with_the_same_weights(
    text_preset_file: Path, text_preset: MakePreset, tmp_path: Path
) -> None:
    # Long enough behind the first state for the kill to come in time on a busy machine.
    last = 400
    overrides = [f"training.steps={last}", "training.validate_every_steps=50"]
    arguments = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "training", str(text_preset_file), *arguments]
    command += ["--out", str(tmp_path / "killed"), "--device", "cpu", "--threads", "1"]
    folder = tmp_path / "killed" / "tiny"
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stderr=output, stdout=output)
        while not (folder / "run" / "state.pt").exists():
            assert process.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert _state(folder)["progress"]["step"] < last, "the test must kill in the middle of the run"
    # The same command again, without the seconds that Python takes to start.
    assert main(command[3:]) == 0
    assert "resuming at step" in (folder / "run" / "train.log").read_text()
    whole = _train(text_preset(*overrides), tmp_path / "whole")
    _assert_same_run(whole, folder)
    steps = [row["step"] for row in history(folder / "run") if "train_loss" in row]
    assert steps == list(range(3, last + 1, 3))


@pytest.mark.usefixtures("no_pictures")
def test_a_model_of_other_data_is_not_written_over(
    text_preset: MakePreset, tmp_path: Path, text: str
) -> None:
    folder = _train(text_preset("training.steps=2"), tmp_path)
    shutil.rmtree(folder / "run")
    other = tmp_path / "other.txt"
    other.write_text(text.upper())
    with pytest.raises(RunError, match="holds a model that was trained on other data: choose"):
        _train(text_preset("training.steps=2"), tmp_path, data_location=str(other))
    _train(text_preset("training.steps=2"), tmp_path)


@pytest.mark.usefixtures("no_pictures")
def test_two_processes_do_not_train_in_one_folder(text_preset: MakePreset, tmp_path: Path) -> None:
    run_dir = tmp_path / "tiny" / "run"
    run_dir.mkdir(parents=True)
    with run_lock(run_dir), pytest.raises(RunError, match="another process is training there"):
        _train(text_preset("training.steps=2"), tmp_path)
