"""Requests of several kinds to one version of the service or more, alive at once, asked by turns.

Where neighbours change a machine's speed from minute to minute, two runs one after the other say
little. Here every load goes to one checkout after the other, each the first in turn, and what
counts is the median over the rounds of how they compare within one.

All generated texts have the same short prompt, whose state is known after the first.
"""

import argparse
import contextlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import Outcome, Plan, send_load
from benchmarks.processes import HOST, ROOT, ServerProcess
from benchmarks.report import finish, markdown_table
from benchmarks.saturation import percentile
from benchmarks.sentences import DEFAULT_SENTENCES
from benchmarks.service_process import running_service

PROMPT = "The time traveller"
CHARACTERS = 100
"""Of each generated text."""
BODIES = 500
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}
KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "translate": ("/translate", {"model": "en-fr", "beam_size": 1}),
    "beam": ("/translate", {"model": "en-fr", "beam_size": 4}),
    "greedy": ("/generate", {"temperature": 0.0}),
    "sample": ("/generate", SAMPLED),
    "penalty": ("/generate", {**SAMPLED, "repetition_penalty": 1.2}),
    "stream": ("/generate", {**SAMPLED, "stream": True}),
}
"""Where a request goes, and what stands in it besides its text."""
LOADS = ("translate:1", "translate:64", "beam:16", "sample:1", "sample:16", "stream:1", "stream:16")
LEAD_IN_SECONDS = 0.5


@dataclass(frozen=True)
class Load:
    """Requests of one kind.

    Attributes:
        kind: one of :data:`KINDS`.
        connections: clients that each wait for their answer; 0 for an open loop.
        rate: requests/s of the open loop.
    """

    kind: str
    connections: int
    rate: float

    @staticmethod
    def parse(word: str) -> "Load":
        """KIND:CONNECTIONS, or KIND:RATE/s.

        Raises:
            argparse.ArgumentTypeError: it is neither.
        """
        kind, _, amount = word.partition(":")
        try:
            if amount.endswith("/s"):
                load = Load(kind, 0, float(amount.removesuffix("/s")))
            else:
                load = Load(kind, int(amount), 0.0)
            if kind not in KINDS or max(load.connections, load.rate) <= 0:
                raise ValueError
        except ValueError:
            kinds = ", ".join(KINDS)
            message = f"{word!r} is no KIND:CONNECTIONS or KIND:RATE/s; kinds are {kinds}"
            raise argparse.ArgumentTypeError(message) from None
        return load

    def __str__(self) -> str:
        amount = f"{self.connections}" if self.connections else f"{self.rate:g}/s"
        return f"{self.kind}:{amount}"

    def bodies(self, sentences: Sequence[str]) -> list[str]:
        """What to draw from."""
        path, options = KINDS[self.kind]
        if path == "/translate":
            return [json.dumps({"text": sentence, **options}) for sentence in sentences]
        text = {"model": "timemachine-gru", "prompt": PROMPT, "max_new_tokens": CHARACTERS}
        return [json.dumps({**text, **options, "seed": seed}) for seed in range(BODIES)]


@dataclass(frozen=True)
class Sample:
    """What one load brought, in one round.

    Attributes:
        answers_per_second: with status 200.
        p50_ms: of the whole answers' latencies, as the next.
        p97_ms: for an open loop from the moment when a request was due.
        first_ms: the median time until an answer began.
        failures: requests without such an answer.
    """

    answers_per_second: float
    p50_ms: float
    p97_ms: float
    first_ms: float
    failures: int

    @staticmethod
    def of(outcome: Outcome) -> "Sample":
        """From what the generator says."""
        latencies = sorted(outcome.latencies_ms) or [0.0]
        return Sample(
            outcome.answered / outcome.seconds,
            percentile(latencies, 0.5),
            percentile(latencies, 0.97),
            percentile(sorted(outcome.begun_after_ms) or [0.0], 0.5),
            sum(outcome.failures.values()),
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "--checkouts", nargs="+", type=Path, default=[ROOT], metavar="DIR",
        help="folders with the project, to be compared with the first (default: this one)",
    )  # fmt: skip
    parser.add_argument(
        "--loads", nargs="+", type=Load.parse, default=[Load.parse(word) for word in LOADS],
        metavar="KIND:AMOUNT",
        help=f"kinds: {', '.join(KINDS)}; amounts: connections, or requests per second as N/s "
        f"(default: {' '.join(LOADS)})",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, default=6, help="a multiple of the number of checkouts is fair"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of one load in one round")
    parser.add_argument(
        "--pin", action="store_true", help="the engine alone on the machine's first core"
    )
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "checkpoints")
    parser.add_argument("--sentences", type=Path, default=DEFAULT_SENTENCES)


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print.

    Returns:
        0, or 1 where requests failed.
    """
    lines = arguments.sentences.read_text(encoding="utf-8").splitlines()
    sentences = [line for line in lines if line]
    folders = [folder.resolve() for folder in arguments.checkouts]
    settings = {"GATEHOUSE_LOG_LEVEL": "warning"}
    if arguments.pin:
        settings["GATEHOUSE_NUM_THREADS"] = "1"
    load: Load = arguments.loads[0]
    path, _ = KINDS[load.kind]
    # A stream is no JSON; whatever the service can do, it can do a first step.
    probe = {**json.loads(load.bodies(sentences)[0]), "stream": False}
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                running_service(arguments.checkpoints, settings, probe, path, folder)
            )
            for folder in folders
        ]
        if arguments.pin:
            for server in servers:
                server.pin([1], [0])
        samples = _measure(servers, sentences, arguments)
    records = [
        record(str(one), str(folder), own, every[0])
        for one, every in zip(arguments.loads, samples, strict=True)
        for folder, own in zip(folders, every, strict=True)
    ]
    print(table(records), end="\n\n")
    finish("checkouts", {"rounds": arguments.rounds, "pinned": arguments.pin, "records": records})
    return 1 if any(each["failures"] for each in records) else 0


def _measure(
    servers: Sequence[ServerProcess], sentences: Sequence[str], arguments: argparse.Namespace
) -> list[list[list[Sample]]]:
    """Of each load, of each server, a sample from each round."""
    samples: list[list[list[Sample]]] = [[[] for _ in servers] for _ in arguments.loads]
    for turn in range(-1, arguments.rounds):
        for place_of_load, (load, every) in enumerate(zip(arguments.loads, samples, strict=True)):
            plan = {
                "path": KINDS[load.kind][0],
                "bodies": load.bodies(sentences),
                "seconds": arguments.seconds,
                "rate": load.rate,
                "lead_in_seconds": LEAD_IN_SECONDS,
                "seed": turn + 2,
                "cores": [1] if arguments.pin else [],
            }
            if load.connections:
                plan["connections"] = load.connections
            for step in range(len(servers)):
                place = (turn + place_of_load + step) % len(servers)
                outcome = send_load(Plan(host=HOST, port=servers[place].port, **plan))
                if turn >= 0:  # before, everything has happened once
                    every[place].append(Sample.of(outcome))
    return samples


def record(
    load: str, checkout: str, own: Sequence[Sample], first: Sequence[Sample]
) -> dict[str, Any]:
    """Medians over the rounds, and of the ratios to the first checkout in the same round."""

    def median(name: str) -> float:
        values: list[float] = [getattr(sample, name) for sample in own]
        return statistics.median(values)

    def ratio(name: str) -> float | None:
        pairs = ((getattr(a, name), getattr(b, name)) for a, b in zip(own, first, strict=True))
        ratios = [mine / theirs for mine, theirs in pairs if theirs]
        return round(statistics.median(ratios), 3) if ratios else None

    return {
        "load": load,
        "checkout": checkout,
        "answers_per_second": round(median("answers_per_second"), 1),
        "p50_ms": round(median("p50_ms"), 1),
        "p97_ms": round(median("p97_ms"), 1),
        "first_ms": round(median("first_ms"), 1),
        "answers_ratio": ratio("answers_per_second"),
        "p50_ratio": ratio("p50_ms"),
        "failures": sum(sample.failures for sample in own),
    }


HEADER = (
    "load", "checkout", "answers/s", "ratio", "p50, ms", "ratio", "p97, ms", "answer begins, ms",
    "failures",
)  # fmt: skip


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The figures for people."""
    rows = [
        [
            each["load"], Path(each["checkout"]).name, f"{each['answers_per_second']:.1f}",
            f"{each['answers_ratio']}", f"{each['p50_ms']:.1f}", f"{each['p50_ratio']}",
            f"{each['p97_ms']:.1f}", f"{each['first_ms']:.1f}", f"{each['failures']}",
        ]
        for each in records
    ]  # fmt: skip
    return markdown_table(HEADER, rows)
