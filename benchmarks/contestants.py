"""The servers that are compared: how each is started, asked and understood."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GATEHOUSE = "gatehouse"
PEERS = ("plain", "litserve", "mosec")
PATH = "/translate"


@dataclass(frozen=True)
class Setup:
    """What is the same for every server.

    Attributes:
        checkpoint: folder of the translation model.
        beam_size: 1 is greedy.
        cores: processor cores that server and load generator share.
        workers: model processes of the peers that batch, which share out the cores' threads;
            None leaves both a single one and one for each core to be tried.
    """

    checkpoint: Path
    beam_size: int
    cores: int
    workers: int | None = None


@dataclass(frozen=True)
class Contestant:
    """One server.

    Attributes:
        name: what people call it.
        system: ``gatehouse`` or one of :data:`PEERS`.
        precision: what the model computes in.
        command: how to start it, without the port.
        environment: variables to set.
        fields: of each request, beside the text.
        workers: processes that hold the model.
    """

    name: str
    system: str
    precision: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1

    def body(self, text: str) -> dict[str, Any]:
        """The body of a request."""
        return {"text": text, **self.fields}

    def translation(self, answer: Any) -> str:
        """The translated text in an answer."""
        best = answer["translations"][0] if self.system == GATEHOUSE else answer
        text: str = best["text"]
        return text


def all_contestants(setup: Setup) -> dict[str, list[Contestant]]:
    """Every server that can be named, in the order of the table, in all its arrangements."""
    found = [[gatehouse(setup, precision)] for precision in ("auto", "float32", "bfloat16")]
    for system in PEERS:
        for precision in ("float32", "bfloat16"):
            numbers = _numbers_of_workers(setup, system)
            found.append([_peer(setup, system, precision, workers) for workers in numbers])
    return {arrangements[0].name: arrangements for arrangements in found}


def gatehouse(setup: Setup, precision: str, num_threads: int | None = None) -> Contestant:
    """Gatehouse as ``gatehouse serve`` starts it, but for the precision and the threads."""
    name = GATEHOUSE if precision == "auto" else f"{GATEHOUSE}-{precision}"
    environment = {
        "GATEHOUSE_CHECKPOINTS_DIR": str(setup.checkpoint),
        "GATEHOUSE_LOG_LEVEL": "warning",
        "GATEHOUSE_PRECISION": precision,
    }
    if num_threads is not None:
        environment["GATEHOUSE_NUM_THREADS"] = str(num_threads)
    command = (sys.executable, "-m", "app.cli", "serve")
    fields = {"beam_size": setup.beam_size}
    return Contestant(name, GATEHOUSE, precision, command, environment, fields)


def _numbers_of_workers(setup: Setup, system: str) -> list[int]:
    if system == "plain":
        return [1]  # it decodes one request at a time, with every core there is
    if setup.workers is not None:
        return [setup.workers]
    return sorted({1, setup.cores})


def _peer(setup: Setup, system: str, precision: str, workers: int) -> Contestant:
    command = [sys.executable, "-m", f"benchmarks.peers.{system}_server"]
    command += ["--checkpoint", str(setup.checkpoint), "--precision", precision]
    command += ["--beam", str(setup.beam_size), "--workers", str(workers)]
    command += ["--threads", str(max(setup.cores // workers, 1))]
    if system == "mosec":
        command += ["--address", "127.0.0.1", "--timeout", "60000", "--log-level", "warning"]
    name = f"{system}-{precision}"
    return Contestant(name, system, precision, tuple(command), workers=workers)
