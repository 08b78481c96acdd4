"""What a model needs: memory by rows, and tokens a second by rows, one thread.

Each model is loaded in a process of its own, which then keeps so many rows busy with real
sentences, as :mod:`benchmarks.decode` does, greedy. *libraries* is the process before it loads
anything; *loaded* and *with N rows* come on top of that. Sizes are resident memory; the largest
that it was, for the rows.
"""

import argparse
import multiprocessing
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.decode import SENTENCES, Drive
from benchmarks.report import finish, markdown_table
from benchmarks.subjects import all_subjects
from models.precision import Precision, choose_precision, set_precision

ROWS = (16, 64, 256)


@dataclass
class Record:
    """What one model needs in one precision.

    Attributes:
        model: its name.
        precision: what it computes in.
        libraries_mb: of the process before anything is loaded.
        loaded_mb: on top of that, with the weights in place.
        rows_mb: on top of that at most, by rows.
        tokens_per_second: by rows.
    """

    model: str
    precision: str
    libraries_mb: float
    loaded_mb: float = 0.0
    rows_mb: dict[int, float] = field(default_factory=dict)
    tokens_per_second: dict[int, float] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmark's options."""
    parser.add_argument("--precisions", nargs="+", default=["int8"])
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement (3)")


def run(arguments: argparse.Namespace) -> int:
    """Measure every shipped model and print the table.

    Returns:
        The exit status.
    """
    names = [subject.name for subject in all_subjects(_sentences())]
    context = multiprocessing.get_context("spawn")
    records = []
    for name in names:
        for asked in arguments.precisions:
            precision = choose_precision(asked, torch.device("cpu"))
            with context.Pool(1) as pool:
                records.append(pool.apply(measure, (name, precision, arguments.seconds)))
    report(records)
    return 0


def measure(name: str, precision: Precision, seconds: float) -> Record:
    """One model's needs; to be called in a process of its own."""
    torch.set_num_threads(1)
    torch.ones(64, 64) @ torch.ones(64, 64)  # loads what torch loads at first use
    subject = next(s for s in all_subjects(_sentences()) if s.name == name)
    record = Record(name, precision, _resident_mb())
    with torch.inference_mode():
        model = set_precision(subject.build(), precision)
        record.loaded_mb = _resident_mb() - record.libraries_mb
        for rows in ROWS:
            drive = Drive(model, subject.tasks(1), rows, 1, torch.device("cpu"))
            drive.warm_up(3 * seconds)
            tally = drive.run(seconds)
            record.tokens_per_second[rows] = tally.tokens / tally.seconds
            record.rows_mb[rows] = _peak_mb() - record.libraries_mb - record.loaded_mb
    return record


def report(records: Sequence[Record]) -> None:
    """Print the table and the line of JSON."""
    header = ["model", "precision", "libraries, MB", "loaded, MB"]
    header += [f"with {rows} rows, MB" for rows in ROWS]
    header += [f"tokens/s, {rows} rows" for rows in ROWS]
    table = [
        [
            record.model,
            record.precision,
            f"{record.libraries_mb:.0f}",
            f"{record.loaded_mb:.0f}",
            *(f"{record.rows_mb[rows]:.0f}" for rows in ROWS),
            *(f"{record.tokens_per_second[rows]:,.0f}" for rows in ROWS),
        ]
        for record in records
    ]
    print(markdown_table(header, table))
    finish("sizing", {"records": [asdict(record) for record in records]})


def _sentences() -> list[str]:
    return SENTENCES.read_text(encoding="utf-8").splitlines()


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def _peak_mb() -> float:
    """The most that was ever resident, in megabytes; Linux tells kibibytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
