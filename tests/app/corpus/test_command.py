"""``gatehouse translate --ray``: what is refused, and whole runs, with kills on the way."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.settings import PROJECT_DIR
from benchmarks.corpus_runs import descendants, ray_workers
from tests.app.conftest import ENGLISH

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra ray is not installed"
)
TIMEOUT_SECONDS = 280
"""A guard: Ray starts a handful of processes, and each worker imports torch."""


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two texts with a line that is not UTF-8, in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    lines = [ENGLISH[number % len(ENGLISH)] for number in range(300)]
    (folder / "a.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "sub" / "b.txt").write_bytes(b"go\r\n\xff\n\nwe lost")
    return folder


def test_without_ray_one_sentence_says_what_to_install(
    texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["translate", "--ray", str(texts), "--out", "out"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gatehouse: --ray needs Ray Data, of which ray is not installed: ")
    assert error.endswith("pip install -c constraints.txt -e '.[ray]'\n")
    assert error.count("\n") == 1


def test_ray_is_imported_where_it_is_asked_for_alone() -> None:
    program = (
        "import sys, app.cli, app.main, app.corpus.command\n"
        "print({'ray', 'pyarrow'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["in/a.txt"], "INPUT and --out are for --ray"),
        (["--out", "out"], "INPUT and --out are for --ray"),
        (["--ray", "in"], "--ray needs what to translate and where to: INPUT... --out DIR"),
        (["--ray", "--out", "out"], "--ray needs what to translate and where to"),
        (["--ray", "in", "--out", "out", "--server", "http://x"], "give one of them"),
        (["--ray", "in", "--out", "out", "--beam-size", "0"], "beam_size: Input should be"),
    ],
)
def test_words_that_do_not_go_together(
    texts: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert main(["translate", *words]) == 1
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--workers", "--shard-lines"])
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_numbers_that_make_no_sense(option: str, value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["translate", option, value])
    assert caught.value.code == 2


@needs_ray
def test_what_can_be_known_is_refused_before_ray_is_started(
    texts: Path, checkpoints_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (texts.parent / "there" / "sub").mkdir(parents=True)
    (texts.parent / "there" / "sub" / "b.txt").touch()
    for words, complaint in (
        (["nowhere", "--out", "out"], "nowhere: there is no such file or folder"),
        (["in", "--out", "out", "--device", "cuda"], "translates on processors"),
        (["in", "--out", "out", "--to", "de"], "this language pair is not translated"),
        (["in", "--out", "there"], "b.txt is there already: give another --out"),
        (["in", "--out", "in/a.txt"], "a.txt"),
    ):
        where = ["--from", "en", "--checkpoints", str(checkpoints_dir)]
        assert main(["translate", "--ray", *where, *words]) == 1
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1, error


@needs_ray
def test_nothing_to_translate_needs_no_workers(
    texts: Path, checkpoints_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (texts / "empty").touch()
    words = ["translate", "--ray", "in/empty", "--out", "out"]
    words += ["--from", "en", "--checkpoints", str(checkpoints_dir)]
    for _ in range(2):
        assert main(words) == 0
        assert capsys.readouterr() == ("0 lines of 1 files are translated in out\n", "")
        assert Path("out/empty").read_bytes() == b""


@needs_ray
def test_a_second_command_does_not_mix_with_a_first(
    texts: Path, checkpoints_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    Path("out/.gatehouse").mkdir(parents=True)
    with FileLock("out/.gatehouse/lock"):
        words = ["--from", "en", "--checkpoints", str(checkpoints_dir)]
        assert main(["translate", "--ray", "in", "--out", "out", *words]) == 1
    assert "another process is translating into out\n" in capsys.readouterr().err


# ---------------------------------------------------------------- whole runs


def _command(checkpoints_dir: Path, *words: str) -> list[str]:
    languages = ["--from", "en", "--to", "fr", "--checkpoints", str(checkpoints_dir)]
    return [sys.executable, "-m", "app.cli", "translate", *languages, *words]


@contextmanager
def _started(command: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT_DIR)}
    with (
        log.open("wb") as stream,
        subprocess.Popen(command, env=environment, stdout=stream, stderr=stream) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _finish(command: list[str], log: Path) -> tuple[int, str]:
    with _started(command, log) as process:
        status = process.wait(TIMEOUT_SECONDS)
    return status, log.read_text()


def _one_process(checkpoints_dir: Path, content: bytes) -> bytes:
    return subprocess.run(
        _command(checkpoints_dir),
        input=content,
        env=os.environ | {"PYTHONPATH": str(PROJECT_DIR)},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


def _wait_for(done: Any, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not done():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@needs_ray
@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("chaos_is_asked_for")
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes under /proc")
def test_no_kill_loses_or_doubles_a_line(texts: Path, checkpoints_dir: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out, log = texts.parent / "out", texts.parent / "log"
    rows = [None, *ENGLISH]
    pq.write_table(pa.table({"id": range(len(rows)), "en": rows}), texts / "c.parquet")
    words = ["--ray", "in", "--out", "out", "--shard-lines", "20", "--workers", "1"]
    command = _command(checkpoints_dir, *words, "--column", "en")
    shards = out / ".gatehouse" / "shards"

    def done() -> int:
        return sum(file.suffix == "" for file in shards.glob("*"))

    # First a worker is killed, which Ray makes good, then the command, with all of Ray.
    with _started(command, log) as process:
        _wait_for(lambda: done() >= 1, process, log)
        (worker,) = ray_workers(process.pid)
        os.kill(worker, signal.SIGKILL)
        before = done()
        _wait_for(lambda: done() > before + 1, process, log)
        assert worker not in ray_workers(process.pid)
        family = descendants(process.pid)
        process.kill()
    assert done() < 16, "the test must kill in the middle"
    assert not (out / "a.txt").exists()
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while any(Path(f"/proc/{one}").exists() for one in family):
        assert time.monotonic() < deadline, "Ray ends with the command"
        time.sleep(0.1)

    status, told = _finish(command, log)
    assert status == 1, told  # a line failed
    assert "going on: " in told
    assert "\n  in/sub/b.txt: line 2: not UTF-8: invalid start byte\n" in told
    bad = (texts / "sub" / "b.txt").read_bytes()
    contents = [(texts / "a.txt").read_bytes(), bad.replace(b"\xff", b"") + b"\n"]
    contents.append("".join(f"{row or ''}\n" for row in rows).encode())
    expected = _one_process(checkpoints_dir, b"".join(contents))
    table = pq.read_table(out / "c.parquet")
    assert table["id"].to_pylist() == list(range(len(rows)))
    translations = table["translation"].to_pylist()
    assert translations[0] is None
    found = [(out / "a.txt").read_bytes(), (out / "sub" / "b.txt").read_bytes()]
    found.append("".join(f"{text or ''}\n" for text in translations).encode())
    assert b"".join(found) == expected, "every line is that of the single process"
    report = json.loads((out / ".gatehouse" / "report.json").read_text())
    assert report["lines"] == 300 + 4 + len(rows)
    assert 0 < report["lines_before"] < report["lines"]
    assert [(one["line"], Path(one["file"]).name) for one in report["failures"]] == [(2, "b.txt")]
    assert not shards.exists()

    # What is done is told again, and another run does not mix with it.
    again, told_again = _finish(command, log)
    assert (again, told_again) == (1, told[told.index("310 lines of 3 files") :])
    status, told = _finish([*command, "--beam-size", "2"], log)
    assert status == 1
    assert told == "gatehouse: out was translated with another beam size: 4, not 2: " + (
        "give another --out\n"
    )
