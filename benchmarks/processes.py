"""Server processes: starting, waiting, stopping, and what they use, read from Linux's /proc."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
START_TIMEOUT_SECONDS = 120.0
STOP_TIMEOUT_SECONDS = 20.0
ANSWER_TIMEOUT_SECONDS = 60.0

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """A server does not start or does not answer; the message ends in what it logged."""


class ServerProcess:
    """A server that was started, with every process that it has started in turn.

    Args:
        process: leader of a session of its own, by which the others are found.
        port: where it listens.
        log: file with its output.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self._process = process
        self._log = log
        self.port = port

    @property
    def leader(self) -> int:
        """The process that was started."""
        return self._process.pid

    def pids(self) -> list[int]:
        """All its processes."""
        return [pid for pid, stat in _read_stats() if int(stat[3]) == self.leader]

    def cpu_seconds(self) -> float:
        """Processor time, in user and kernel mode, of all its processes so far."""
        return sum(
            sum(map(int, stat[11:15])) / _TICKS_PER_SECOND  # own, and of children that ended
            for _, stat in _read_stats()
            if int(stat[3]) == self.leader
        )

    def peak_memory_bytes(self) -> int:
        """Sum of the largest resident sizes of its processes; shared pages count for each."""
        return sum(_peak_resident_bytes(pid) for pid in self.pids())

    def pin(self, leader_cores: Sequence[int], other_cores: Sequence[int]) -> bool:
        """Give the leader and its children cores of their own.

        Returns:
            Whether there is more than one process; if not, the leader gets ``other_cores``.
        """
        others = [pid for pid in self.pids() if pid != self.leader]
        _set_affinity(self.leader, leader_cores if others else other_cores)
        for pid in others:
            _set_affinity(pid, other_cores)
        return bool(others)

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask once, with a body by POST, and return the answer's JSON.

        Raises:
            ServerError: the status is not 200.
            OSError: nobody listens.
        """
        connection = http.client.HTTPConnection(HOST, self.port, timeout=ANSWER_TIMEOUT_SECONDS)
        with contextlib.closing(connection):
            if body is None:
                connection.request("GET", path)
            else:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
        if response.status != 200:
            raise ServerError(f"status {response.status}: {content[:200]!r}")
        return json.loads(content)

    def wait_until_it_answers(self, path: str, body: Mapping[str, Any]) -> None:
        """Wait for the first answer with status 200.

        Raises:
            ServerError: it ended, or took too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException, ServerError, ValueError):
                self.ask(path, body)
                return
            time.sleep(0.1)
        raise ServerError(f"the server does not answer; it wrote:\n{self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Ask it to end, and end what is left of it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_SECONDS)
        # The session's id is not given away again while one of its processes lives.
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def running_server(
    command: Sequence[str], environment: Mapping[str, str], port: int, folder: Path = ROOT
) -> Iterator[ServerProcess]:
    """Start a server in a folder; stop it in the end.

    Args:
        command: the program and its arguments.
        environment: variables to set beside those that are set already.
        port: where it will listen.
        folder: the project's, of this checkout or another one.
    """
    settings = [f"{name}={value}" for name, value in environment.items()]
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["env", *settings, *command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = ServerProcess(process, port, log)
        try:
            yield server
        finally:
            server.stop()


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _read_stats() -> Iterator[tuple[int, list[str]]]:
    """Every process of the machine: its id and the fields of its ``stat`` behind the name."""
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(OSError):  # it has just ended
                # The name stands in parentheses and may hold anything.
                yield int(path.name), (path / "stat").read_text().rpartition(")")[2].split()


def _peak_resident_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _set_affinity(pid: int, cores: Sequence[int]) -> None:
    """Pin every thread of a process."""
    with contextlib.suppress(OSError):  # it has just ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


def busy_seconds(cores: Sequence[int]) -> float:
    """Time that processor cores have spent on anything since the machine started."""
    lines = Path("/proc/stat").read_text().splitlines()
    names = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in lines:
        name, *values = line.split()
        if name in names:
            # user nice system idle iowait irq softirq steal; guests are in user already.
            counts = list(map(int, values[:8]))
            ticks += sum(counts) - counts[3] - counts[4]
    return ticks / _TICKS_PER_SECOND
