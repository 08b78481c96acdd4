"""The int8 kernels beside what PyTorch has: products of single layers, and a layer of GRU cells.

One thread, the median of many calls, each of which rounds its rows anew where it computes in
int8. *packed* is oneDNN's kernel behind ``torch.ops.onednn.qlinear_pointwise``, *plain* is
``torch._int_mm``, both of rows that are rounded already and without a scale for each row, so they
do less; a plain product of more than some terms is exact on some processors only.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from benchmarks.report import finish, markdown_table
from models.cells import GRUCell
from models.quantization import Int8Cell, Int8Linear

WEIGHTS = ((768, 256), (1536, 512), (8000, 256), (8000, 512))
"""Outputs and inputs: cells of 256 and 512, a vocabulary of 8,000."""
ROWS = (1, 8, 64, 256)
LAYERS = ((256, 1), (256, 12), (512, 64))
"""Hidden size, and rows that run over :data:`POSITIONS`."""
POSITIONS = 10


@dataclass(frozen=True)
class Record:
    """One line of the table.

    Attributes:
        work: what is computed.
        rows: in the batch.
        microseconds: by who computes.
    """

    work: str
    rows: int
    microseconds: dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmark's options."""
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure (0.3)")


def run(arguments: argparse.Namespace) -> int:
    """Measure everything and print the table.

    Returns:
        The exit status.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        records = [
            measure(f"{outputs} x {inputs}", rows, products(outputs, inputs, rows), arguments)
            for outputs, inputs in WEIGHTS
            for rows in ROWS
        ]
        records += [
            measure(f"GRU {size}, {POSITIONS} positions", rows, layers(size, rows), arguments)
            for size, rows in LAYERS
        ]
    report(records)
    return 0


def products(outputs: int, inputs: int, rows: int) -> dict[str, Callable[[], object]]:
    """Who computes a linear layer, by name."""
    linear, batch = nn.Linear(inputs, outputs), torch.randn(rows, inputs)
    kernel = Int8Linear(linear.weight, linear.bias)
    half, half_batch = linear.weight.bfloat16(), batch.bfloat16()
    integers = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(integers, None)
    scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32)
    unsigned = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8)
    transposed, signed = integers.t(), unsigned.view(torch.int8)

    def by_packed() -> Tensor:
        product: Tensor = torch.ops.onednn.qlinear_pointwise.default(
            unsigned, 1.0, 128, packed, scales, zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product

    return {
        "gatehouse": lambda: kernel(batch),
        "packed": by_packed,
        "plain": lambda: torch._int_mm(signed, transposed),
        "float32": lambda: linear(batch),
        "bfloat16": lambda: torch.nn.functional.linear(half_batch, half),
    }


def layers(size: int, rows: int) -> dict[str, Callable[[], object]]:
    """Who computes a layer of GRU cells over whole sequences, by name."""
    theirs = nn.GRU(size, size, batch_first=True)
    sequences = torch.randn(rows, POSITIONS, size)
    half, half_sequences = nn.GRU(size, size, batch_first=True).bfloat16(), sequences.bfloat16()
    cell = Int8Cell(GRUCell(size, size))
    packed = sequences.transpose(0, 1).reshape(-1, size)
    start = cell.initial_state(rows)
    return {
        "gatehouse": lambda: cell.run(cell.project(packed), [rows] * POSITIONS, start),
        "float32": lambda: theirs(sequences),
        "bfloat16": lambda: half(half_sequences),
    }


def measure(
    work: str, rows: int, contestants: dict[str, Callable[[], object]], given: argparse.Namespace
) -> Record:
    """One line's figures; the contestants take turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for call in contestants.values():
        call()
    end = time.perf_counter() + given.seconds * len(contestants)
    while time.perf_counter() < end:
        for name, call in contestants.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return Record(work, rows, {name: 1e6 * statistics.median(t) for name, t in times.items()})


def report(records: Sequence[Record]) -> None:
    """Print the table and the line of JSON."""
    names = list(records[0].microseconds)
    table = [
        [
            record.work,
            str(record.rows),
            *(f"{record.microseconds[n]:.0f}" if n in record.microseconds else "-" for n in names),
        ]
        for record in records
    ]
    print(markdown_table(["layer", "rows", *(f"{name}, µs" for name in names)], table))
    finish("kernels", {"records": [asdict(record) for record in records]})
