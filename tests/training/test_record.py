"""What ``training.json`` says of a run, and training the same model again from it."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.checkpoint import read_checkpoint
from models.checkpoint_schema import TrainingRecord
from tests.training.tiny_runs import history
from training import record as record_module
from training.cli import main
from training.record import code_commit

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parents[2]
Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    """Train on the CPU into ``OUT/NAME``; exit status and stderr."""

    def call(preset: Path, *arguments: str) -> tuple[int, str]:
        status = main([str(preset), "--device", "cpu", *arguments], prog="train")
        return status, capsys.readouterr().err

    return call


@pytest.fixture(autouse=True)
def _beside_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records keep but the names of local texts, which are then looked for where one is."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_a_record_trains_the_same_weights_again(
    text_preset_file: Path, pairs_preset_file: Path, tmp_path: Path, train: Train, kind: str
) -> None:
    file = text_preset_file if kind == "text" else pairs_preset_file
    changes = ("--set", "training.average_decay=0.9", "--set", "training.steps=12")
    first, again = tmp_path / "first", tmp_path / "again"
    assert train(file, "--out", str(first), "--threads", "1", *changes)[0] == 0
    record = first / file.stem / "training.json"
    file.unlink()
    status, err = train(record, "--out", str(again))
    assert status == 0, err
    for name in ("model.safetensors", "config.json"):
        one, other = (folder / file.stem / name for folder in (first, again))
        assert one.read_bytes() == other.read_bytes()
    assert history(first / file.stem / "run") == history(again / file.stem / "run")


def test_the_record_says_what_the_weights_depend_on(
    text_preset_file: Path, tmp_path: Path, train: Train, text: str
) -> None:
    other = tmp_path / "novel.txt"
    other.write_text(text.upper())
    overrides = ("training.validate_every_steps=2", "training.learning_rate=2.0")
    arguments = [part for override in overrides for part in ("--set", override)]
    train(text_preset_file, "--out", str(tmp_path), "--data", str(other), *arguments)
    record = read_checkpoint(tmp_path / "tiny").training
    assert record.arguments == ["tiny.toml", "--data", "novel.txt", *arguments]
    assert (record.precision, record.processes, record.steps) == ("float32", 1, 24)
    assert record.versions["threads"] == str(torch.get_num_threads())
    assert record.versions["device"].startswith("CPU, ")
    rows = [row for row in history(tmp_path / "tiny" / "run") if "validation_loss" in row]
    best = min(rows, key=lambda row: row["validation_loss"])
    assert record.best_step == best["step"]
    assert f"those of step {record.best_step})" in (tmp_path / "tiny" / "README.md").read_text()
    assert str(other) not in (tmp_path / "tiny" / "training.json").read_text()


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_the_record_names_no_folder_that_a_setting_names(
    text_preset_file: Path, text_file: Path, tmp_path: Path, train: Train, quote: str
) -> None:
    place = f"data.source.location={quote}{text_file}{quote}"
    train(text_preset_file, "--out", str(tmp_path), "--set", place, "--set", "training.steps=2")
    record = (tmp_path / "tiny" / "training.json").read_text()
    assert f"data.source.location={text_file.name}" in record
    assert str(tmp_path) not in record


def test_another_text_or_initial_checkpoint_is_not_the_same_run(
    text_preset_file: Path, tmp_path: Path, train: Train, text: str
) -> None:
    other = tmp_path / "novel.txt"
    other.write_text(text.upper())
    short = ("--set", "training.steps=2")
    train(text_preset_file, "--out", str(tmp_path), "--data", str(other), *short)
    record = tmp_path / "tiny" / "training.json"
    again = ("--out", str(tmp_path / "again"))

    status, err = train(record, *again)
    assert status == 1
    assert "tiny was trained on novel.txt, which only its owner has" in err
    other.write_text(text)
    assert "novel.txt: is not the text of tiny" in train(record, *again, "--data", str(other))[1]
    other.write_text(text.upper())
    initial = ("--initial", str(tmp_path / "tiny"))
    assert "omit --initial" in train(record, *again, "--data", str(other), *initial)[1]
    assert train(record, *again, "--data", str(other))[0] == 0

    train(text_preset_file, "--out", str(tmp_path / "more"), "--data", str(other), *short, *initial)
    more = tmp_path / "more" / "tiny" / "training.json"
    assert "give it by --initial" in train(more, *again, "--name", "b", "--data", str(other))[1]


def test_a_record_does_not_overwrite_its_own_run(
    text_preset_file: Path, tmp_path: Path, train: Train
) -> None:
    train(text_preset_file, "--out", str(tmp_path), "--set", "training.steps=2")
    status, err = train(tmp_path / "tiny" / "training.json", "--out", str(tmp_path))
    assert status == 1
    assert "choose another --out or --name" in err


def test_another_number_of_processes_is_warned_of(
    text_preset_file: Path, tmp_path: Path, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    train(text_preset_file, "--out", str(tmp_path), "--set", "training.steps=2")
    file = tmp_path / "tiny" / "training.json"
    record = json.loads(file.read_text())
    shutil.copy(file, copy := tmp_path / "copy.json")
    copy.write_text(json.dumps({**record, "processes": 2}))
    assert train(copy, "--out", str(tmp_path / "again"))[0] == 0
    assert "trained by 2 processes and not by 1" in caplog.text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "No such file"), ("{", "is no training.json"), ("{}", "name Field required")],
)
def test_a_file_that_is_no_record_is_named(
    tmp_path: Path, train: Train, content: str | None, sentence: str
) -> None:
    file = tmp_path / "training.json"
    if content is not None:
        file.write_text(content)
    status, err = train(file, "--out", str(tmp_path))
    assert status == 1
    assert err.startswith(f"train: {file}: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_every_key_of_the_record_is_documented() -> None:
    text = (ROOT / "docs" / "checkpoint-format.md").read_text()
    section = text.partition("## `training.json`")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    named = {word.strip("`,") for row in rows for word in row.split(" | ")[0].split()} - {"|"}
    assert named == set(TrainingRecord.model_fields)


def test_a_record_without_synthetic_pairs_gets_none(
    pairs_preset_file: Path, tmp_path: Path, train: Train
) -> None:
    train(pairs_preset_file, "--out", str(tmp_path), "--set", "training.steps=2")
    (tmp_path / "made.tsv").write_text("i see no cat\tje vois non chat\n")
    record = tmp_path / "pairs" / "training.json"
    status, err = train(record, "--out", str(tmp_path / "again"), "--synthetic", "made.tsv")
    assert (status, err.count("\n")) == (1, 1)
    assert "pairs was trained on Tiny pairs, and this run would be on Tiny pairs and made" in err
    assert "omit --synthetic" in err


def test_the_commit_is_that_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.com")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "training" / "record.py"
    module.parent.mkdir()
    module.write_text("# the code")
    monkeypatch.setattr(record_module, "__file__", str(module))
    assert code_commit() is None
    git("init", "--quiet")
    assert code_commit() is None  # there is no commit
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    git("tag", "v1")
    commit = code_commit()
    assert commit
    assert git("rev-parse", "HEAD").startswith(commit)
    module.write_text("# other code")
    assert code_commit() == f"{commit}-dirty"
    inner = tmp_path / "site-packages" / "training" / "record.py"
    monkeypatch.setattr(record_module, "__file__", str(inner))
    assert code_commit() is None  # it stands in a checkout, and belongs to none
