"""A service under stress: how it is started, and what its processes hold."""

import contextlib
import re
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import HOST, ROOT, ServerProcess, free_port, running_server

ENDED = ("finished", "failed", "cancelled")


@dataclass(frozen=True)
class Holdings:
    """What the processes of a service hold at one moment.

    Attributes:
        resident_bytes: resident memory of all of them; shared pages count for each.
        files: open file descriptors of all of them.
        threads: threads of all of them.
    """

    resident_bytes: int
    files: int
    threads: int


@contextlib.contextmanager
def running_service(
    checkpoints: Path,
    settings: Mapping[str, str],
    probe: Mapping[str, object],
    path: str,
    folder: Path = ROOT,
) -> Iterator[ServerProcess]:
    """Serve checkpoints on the CPU until the block ends.

    Args:
        checkpoints: the folder.
        settings: environment variables.
        probe: body that is answered once the service is ready.
        path: of the probe.
        folder: the checkout whose code serves.
    """
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--host", HOST, "--port", str(port)]
    command += ["--device", "cpu", "--checkpoints", str(checkpoints)]
    # Before the installed project, which is this checkout.
    settings = {**settings, "PYTHONPATH": str(folder)}
    with running_server(command, settings, port, folder) as server:
        server.wait_until_it_answers(path, probe)
        yield server


def holdings(server: ServerProcess) -> Holdings:
    """What the service holds now."""
    resident = files = threads = 0
    for pid in server.pids():
        with contextlib.suppress(OSError):  # it has just ended
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            resident += _field(status, "VmRSS") * 1024
            threads += _field(status, "Threads")
            files += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Holdings(resident, files, threads)


def _field(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else 0


def metric(server: ServerProcess, name: str) -> float:
    """Sum of a metric's samples."""
    with urllib.request.urlopen(f"http://{HOST}:{server.port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if re.match(rf"{name}[ {{]", line)]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def is_idle(server: ServerProcess) -> bool:
    """Whether nothing waits, runs, or has rows."""
    names = ("queue_depth", "texts_running", "rows_running")
    return not any(metric(server, f"gatehouse_{name}") for name in names)


def books_balance(server: ServerProcess) -> bool:
    """Whether every text that an idle service ever accepted has ended."""
    ended = sum(metric(server, f"gatehouse_texts_{how}_total") for how in ENDED)
    return ended == metric(server, "gatehouse_texts_accepted_total")
