"""``gatehouse train`` on a person's own text: one command, no preset."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.checkpoint import read_checkpoint
from models.checkpoint_model import build_model, save_checkpoint
from models.checkpoint_schema import TrainingRecord
from models.config import LanguageModelConfig
from models.tokenizers import CharacterTokenizer
from training.cli import main
from training.preset import Preset
from training.sizing import MINIMUM_CHARACTERS

pytestmark = pytest.mark.usefixtures("no_pictures")

Run = Callable[..., tuple[int, str, str]]
SMALL = ("training.steps=2", "training.precision=float32", "training.warmup_steps=0")
SMALL_PAIRS = (
    *("model.hidden_size=8", "model.embedding_size=8", "tokenizer.vocabulary_size=300"),
    "data.max_tokens=40",
)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command: exit status, stdout and stderr."""

    def call(*arguments: str | Path, overrides: tuple[str, ...] = ()) -> tuple[int, str, str]:
        options = ["--out", str(tmp_path / "out"), "--device", "cpu"]
        for override in (*SMALL, *overrides):
            options += ["--set", override]
        status = main([*map(str, arguments), *options], prog="train")
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def _pairs(count: int) -> list[tuple[str, str]]:
    chooser = random.Random(5)
    words = [("i", "je"), ("see", "vois"), ("a", "un"), ("cat", "chat"), ("dog", "chien")]
    words += [("and", "et"), ("no", "non"), ("yes", "oui"), ("here", "ici"), ("now", "alors")]
    lines: dict[str, str] = {}
    while len(lines) < count:
        chosen = chooser.choices(words, k=chooser.randint(3, 8))
        source, target = zip(*chosen, strict=True)
        lines[" ".join(source)] = " ".join(target)
    return list(lines.items())


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in _pairs(150)))
    return path


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "train.en", tmp_path / "train.fr.gz"
    source.write_text("".join(f"{pair[0]}\n" for pair in _pairs(150)))
    target.write_bytes(gzip.compress("".join(f"{p[1]}\n" for p in _pairs(150)).encode()))
    return source, target


def _refusal(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert (status, out) == (1, "")
    assert err.startswith("train: ")
    assert err.count("\n") == 1, "one sentence"
    return err


def test_a_tab_file_becomes_a_translation_model(run: Run, pairs: Path, tmp_path: Path) -> None:
    arguments = ("--pairs", pairs, "--from", "en", "--to", "fr")
    status, out, err = run(*arguments, overrides=SMALL_PAIRS)
    assert status == 0, err
    assert "read 150 pairs, 150 distinct source sentences" in err
    assert "data.test_share=0.1, data.validation_share=0.1" in err
    assert "training.steps=2" in err, "what --set says, not what was derived"
    info = read_checkpoint(tmp_path / "out" / "en-fr-corpus")
    assert info.languages is not None
    assert (info.languages.source, info.languages.target) == ("en", "fr")
    request = out.splitlines()[-1]
    assert "serve it with: gatehouse serve --checkpoints" in out
    assert request.startswith("then ask it:   curl -s localhost:8000/translate ")
    body = json.loads(request.partition(" -d ")[2].strip("'"))
    assert body["model"] == "en-fr-corpus"
    assert body["text"] in {source for source, _ in _pairs(150)}


def test_what_was_derived_is_recorded_and_nobodys_folders(
    run: Run, pairs: Path, tmp_path: Path
) -> None:
    run("--pairs", pairs, "--from", "en", "--to", "fr", overrides=SMALL_PAIRS)
    folder = tmp_path / "out" / "en-fr-corpus"
    preset = Preset.model_validate(read_checkpoint(folder).training.preset)
    assert preset.data.kind == "parallel"
    assert preset.data.validation_share == 0.1
    assert preset.model["dropout"] == 0.5
    assert preset.data.source.location == "corpus.tsv"
    assert preset.data.source.sha256 == read_checkpoint(folder).training.data[0].sha256
    for file in ("README.md", "training.json", "config.json"):
        assert str(tmp_path) not in (folder / file).read_text()
    assert (folder / "README.md").read_text().startswith("# en-fr-corpus\n")


def test_two_files_tell_their_languages_and_validation_files_are_used(
    run: Run, sides: tuple[Path, Path], tmp_path: Path
) -> None:
    valid = tmp_path / "valid.tsv"
    valid.write_text("i see\tje vois\nno dog\tnon chien\n")
    arguments = ("--source", sides[0], "--target", sides[1], "--valid-pairs", valid)
    status, _, err = run(*arguments, overrides=(*SMALL_PAIRS, "data.test_share=0"))
    assert status == 0, err
    record = read_checkpoint(tmp_path / "out" / "en-fr-train").training
    assert [source.name for source in record.data] == ["train.en", "train.fr.gz", "valid.tsv"]
    assert record.metrics["validation_sentences"] == 2
    assert "They have files of their own. They also chose the best" in record.metrics_note


def test_the_same_command_goes_on_and_other_data_are_refused(
    run: Run, pairs: Path, tmp_path: Path
) -> None:
    arguments = ("--pairs", pairs, "--from", "en", "--to", "fr")
    run(*arguments, overrides=SMALL_PAIRS)
    moved = pairs.rename(tmp_path / "moved.tsv")
    again = ("--pairs", moved, "--from", "en", "--to", "fr", "--name", "en-fr-corpus")
    status, _, err = run(*again, overrides=SMALL_PAIRS)
    assert status == 0, err
    assert "going on with the run" in err
    moved.write_text(moved.read_text() + "i see no cat\tje vois non chat\n")
    status, _, err = run(*again, overrides=SMALL_PAIRS)
    assert status == 1
    assert "other settings" in err
    assert "texts" in err


def test_prose_becomes_a_language_model(run: Run, text: str, tmp_path: Path) -> None:
    novel = tmp_path / "My novel.txt.gz"
    novel.write_bytes(gzip.compress(text.encode()))
    status, out, err = run("--text", novel, overrides=("model.hidden_size=8",))
    assert status == 0, err
    assert f"read {len(text):,} characters" in err
    info = read_checkpoint(tmp_path / "out" / "My-novel")
    body = json.loads(out.splitlines()[-1].partition(" -d ")[2].strip("'"))
    assert body["model"] == "My-novel"
    assert text.startswith(body["prompt"].strip())
    assert info.training.metrics.keys() >= {"held_out_perplexity"}


def test_an_initial_checkpoint_gives_the_model_its_shape(
    run: Run, text: str, tmp_path: Path
) -> None:
    novel = tmp_path / "novel.txt"
    novel.write_text(text)
    run("--text", novel, overrides=("model.hidden_size=8",))
    first = tmp_path / "out" / "novel"
    status, _, err = run("--text", novel, "--initial", first, "--name", "longer")
    assert status == 0, err
    assert "model.hidden_size=8" in err, "as the checkpoint's, whatever would be derived"


def test_a_model_of_one_hot_vectors_is_trained_further(run: Run, text: str, tmp_path: Path) -> None:
    novel = tmp_path / "novel.txt"
    novel.write_text(text.upper())
    first = tmp_path / "first"
    torch.manual_seed(1)
    tokenizer = CharacterTokenizer.train(text, "book_characters")
    config = LanguageModelConfig(vocabulary_size=tokenizer.vocabulary_size, hidden_size=8)
    model = build_model(config)
    record = TrainingRecord(name="first", created="", data=[], licence="", seed=0, steps=0)
    save_checkpoint(
        first, model, tokenizers={"text": tokenizer}, languages=None, training=record, card=""
    )
    status, _, err = run("--text", novel, "--initial", first, "--name", "longer")
    assert status == 0, err
    info = read_checkpoint(tmp_path / "out" / "longer")
    assert info.config.embedding_size is None
    assert isinstance(info.tokenizers["text"], CharacterTokenizer)


def test_tokenizers_of_an_initial_checkpoint_are_recorded_as_they_were_trained(
    run: Run, pairs: Path, tmp_path: Path
) -> None:
    words = ("--pairs", pairs, "--from", "en", "--to", "fr")
    size = ("model.hidden_size=8", "model.embedding_size=8", "tokenizer.vocabulary_size=310")
    status, _, err = run(*words, "--name", "first", overrides=size)
    assert status == 0, err
    first = tmp_path / "out" / "first"
    status, _, err = run(*words, "--initial", first, "--name", "second")
    assert status == 0, err
    assert "tokenizer." not in err
    one, two = (read_checkpoint(tmp_path / "out" / n).training for n in ("first", "second"))
    assert one.preset["tokenizer"]["vocabulary_size"] == 310
    assert two.preset["tokenizer"] == one.preset["tokenizer"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give a preset, or your own text by --pairs"),
        (("translation",), "translation trains on your own text: leave the name out and give --pa"),
        (("en-fr", "--pairs", "x"), "give either a preset (and --data for its text) or --pairs"),
        (("--pairs", "x", "--text", "y"), "give --pairs, or --source and --target, or --text"),
        (("--source", "x.en"), "give --pairs, or --source and --target, or --text"),
        (("--text", "x", "--from", "en"), "--from goes with --pairs"),
        (("--valid-pairs", "x"), "--valid-pairs goes with --pairs"),
        (("--pairs", "x", "--valid-source", "y"), "--valid-source and --valid-target go together"),
        (("--pairs", "x", "--valid-source", "y", "--valid-target", "z", "--valid-pairs", "w"),
         "either --valid-pairs or"),
        (("--pairs", ""), "the name of a file is empty"),
        (("--pairs", "corpus.tsv"), "corpus.tsv: the name does not say which languages"),
        (("--pairs", "/nowhere/en-fr.tsv"), "/nowhere/en-fr.tsv: no such file"),
        (("--text", "/nowhere/novel.txt"), "/nowhere/novel.txt: no such file"),
    ],
)  # fmt: skip
def test_a_command_that_says_too_little_or_too_much_is_one_sentence(
    run: Run, arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in _refusal(run(*arguments))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("i see\tje vois\n" * 200, "1 distinct source sentences are too few to split into"),
        ("", "a.en-fr.tsv: holds no sentence pair"),
        ("i see\tje vois\nno tab\n", "a.en-fr.tsv: line 2 has no tab"),
    ],
)
def test_pairs_that_cannot_be_used_are_refused_before_anything_is_written(
    run: Run, tmp_path: Path, content: str, sentence: str
) -> None:
    path = tmp_path / "a.en-fr.tsv"
    path.write_text(content)
    assert sentence in _refusal(run("--pairs", path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", f"novel.txt: 0 characters are too few to split .* {MINIMUM_CHARACTERS:,} are needed"),
        (b"\n" * 9999, "novel.txt: 0 characters are too few"),
        (b"one\n" + b"x " * 60_000, "novel.txt: line 2 has 120,000 characters, .* 100,000: break"),
        (b"one\ncaf\xe9\n" * 999, "novel.txt: line 2 is not UTF-8"),
        (b"one\0" * 999, "novel.txt: is a binary file"),
    ],
)
def test_prose_that_cannot_be_used_is_refused(
    run: Run, tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "novel.txt"
    path.write_bytes(content)
    refusal = _refusal(run("--text", path))
    start, _, end = sentence.partition(" .* ")
    assert start in refusal
    assert end in refusal
