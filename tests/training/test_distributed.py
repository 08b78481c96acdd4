"""Several processes: the shares they take, and whole runs of two by torch's own ``torchrun``."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import read_checkpoint
from tests.training.tiny_runs import FakeTask, MakeTrainer, equal, history
from training import distributed
from training.batches import Batch
from training.distributed import Processes, join_processes
from training.language_modelling import LanguageModelling
from training.preset import Preset
from training.resuming import RunError
from training.run import make_task, train

MakePreset = Callable[..., Preset]
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def _target_rows(batch: Batch | None) -> list[tuple[int, ...]]:
    if batch is None:
        return []
    lengths = batch.target_lengths.tolist()
    rows = zip(batch.targets.tolist(), lengths, strict=True)
    return [tuple(row[:length]) for row, length in rows]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shares_of_a_batch_of_pairs_are_the_batch(
    pairs_preset: MakePreset, tmp_path: Path, count: int
) -> None:
    preset = pairs_preset("training.batch_tokens=20")
    whole = make_task(preset, None, tmp_path, CPU)
    shares = [
        make_task(preset, None, tmp_path, CPU, processes=Processes(rank, count))
        for rank in range(count)
    ]
    of_each = [list(task.batches(3)) for task in shares]
    batches = list(whole.batches(3))
    assert {len(parts) for parts in of_each} == {len(batches)}
    sizes: set[int] = set()
    for batch, parts in zip(batches, zip(*of_each, strict=True), strict=True):
        dealt = [row for part in parts for row in _target_rows(part)]
        assert sorted(dealt) == sorted(_target_rows(batch))
        sizes.update(len(_target_rows(part)) for part in parts)
    assert (0 in sizes) == (count > 1), "the test must meet a batch of fewer pairs"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_shares_of_the_rows_are_the_rows(
    text_preset: MakePreset, tmp_path: Path, count: int
) -> None:
    whole = make_task(text_preset(), None, tmp_path, CPU)
    shares = [
        make_task(text_preset(), None, tmp_path, CPU, processes=Processes(rank, count))
        for rank in range(count)
    ]
    for batch, *parts in islice(
        zip(whole.batches(1), *(task.batches(1) for task in shares), strict=True), 3
    ):
        for place in (0, 1):
            assert torch.equal(torch.cat([part[place] for part in parts]), batch[place])
        assert {part[2] for part in parts} == {batch[2]}


def test_each_process_needs_a_row(text_preset: MakePreset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"6 processes need as many rows: raise training\.batch"):
        make_task(text_preset(), None, tmp_path, CPU, processes=Processes(5, 6))


def test_the_carried_state_of_a_share_is_that_of_its_rows(
    text_preset: MakePreset, tmp_path: Path
) -> None:
    preset = text_preset("model.dropout=0")
    states = []
    for processes in (Processes(), Processes(0, 2), Processes(1, 2)):
        torch.manual_seed(1)
        task = make_task(preset, None, tmp_path, CPU, processes=processes)
        assert isinstance(task, LanguageModelling)
        for batch in islice(task.batches(0), 3):
            task.loss(batch)
        states.append(task.carried())
    whole, *parts = states
    for layer, tensor in enumerate(whole):
        torch.testing.assert_close(torch.cat([part[layer] for part in parts]), tensor)


def test_without_torchrun_a_process_is_alone() -> None:
    with join_processes(CPU) as processes:
        assert processes == Processes(0, 1, CPU)
        assert processes.is_first
        processes.wait()
        assert processes.gather("a") == ["a"]
        assert processes.sum([0.1, 2]) == [0.1, 2]
        assert processes.agree_on_signal(None) is None
        assert processes.agree_on_signal(signal.SIGINT) is signal.SIGINT


def test_every_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "local_rank", lambda: 1)
    assert distributed._own_gpu(torch.device("cuda")) == torch.device("cuda:1")
    with pytest.raises(ValueError, match="cuda:0 is one GPU: under torchrun give --device cuda"):
        distributed._own_gpu(torch.device("cuda:0"))
    monkeypatch.setattr(distributed, "local_rank", lambda: 2)
    with pytest.raises(ValueError, match=r"more processes than GPUs \(2\)"):
        distributed._own_gpu(torch.device("cuda"))


@pytest.mark.usefixtures("no_pictures")
def test_dropout_needs_as_many_processes_as_before(make_trainer: MakeTrainer) -> None:
    for dropout, is_refused in ((0.5, True), (0.0, False)):
        record = {"model": {"dropout": dropout}}
        trainer = make_trainer(FakeTask(), f"run{dropout}", record=record)
        trainer.run(stop_after_steps=3)
        file = trainer.run_dir / "state.pt"
        state = torch.load(file, weights_only=True)
        assert state["random"].shape[0] == 1
        torch.save({**state, "random": state["random"].repeat(2, 1)}, file)
        if is_refused:
            with pytest.raises(RunError, match=r"other settings \(2 processes, whose dropout"):
                make_trainer(FakeTask(), f"run{dropout}", record=record)
        else:
            resumed = make_trainer(FakeTask(), f"run{dropout}", record=record)
            assert resumed.progress.step == 3


@pytest.mark.usefixtures("no_pictures")
def test_a_state_from_before_there_were_several_processes_is_resumed(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(FakeTask())
    trainer.run(stop_after_steps=3)
    file = trainer.run_dir / "state.pt"
    state = torch.load(file, weights_only=True)
    torch.save({**state, "random": state["random"][0], "cuda_random": []}, file)
    resumed = make_trainer(FakeTask())
    assert resumed.progress.step == 3
    assert torch.equal(torch.get_rng_state(), state["random"][0])


ALONE_UNDER_TORCHRUN = """
from pathlib import Path
import torch
from training.distributed import join_processes

with join_processes(torch.device("cpu")):
    torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())  # imports much of torch's own
for task in Path("/proc/self/task").iterdir():
    print((task / "comm").read_text().strip())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at threads under /proc")
def test_no_thread_of_gloo_is_left_behind() -> None:
    # One that frees a tensor while Python shuts down would abort the process.
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "alone"}
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    command = (sys.executable, "-c", ALONE_UNDER_TORCHRUN)
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    threads = result.stdout.split()
    assert threads
    assert not [name for name in threads if "gloo" in name or "pt_" in name], threads


# Whole runs of two processes. Starting Python and torch three times takes most of their time.


def _command(preset: Path, out: Path, *overrides: str, count: int = 2) -> list[str]:
    arguments = [part for override in overrides for part in ("--set", override)]
    command = [*TORCHRUN, str(count), "-m", "training", str(preset), *arguments]
    return [*command, "--out", str(out), "--device", "cpu", "--threads", "1"]


def _finish(process: "subprocess.Popen[str]") -> str:
    """What the processes printed; none of them hangs."""
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    return output


@contextmanager
def _started(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process


def _run(command: list[str]) -> str:
    with _started(command) as process:
        output = _finish(process)
    assert process.returncode == 0, output
    return output


def _state(folder: Path) -> Any:
    return torch.load(folder / "run" / "state.pt", weights_only=True)


def _children(process: "subprocess.Popen[str]") -> dict[int, int]:
    """Process ids by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes()
        except (OSError, IndexError):
            continue
        rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", environment)
        if parent == process.pid and rank:
            found[int(rank[1])] = int(folder.name)
    return found


def _wait_for_state(process: "subprocess.Popen[str]", folder: Path) -> None:
    while not (folder / "run" / "state.pt").exists():
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_two_processes_learn_what_one_learns(
    text_preset_file: Path,
    pairs_preset_file: Path,
    text_preset: MakePreset,
    pairs_preset: MakePreset,
    tmp_path: Path,
    kind: str,
) -> None:
    file = text_preset_file if kind == "text" else pairs_preset_file
    make = text_preset if kind == "text" else pairs_preset
    # Five rows: one process has two of them, the other three.
    overrides = ("model.dropout=0", "training.steps=24", "training.log_every_steps=1")
    output = _run(_command(file, tmp_path / "two", *overrides))
    two = tmp_path / "two" / file.stem
    assert output.count("wrote ") == output.count("by 2 processes") == 1, "the first alone speaks"
    one = train(
        *(file.stem, make(*overrides), tmp_path / "one"),
        cache_dir=tmp_path,
        device=CPU,
        show_progress=False,
    )
    _assert_learnt_the_same(two, one)


def _assert_learnt_the_same(two: Path, one: Path) -> None:
    """Two runs agree in all they measured and learnt, up to rounding."""
    rows, expected = history(two / "run"), history(one / "run")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    for name, tensor in _state(one)["model"].items():
        torch.testing.assert_close(_state(two)["model"][name], tensor, rtol=1e-3, atol=1e-5)
    assert _state(two)["progress"]["tokens"] == _state(one)["progress"]["tokens"]
    metrics, wanted = (read_checkpoint(folder).training.metrics for folder in (two, one))
    metrics["training_tokens_per_second"] = wanted["training_tokens_per_second"]
    assert metrics == pytest.approx(wanted, rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_nodes_learn_what_one_process_learns(
    pairs_preset_file: Path, pairs_preset: MakePreset, tmp_path: Path
) -> None:
    """As docs/training.md has it, but that both machines are this one.

    Splits are drawn at random: both must draw the same.
    """
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    overrides = (
        *("model.dropout=0", "training.log_every_steps=1", "training.subword_smoothing=0.3"),
        *("tokenizer.kind=sentencepiece", "tokenizer.vocabulary_size=300"),
        *("tokenizer.may_be_smaller=true", "data.max_tokens=100"),
    )
    command = _command(pairs_preset_file, tmp_path / "two", *overrides, count=1)
    place = command.index("--standalone")
    where = ["--nnodes=2", f"--rdzv-endpoint=localhost:{port}"]
    first_node, second_node = (
        [*command[:place], *where, f"--node-rank={rank}", *command[place + 1 :]] for rank in (0, 1)
    )
    with _started(first_node) as first, _started(second_node) as second:
        outputs = [_finish(first), _finish(second)]
    assert first.returncode == second.returncode == 0, outputs
    assert outputs[0].count("wrote ") == outputs[0].count("by 2 processes") == 1
    assert "wrote " not in outputs[1], "the first process alone writes"
    one = train(
        *("pairs", pairs_preset(*overrides), tmp_path / "one"),
        cache_dir=tmp_path,
        device=CPU,
        show_progress=False,
    )
    _assert_learnt_the_same(tmp_path / "two" / "pairs", one)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_go_on_after_a_kill_and_after_a_signal(
    text_preset_file: Path, tmp_path: Path
) -> None:
    # Long enough behind the first state for the kill and the signal to come in time.
    last = 300
    overrides = (f"training.steps={last}", "training.validate_every_steps=50")
    _run(_command(text_preset_file, tmp_path / "whole", *overrides))
    command = _command(text_preset_file, tmp_path / "parts", *overrides)
    folder = tmp_path / "parts" / "tiny"

    with _started(command) as process:
        _wait_for_state(process, folder)
        os.kill(_children(process)[0], signal.SIGKILL)
        output = _finish(process)
    assert process.returncode != 0
    assert "RuntimeError" not in output, "torchrun's own report is long enough"
    killed_at = _state(folder)["progress"]["step"]
    assert killed_at < last, "the test must kill in the middle of the run"

    # A signal to one process stops both of them after the same step.
    with _started(command) as process:
        # The history may be ahead of the state that the kill left.
        while _state(folder)["progress"]["step"] <= killed_at:
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.02)
        os.kill(_children(process)[1], signal.SIGTERM)
        output = _finish(process)
    stop = re.search(r"SIGTERM: stopped at step (\d+); give the same command to go on\n", output)
    assert stop, output
    assert int(stop[1]) == _state(folder)["progress"]["step"] < last

    assert _run(command).count("resuming at step") == 1
    whole = tmp_path / "whole" / "tiny"
    assert equal(_state(whole), _state(folder)), "weights, optimizer, dropout's random numbers"
    assert history(whole / "run") == history(folder / "run")
    weights = [(f / "model.safetensors").read_bytes() for f in (whole, folder)]
    assert weights[0] == weights[1]
    random = _state(folder)["random"]
    assert not torch.equal(random[0], random[1]), "each process drops other units out"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_signal_to_torchrun_saves_the_state(text_preset_file: Path, tmp_path: Path) -> None:
    command = _command(text_preset_file, tmp_path, "training.steps=100000")
    folder = tmp_path / "tiny"
    with _started(command) as process:
        _wait_for_state(process, folder)
        process.send_signal(signal.SIGINT)
        output = _finish(process)
    stop = re.search(r"SIGINT: stopped at step (\d+); give", output)
    assert stop, output
    assert int(stop[1]) == _state(folder)["progress"]["step"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_mishap_of_the_first_process_ends_all(pairs_preset_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # A folder in the place of the state, which only the first process writes.
    (out / "pairs" / "run" / "state.partial").mkdir(parents=True)
    with _started(_command(pairs_preset_file, out)) as process:
        output = _finish(process)
    assert process.returncode == 1
    assert "python -m training: " in output
    assert "state.pt: the run's state cannot be written" in output
    assert "RuntimeError" not in output
