"""Runs of ``gatehouse translate`` over one file, by one process or by Ray, for the benchmark."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from benchmarks.processes import ROOT

Run = Callable[[Path, Path], float]
"""A run: from the file of lines to its translation; the seconds that it took."""


def write_lines(sentences: Sequence[str], lines: int, file: Path) -> None:
    """Write so many lines, the sentences over and over."""
    file.write_text("".join(f"{line}\n" for line in islice(cycle(sentences), lines)))


@dataclass(frozen=True)
class CorpusCommand:
    """What all runs have in common.

    Attributes:
        options: of ``gatehouse translate``: languages, model, beam size.
        workers: of Ray.
        shard_lines: of Ray.
    """

    options: tuple[str, ...]
    workers: int
    shard_lines: int

    def single(self, source: Path, target: Path) -> float:
        """One process on one core; the seconds that it took."""
        cores = sorted(os.sched_getaffinity(0))[:1]
        with source.open("rb") as lines, target.open("wb") as output, on_cores(cores):
            started_at = time.monotonic()
            subprocess.run(
                ["env", "GATEHOUSE_NUM_THREADS=1", *self._words()],
                cwd=ROOT,
                stdin=lines,
                stdout=output,
                check=True,
            )
        return time.monotonic() - started_at

    def ray(self, source: Path, target: Path) -> float:
        """Ray on as many cores as it has workers; the seconds that it took."""
        cores = sorted(os.sched_getaffinity(0))[: self.workers]
        with on_cores(cores):
            started_at = time.monotonic()
            with self.started(source, target.parent / f"{target.name}-ray") as process:
                status = process.wait()
        seconds = time.monotonic() - started_at
        if status:
            raise SystemExit("gatehouse translate --ray failed")
        (target.parent / f"{target.name}-ray" / source.name).replace(target)
        return seconds

    @contextmanager
    def started(self, source: Path, out: Path) -> Iterator["subprocess.Popen[bytes]"]:
        """A run of Ray that goes on meanwhile, and is killed at the end if it does then."""
        with subprocess.Popen(self.ray_words(source, out), cwd=ROOT, stdout=sys.stderr) as process:
            try:
                yield process
            finally:
                process.kill()

    def ray_words(self, source: Path, out: Path) -> list[str]:
        """The command line of a run of Ray."""
        sizes = ["--workers", str(self.workers), "--shard-lines", str(self.shard_lines)]
        return [*self._words(), "--ray", str(source), "--out", str(out), *sizes]

    def _words(self) -> list[str]:
        return [sys.executable, "-m", "app.cli", "translate", *self.options]


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Have what is started meanwhile run on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def descendants(process: int) -> dict[int, str]:
    """Titles of the processes that a process has started, and of those that these have."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            titles[int(folder.name)] = (folder / "cmdline").read_text().split("\0")[0]
        except OSError:  # it has ended meanwhile
            continue
        parents[int(folder.name)] = int(stat[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return {one: titles.get(one, "") for one in found[1:]}


def ray_workers(process: int) -> list[int]:
    """The workers of a run of Ray that translate."""
    titles = descendants(process)
    return [one for one, title in titles.items() if title.startswith("ray::MapWorker")]


@dataclass(frozen=True)
class Kills:
    """What was killed on the way.

    Attributes:
        shards_at_worker_kill: shards that were done when a worker was killed.
        shards_at_command_kill: shards that were done when the command was killed, with all of
            Ray's processes.
        seconds: of both starts together.
    """

    shards_at_worker_kill: int
    shards_at_command_kill: int
    seconds: float


def run_with_kills(command: CorpusCommand, source: Path, out: Path, shards: int) -> Kills:
    """Kill a worker after a third of the shards, the command after two, and start it again.

    Raises:
        SystemExit: the command failed, or was done too early.
    """
    results = out / ".gatehouse" / "shards"

    def done() -> int:
        return sum(not file.suffix for file in results.glob("*"))

    started_at = time.monotonic()
    with command.started(source, out) as process:
        at_worker_kill = _wait(lambda: done() >= shards // 3, done, process)
        os.kill(ray_workers(process.pid)[0], signal.SIGKILL)
        at_command_kill = _wait(lambda: done() >= 2 * shards // 3, done, process)
        process.kill()
    with command.started(source, out) as process:
        if process.wait():
            raise SystemExit("gatehouse translate --ray failed after it had been killed")
    return Kills(at_worker_kill, at_command_kill, time.monotonic() - started_at)


def _wait(
    is_time: Callable[[], bool], done: Callable[[], int], process: "subprocess.Popen[bytes]"
) -> int:
    while not is_time():
        if process.poll() is not None:
            raise SystemExit("gatehouse translate --ray ended before it was killed")
        time.sleep(0.05)
    return done()
