"""The command line: every mishap is one clear sentence, and its help needs no service."""

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.checkpoint import read_checkpoint
from training import cli
from training.cli import choose_device, main
from training.loop import Trainer
from training.preset import available_presets, load_preset

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("no_pictures")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    text_preset_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command on the tiny preset: exit status, stdout and stderr."""

    def call(*arguments: str, preset: str | None = None) -> tuple[int, str, str]:
        out = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
        device = [] if "--device" in arguments else ["--device", "cpu"]
        status = main([preset or str(text_preset_file), *out, *device, *arguments], prog="train")
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def _refused(result: tuple[int, str, str]) -> str:
    """The one sentence, after checking that there is nothing else."""
    status, out, err = result
    assert status == 1
    assert out == ""
    assert err.startswith("train: ")
    assert err.count("\n") == 1
    return err


def test_a_run_says_what_it_wrote_and_how_to_serve_it(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("--set", "training.steps=2", "--name", "mine")
    assert status == 0
    folder = tmp_path / "out" / "mine"
    assert f"wrote {folder}\n" in out
    assert f"gatehouse serve --checkpoints {tmp_path / 'out'}" in out
    request = """{"model": "mine", "prompt": "", "max_new_tokens": 200}"""
    assert "curl -s localhost:8000/generate" in out
    assert f"-d '{request}'" in out
    assert read_checkpoint(folder).training.preset["training"]["steps"] == 2
    _, _, err = run("--set", "training.steps=2", "--name", "mine")
    assert f"going on with the run in {folder}" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--data", "/nowhere/text.txt"), "/nowhere/text.txt: no such file"),
        (("--data", "ftp://example.org/text"), "only http, https and file URLs"),
        (("--set", "training.stepz=3"), "tiny: training.stepz: Extra inputs are not permitted"),
        (("--set", "model.hidden_size=0"), "model.hidden_size: Input should be greater than"),
        (("--set", "nonsense"), "write section.key=value"),
        (("--set", "training.batch_rows=5000"), "lower training.batch_rows"),
        (("--set", "model.cell=gru_textbook"), "torch has no textbook GRU"),
        (("--device", "tpu"), "unknown device 'tpu': give auto, cpu, cuda or cuda:N"),
        (("--device", "meta"), "unknown device 'meta'"),
        (("--set", "training.learning_rate=1e30", "--set", "training.optimizer=sgd",
          "--set", "training.clip_norm=1e30"), "lower training.learning_rate"),
    ],
)  # fmt: skip
def test_a_mishap_is_one_sentence(run: Run, arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in _refused(run(*arguments))


def test_an_unknown_preset_lists_the_known(run: Run) -> None:
    sentence = _refused(run(preset="nope"))
    assert "no preset 'nope'" in sentence
    assert all(name in sentence for name in available_presets())


def test_a_text_with_another_checksum_is_refused(run: Run, text_file: Path) -> None:
    digest, place = "ab" * 32, text_file.as_uri()
    sentence = _refused(
        run("--set", f"data.source.sha256={digest}", "--set", f"data.source.location={place}")
    )
    assert f"{place}: is not the expected Tiny text: its SHA-256 should be {digest}" in sentence


def test_a_zip_without_the_member_is_refused(run: Run, tmp_path: Path) -> None:
    archive = tmp_path / "texts.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a.txt", "a")
        opened.writestr("b.txt", "b")
    sentence = _refused(run("--data", str(archive), "--set", "data.source.member=c.txt"))
    assert "has no member 'c.txt', only: a.txt, b.txt" in sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "too few"), (b"tiny", "too few"), (b"caf\xe9 " * 99, "line 1 is not UTF-8")],
)
def test_a_text_that_cannot_be_used_is_refused(
    run: Run, tmp_path: Path, content: bytes, sentence: str
) -> None:
    other = tmp_path / "other.txt"
    other.write_bytes(content)
    refusal = _refused(run("--data", str(other)))
    assert "other.txt" in refusal
    assert sentence in refusal


def test_too_few_sentences_for_the_pieces_are_refused(run: Run, pairs_preset_file: Path) -> None:
    preset = str(pairs_preset_file)
    assert "SentencePiece" in _refused(run("--set", "tokenizer.kind=sentencepiece", preset=preset))


def test_a_run_with_other_settings_is_refused(run: Run, tmp_path: Path) -> None:
    run("--set", "training.steps=2")
    status, _, err = run("--set", "training.steps=3")
    assert status == 1
    assert "other settings (training.steps); choose another --out or --name" in err
    (tmp_path / "out" / "tiny" / "run" / "state.pt").write_bytes(b"spoilt")
    status, _, err = run("--set", "training.steps=2")
    assert status == 1
    assert "state.pt is damaged" in err


def test_a_folder_that_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where a folder should be")
    assert str(tmp_path / "out") in _refused(run())


def test_a_gpu_without_memory_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(self: Trainer, stop_after_steps: int | None = None) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. " + "Details. " * 40)

    monkeypatch.setattr(Trainer, "run", fill)
    assert "lower training.batch_rows" in _refused(run())


@pytest.mark.parametrize("argument", [("--threads", "0"), ("--threads", "x"), ("--stepz", "3")])
def test_usage_errors_are_argparses(run: Run, argument: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(*argument)
    assert left.value.code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_and_leaves_as_a_shell_expects(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    real = Trainer._update

    def update(self: Trainer, batch: object) -> None:
        real(self, batch)
        if self.progress.step == 7:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", update)
        status, out, err = run("--set", "training.save_every_steps=1000")
    assert status == 128 + number
    assert out == ""
    assert f"{number.name}: stopped at step 7; give the same command to go on" in err
    assert "Traceback" not in err
    status, _, _ = run("--set", "training.save_every_steps=1000")
    assert status == 0
    log = (tmp_path / "out" / "tiny" / "run" / "train.log").read_text()
    assert "resuming at step 7" in log


def test_ctrl_c_outside_the_loop_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", interrupt)
    assert run() == (130, "", "stopped; give the same command to go on\n")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto") == torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "cuda:7"):
        with pytest.raises(ValueError, match=f"sees no {name} here; use --device cpu"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="sees no cuda:2"):
        choose_device("cuda:2")
    for name in ("cuda:-1", "gpu", "", "mps"):
        with pytest.raises(ValueError, match="unknown device"):
            choose_device(name)


def test_the_help_describes_every_preset_and_needs_no_service() -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = ['training', '--help']\n"
        "try:\n"
        "    runpy.run_module('training', run_name='__main__')\n"
        "finally:\n"
        "    loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "    assert not loaded & {'app', 'fastapi', 'uvicorn'}, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m training")
    for name in available_presets():
        assert f"  {name} " in done.stdout
        assert load_preset(name)[1].description in done.stdout
    for option in ("--pairs", "--source", "--target", "--from", "--to", "--text"):
        assert option in done.stdout
    for option in ("--data", "--set", "--out", "--name", "--device", "--threads", "--cache"):
        assert option in done.stdout


@pytest.mark.parametrize("name", [".hid", "a/../../esc", ""])
def test_a_name_that_is_no_folders_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    sentence = _refused(run("--name", name))
    assert f"--name {name!r}: letters, digits, dots, dashes and underscores only" in sentence
    assert not (tmp_path / "out").exists()


def test_the_home_of_nobody_is_one_sentence(run: Run) -> None:
    assert "~nosuch/cache: " in _refused(run("--cache", "~nosuch/cache"))
    assert "~nosuch/text.txt: " in _refused(run("--data", "~nosuch/text.txt"))


@pytest.mark.parametrize("seed", [-1, 2**43 + 1, 10**30])
def test_a_seed_out_of_range_is_one_sentence(run: Run, seed: int) -> None:
    sentence = _refused(run("--set", f"training.seed={seed}"))
    assert "training.seed: Input should be " in sentence


def test_the_largest_seed_trains(run: Run) -> None:
    assert run("--set", f"training.seed={2**43}", "--set", "training.steps=2")[0] == 0
