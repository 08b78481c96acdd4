"""Whole corpora with Ray: lines/s of a core beside those of one process, and runs with kills.

Speeds are of the lines between a short and a long run, so that what it takes to start counts
for neither; it is told on its own. The two take turns.
"""

import argparse
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.corpus_runs import CorpusCommand, Run, run_with_kills, write_lines
from benchmarks.report import finish, markdown_table
from benchmarks.sentences import DEFAULT_SENTENCES


@dataclass(frozen=True)
class Speed:
    """Of one way to translate.

    Attributes:
        lines_per_second_per_core: between the short and the long run.
        start_seconds: what a run takes besides.
    """

    lines_per_second_per_core: float
    start_seconds: float


def speed_of(short: tuple[int, float], long: tuple[int, float], cores: int) -> Speed:
    """The speed from two runs.

    Args:
        short: lines and seconds.
        long: likewise.
        cores: that both had.
    """
    lines_per_second = (long[0] - short[0]) / (long[1] - short[1])
    return Speed(lines_per_second / cores, long[1] - long[0] / lines_per_second)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--checkpoints", type=Path, help="folder of checkpoints")
    parser.add_argument("--from", dest="source", default="en")
    parser.add_argument("--to", dest="target", default="fr")
    parser.add_argument("--beam-size", type=int, default=4)
    parser.add_argument(
        "--sentences", type=Path, default=DEFAULT_SENTENCES, help="a text, repeated as needed"
    )
    parser.add_argument("--lines", type=int, default=40_000, help="of the long run")
    parser.add_argument("--short-lines", type=int, default=8_000, help="of the short run")
    parser.add_argument("--shard-lines", type=int, default=2_000)
    parser.add_argument("--workers", type=int, help="of Ray (default: one for each core)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--kill",
        action="store_true",
        help="instead, kill a worker and then the command on the way through the lines, and hold "
        "the translation against that of one process",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, or kill; print a table and a line of JSON."""
    options = ["--from", arguments.source, "--to", arguments.target]
    options += ["--beam-size", str(arguments.beam_size)]
    if arguments.checkpoints:
        options += ["--checkpoints", str(arguments.checkpoints.resolve())]
    workers = arguments.workers or len(os.sched_getaffinity(0))
    command = CorpusCommand(tuple(options), workers, arguments.shard_lines)
    text = arguments.sentences.read_text(encoding="utf-8")
    sentences = [line for line in text.split("\n") if line.strip()]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.kill:
            return _kill(command, sentences, arguments.lines, Path(folder))
        return _measure(command, sentences, arguments, Path(folder))


def _kill(command: CorpusCommand, sentences: list[str], lines: int, folder: Path) -> int:
    source, out = folder / "lines.txt", folder / "out"
    write_lines(sentences, lines, source)
    kills = run_with_kills(command, source, out, -(-lines // command.shard_lines))
    expected = folder / "expected"
    single_seconds = command.single(source, expected)
    is_same = expected.read_bytes() == (out / source.name).read_bytes()
    print(
        f"{lines:,} lines in shards of {command.shard_lines:,}: a worker was killed when "
        f"{kills.shards_at_worker_kill:,} shards were done, the command when "
        f"{kills.shards_at_command_kill:,} were; the translation is "
        f"{'byte for byte' if is_same else 'NOT'} that of one process"
    )
    figures = {"lines": lines, "workers": command.workers, "is_same": is_same, **asdict(kills)}
    finish("corpus-kill", {**figures, "single_seconds": single_seconds})
    return 0 if is_same else 1


def _measure(
    command: CorpusCommand, sentences: list[str], arguments: argparse.Namespace, folder: Path
) -> int:
    sizes = (arguments.short_lines, arguments.lines)
    for lines in sizes:
        write_lines(sentences, lines, folder / f"{lines}.txt")
    ways: dict[str, tuple[Run, int]] = {
        "one process": (command.single, 1),
        "Ray": (command.ray, command.workers),
    }
    speeds: dict[str, list[Speed]] = {name: [] for name in ways}
    differing = 0
    for number in range(arguments.rounds):
        outputs = []
        for name, (way, cores) in ways.items():
            seconds = []
            for lines in sizes:
                target = folder / f"{name}-{lines}-{number}"
                seconds.append(way(folder / f"{lines}.txt", target))
                print(f"{name}: {lines:,} lines in {seconds[-1]:.1f} s", file=sys.stderr)
            outputs.append(target.read_bytes())
            runs = list(zip(sizes, seconds, strict=True))
            speeds[name].append(speed_of(runs[0], runs[1], cores))
        differing += outputs[0] != outputs[1]
    return _report(command, speeds, sizes, differing)


def _report(
    command: CorpusCommand, speeds: dict[str, list[Speed]], sizes: tuple[int, int], differing: int
) -> int:
    middle = {
        name: Speed(
            statistics.median(one.lines_per_second_per_core for one in found),
            statistics.median(one.start_seconds for one in found),
        )
        for name, found in speeds.items()
    }
    single, ray = middle.values()
    ratio = ray.lines_per_second_per_core / single.lines_per_second_per_core
    rows = [
        (name, f"{speed.lines_per_second_per_core:.1f}", f"{speed.start_seconds:.1f}")
        for name, speed in middle.items()
    ]
    print(markdown_table(("", "lines/s of a core", "seconds to start"), rows))
    print(f"\nRay has {ratio:.2f} of one process's speed of a core")
    finish(
        "corpus",
        {
            "lines": sizes,
            "workers": command.workers,
            "ratio": ratio,
            "outputs_that_differ": differing,
            "speeds": {name: list(map(asdict, found)) for name, found in speeds.items()},
        },
    )
    return 1 if differing else 0
