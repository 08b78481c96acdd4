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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.load import Outcome, Plan, send_load
from benchmarks.processes import HOST, ROOT, ServerProcess
from benchmarks.report import finish, markdown_table
from benchmarks.saturation import Measurement, percentile, summarise
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


class Sample(NamedTuple):
    """What one load brought, in one round.

    Attributes:
        measurement: of the whole answers.
        first_ms: the median time until an answer began.
    """

    measurement: Measurement
    first_ms: float

    @staticmethod
    def of(load: Load, outcome: Outcome) -> "Sample":
        """From what the generator says."""
        failed, begun = sum(outcome.failures.values()), sorted(outcome.begun_after_ms)
        measurement = summarise(
            load.rate, outcome.latencies_ms, failed, outcome.answered, outcome.seconds
        )
        return Sample(measurement, percentile(begun, 0.5))


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
    load: Load = arguments.loads[0]
    path, _ = KINDS[load.kind]
    # A stream is no JSON; whatever the service can do, it can do a first step.
    probe = {**json.loads(load.bodies(sentences)[0]), "stream": False}
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                running_service(ROOT / "checkpoints", settings, probe, path, folder)
            )
            for folder in folders
        ]
        samples = _measure(servers, sentences, arguments)
    records = [
        record(str(one), str(folder), own, every[0])
        for one, every in zip(arguments.loads, samples, strict=True)
        for folder, own in zip(folders, every, strict=True)
    ]
    print(table(records), end="\n\n")
    finish("checkouts", {"rounds": arguments.rounds, "records": records})
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
            }
            if load.connections:
                plan["connections"] = load.connections
            for step in range(len(servers)):
                place = (turn + place_of_load + step) % len(servers)
                outcome = send_load(Plan(host=HOST, port=servers[place].port, **plan))
                if turn >= 0:  # before, everything has happened once
                    every[place].append(Sample.of(load, outcome))
    return samples


def record(
    load: str, checkout: str, own: Sequence[Sample], first: Sequence[Sample]
) -> dict[str, Any]:
    """Medians over the rounds, and of the ratios to the first checkout in the same round."""

    def median(figure: Callable[[Sample], float]) -> float:
        return round(statistics.median(map(figure, own)), 1)

    def ratio(figure: Callable[[Sample], float]) -> float | None:
        pairs = [(figure(mine), figure(theirs)) for mine, theirs in zip(own, first, strict=True)]
        ratios = [mine / theirs for mine, theirs in pairs if theirs]
        return round(statistics.median(ratios), 3) if ratios else None

    return {
        "load": load,
        "checkout": checkout,
        "answers_per_second": median(lambda sample: sample.measurement.goodput),
        "p50_ms": median(lambda sample: sample.measurement.p50_ms),
        "p97_ms": median(lambda sample: sample.measurement.p97_ms),
        "first_ms": median(lambda sample: sample.first_ms),
        "answers_ratio": ratio(lambda sample: sample.measurement.goodput),
        "p50_ratio": ratio(lambda sample: sample.measurement.p50_ms),
        "failures": sum(sample.measurement.failed for sample in own),
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
