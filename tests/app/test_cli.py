"""Commands in this process; what needs a server is in test_end_to_end.py."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import main
from tests.app.conftest import save_odd_models


@pytest.fixture(autouse=True)
def _away_from_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_models_lists_the_checkpoints(
    checkpoints_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--checkpoints", str(checkpoints_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("both-ways: language_model, cannot generate, ")
    assert lines[1].startswith("en-fr: seq2seq en-fr, translate, ")
    assert lines[-1].endswith("parameters, CC0-1.0; perplexity 60")


def test_generate_continues_a_text(
    checkpoints_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "the ", "--seed", "1", "--max-new-tokens", "9"]
    words += ["--checkpoints", str(checkpoints_dir)]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert first.startswith("the ")
    assert main(words) == 0
    assert capsys.readouterr().out == first


def test_generate_puts_a_space_between_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_odd_models(tmp_path)
    words = ["generate", "the time", "--model", "words", "--seed", "1", "--max-new-tokens", "2"]
    assert main([*words, "--checkpoints", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("the time ")


@pytest.fixture
def translate(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, bytes, bytes]]:
    """Run ``translate`` on some input: exit status, output and errors."""

    def call(content: bytes, *words: str) -> tuple[int, bytes, bytes]:
        (tmp_path / "input").write_bytes(content)
        with (tmp_path / "input").open() as stream, monkeypatch.context() as patch:
            patch.setattr("sys.stdin", stream)
            # pytest's stand-in for stdout has a file of its own.
            patch.setattr("sys.stdout", sys.__stdout__)
            status = main(["translate", "--from", "en", "--to", "fr", "--beam-size", "1", *words])
        return status, *capfdbinary.readouterr()

    return call


def test_translate_goes_line_by_line(
    checkpoints_dir: Path, translate: Callable[..., tuple[int, bytes, bytes]]
) -> None:
    where = ("--checkpoints", str(checkpoints_dir))
    status, out, err = translate(b"I am cold .\n\ngo\r\n", *where)
    assert (status, err) == (0, b"")
    lines = out.decode().split("\n")
    assert len(lines) == 4
    assert lines[1] == lines[3] == ""
    assert translate(b"go", *where)[1].decode() == lines[2] + "\n"
    assert translate(b"", *where) == (0, b"", b"")


def test_translate_names_the_line_at_fault_and_keeps_what_came_before(
    checkpoints_dir: Path, translate: Callable[..., tuple[int, bytes, bytes]]
) -> None:
    where = ("--checkpoints", str(checkpoints_dir))
    good = translate(b"go\nwe lost\n", *where)[1]
    status, out, err = translate(b"go\nwe lost\n\xff\nHe is happy .\n", *where)
    assert (status, out) == (1, good)
    assert err == b"gatehouse: line 3: not UTF-8: invalid start byte\n"
    status, out, err = translate(b"go\n" + b"a" * 100_000 + b"\n", *where)
    assert status == 1
    assert err.startswith(b"gatehouse: line 2: ")
    assert err.count(b"\n") == 1


def test_translate_takes_settings_that_the_service_takes(
    translate: Callable[..., tuple[int, bytes, bytes]],
    checkpoints_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GATEHOUSE_QUEUE_CAPACITY", "2000")
    monkeypatch.setenv("GATEHOUSE_MAX_TEXTS_PER_REQUEST", "1000")
    status, output, errors = translate(b"go\n", "--checkpoints", str(checkpoints_dir))
    assert (status, output.count(b"\n")) == (0, 1), errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_disk_without_room_gets_one_clear_sentence(
    tmp_path: Path, checkpoints_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["translate", "--from", "en", "--to", "fr", "--checkpoints", str(checkpoints_dir)]
    (tmp_path / "input").write_text("go\n", encoding="utf-8")
    with (tmp_path / "input").open() as source, Path("/dev/full").open("w") as target:
        command = "import sys; from app.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", command, *words], stdin=source, stdout=target, check=False
        )
    assert done.returncode == 1
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    assert errors.endswith("gatehouse: [Errno 28] No space left on device\n")


def test_bleu_scores_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hypotheses").write_text("the cat sat on the mat\na b c d\n")
    (tmp_path / "references").write_text("the cat sat on the mat\na b c d\n")
    words = ["bleu", "hypotheses", "references", "--metrics", "bleu", "textbook_bleu"]
    assert main(words) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("bleu 100.0000  nrefs:1|")
    assert out[1] == "textbook_bleu 1.0000"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["serve", "--checkpoints", "."], "no checkpoint found in ."),
        (["models", "--checkpoints", "nowhere"], "no checkpoint found in nowhere"),
        (["serve", "--port", "99999"], "GATEHOUSE_PORT: Input should be less than"),
        (["serve", "--host", "203.0.113.1", "--port", "0"], "listening there needs API keys"),
        (["bleu", "nowhere", "nowhere"], "cannot read nowhere"),
        (["generate", "a", "--temperature", "-1", "--checkpoints", "."], "temperature: Input"),
    ],
)
def test_mishaps_get_one_clear_sentence(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith("gatehouse: ")
    assert error.count("\n") == 1


def test_a_taken_port_is_told_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port), "--checkpoints", "."]) == 1
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in error


def test_unknown_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEHOUSE_CHECKPOINT_DIR", "x")
    assert main(["models"]) == 1
    assert "did you mean GATEHOUSE_CHECKPOINTS_DIR?" in capsys.readouterr().err


def test_bleu_files_of_different_lengths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hypotheses").write_text("a\nb\n")
    (tmp_path / "references").write_text("a\n")
    assert main(["bleu", "hypotheses", "references"]) == 1
    assert "references has 1 lines, but hypotheses 2" in capsys.readouterr().err
    assert main(["bleu", "references", "hypotheses"]) == 1


def test_training_without_its_extra_is_one_clear_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "training"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tqdm", None)  # as if it were not installed
    for words in (["train", "en-fr"], ["evaluate", "en-fr"]):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"gatehouse {words[0]}: tqdm is not installed")
        assert "make train" in error
        assert error.count("\n") == 1


def test_bench_hands_on_to_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: gatehouse bench")
    assert "serving" in out


def test_train_is_trainings_own_business(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    assert "usage: gatehouse train" in capsys.readouterr().out


def test_evaluate_measures_a_checkpoint_of_the_service(
    checkpoints_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").write_text("I am cold .\n")
    (tmp_path / "reference").write_text("j'ai froid .\n")
    own = ["--source", "source", "--reference", "reference"]
    assert main(["evaluate", str(checkpoints_dir / "en-fr"), *own, "--device", "cpu"]) == 0
    assert "| beam4 chrF first reference" in capsys.readouterr().out
    assert main(["evaluate", str(checkpoints_dir / "en-fr")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gatehouse evaluate: ")
    assert error.endswith("give --source and --reference\n")


@pytest.mark.parametrize("words", [[], ["nope"], ["serve", "--nope"]])
def test_a_command_line_that_makes_no_sense(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
