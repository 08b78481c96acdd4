"""One decoding step by those who could compute it: eager, compiled, ONNX Runtime, int8.

The fixed model (two GRU layers of 512 over 8,000 tokens), one thread, no reading and no choice of
tokens. *steps for a new shape* is what the first step with a number of rows that was not seen
before costs, which a batch that grows and shrinks at every step pays again and again. *same
alone* counts the rows, of 64, whose logits have the same bits when they are computed alone: a
service that promises the same answer at any load needs all of them.

ONNX Runtime takes part where it is installed (``pip install onnx onnxscript onnxruntime``): it
is no requirement of Gatehouse.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.report import finish, markdown_table
from benchmarks.subjects import FIXED_CONFIG
from models.language_model import LanguageModel
from models.precision import Precision, set_precision
from models.state import DecodeState

ROWS = (1, 8, 64)
NEW_SHAPE_ROWS = 23
"""Not among :data:`ROWS`."""

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Tokens ``[N]`` int64 and states ``[2, N, 512]`` to logits ``[N, 8000]`` and states."""


@dataclass(frozen=True)
class Record:
    """One line of the table.

    Attributes:
        name: who computes.
        step_ms: by rows, the median.
        first_seconds: until the first step was done: compiling, exporting, planning.
        new_shape_ms: the first step with a number of rows that was not seen before.
        same_alone: rows, of 64, whose logits are the same bits when computed alone.
    """

    name: str
    step_ms: dict[int, float]
    first_seconds: float
    new_shape_ms: float
    same_alone: int


class StepModule(nn.Module):
    """The step as a module of tensors alone, as compilers and exporters want it."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """See :data:`Step`."""
        output = self.model.step(tokens, DecodeState(tuple((part,) for part in states.unbind())))
        return output.logits, torch.stack([hidden for (hidden,) in output.state.layers])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmark's options."""
    parser.add_argument("--repeats", type=int, default=50, help="steps of each size (50)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CONTESTANTS))


def run(arguments: argparse.Namespace) -> int:
    """Measure all of them in turn and print the table.

    Returns:
        The exit status.
    """
    torch.set_num_threads(1)
    records = []
    for name in arguments.only or CONTESTANTS:
        if name.startswith("onnx") and not (find_spec("onnxruntime") and find_spec("onnxscript")):
            print(f"{name}: onnxruntime or onnxscript is not installed")
            continue
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            records.append(measure(name, arguments.repeats, Path(folder)))
    report(records)
    return 0


def measure(name: str, repeats: int, folder: Path) -> Record:
    """One contestant's figures."""
    began = time.perf_counter()
    step = CONTESTANTS[name](folder)
    step(*inputs(2))
    first_seconds = time.perf_counter() - began
    step_ms = {rows: 1000 * _median_seconds(step, rows, repeats) for rows in ROWS}
    began = time.perf_counter()
    step(*inputs(NEW_SHAPE_ROWS))
    new_shape_ms = 1000 * (time.perf_counter() - began)
    return Record(name, step_ms, first_seconds, new_shape_ms, same_alone(step))


def inputs(rows: int) -> tuple[Tensor, Tensor]:
    """Tokens and states of so many rows, the first ones always the same."""
    generator = torch.Generator().manual_seed(0)
    size = FIXED_CONFIG.hidden_size
    tokens = torch.randint(4, FIXED_CONFIG.vocabulary_size, (64,), generator=generator)
    states = torch.rand(FIXED_CONFIG.num_layers, 64, size, generator=generator) * 2 - 1
    return tokens[:rows], states[:, :rows].contiguous()


def same_alone(step: Step) -> int:
    """Rows of 64 whose logits do not depend on the others."""
    tokens, states = inputs(64)
    together, _ = step(tokens, states)
    together = together.clone()
    alone = (step(tokens[row : row + 1], states[:, row : row + 1])[0][0] for row in range(64))
    return sum(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def _median_seconds(step: Step, rows: int, repeats: int) -> float:
    tokens, states = inputs(rows)
    for _ in range(5):
        step(tokens, states)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step(tokens, states)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def report(records: Sequence[Record]) -> None:
    """Print the table and the line of JSON."""
    header = ["step by", *(f"{rows} rows, ms" for rows in ROWS)]
    header += ["first step, s", "new shape, ms", "same alone"]
    table = [
        [
            record.name,
            *(f"{record.step_ms[rows]:.2f}" for rows in ROWS),
            f"{record.first_seconds:.1f}",
            f"{record.new_shape_ms:.1f}",
            f"{record.same_alone} of 64",
        ]
        for record in records
    ]
    print(markdown_table(header, table))
    finish("compilers", {"records": [asdict(record) for record in records]})


# ---------------------------------------------------------------- who computes


def _module(precision: Precision) -> StepModule:
    torch.manual_seed(0)
    return StepModule(set_precision(LanguageModel(FIXED_CONFIG).eval(), precision))


def _in_type(step: Step, dtype: torch.dtype) -> Step:
    def converted(tokens: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        return step(tokens, states.to(dtype))

    return converted


def _eager(precision: Precision, dtype: torch.dtype) -> Callable[[Path], Step]:
    return lambda folder: _in_type(_module(precision), dtype)


def _compiled(precision: Precision, dtype: torch.dtype) -> Callable[[Path], Step]:
    """Dynamic in the number of rows, weights frozen: what is made for inference."""

    def make(folder: Path) -> Step:
        torch._dynamo.reset()
        options: dict[str, str | int | bool | Callable[..., object]] = {"freezing": True}
        return _in_type(torch.compile(_module(precision), dynamic=True, options=options), dtype)

    return make


def _onnx(folder: Path) -> Step:
    tokens, states = inputs(4)
    rows = torch.export.Dim("rows", min=1, max=4096)
    with torch.inference_mode(False):
        program = torch.onnx.export(
            _module("float32"),
            (tokens, states.clone()),
            dynamo=True,
            dynamic_shapes=({0: rows}, {1: rows}),
            verbose=False,
        )
    assert program is not None
    program.save(folder / "float32.onnx")
    return _onnx_session(folder / "float32.onnx")


def _onnx_int8(folder: Path) -> Step:
    """Dynamic quantization, weights by channel; activations have one scale for the batch."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _onnx(folder)
    model = onnx.load(folder / "float32.onnx")
    # The exporter notes shapes that onnx's own inference disagrees with.
    del model.graph.value_info[:]
    quantize_dynamic(
        model,
        folder / "int8.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    return _onnx_session(folder / "int8.onnx")


def _onnx_session(file: Path) -> Step:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def step(tokens: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, (tokens.numpy(), states.numpy()), strict=True))
        logits, after = session.run(None, given)
        return torch.from_numpy(logits), torch.from_numpy(after)

    return step


CONTESTANTS: dict[str, Callable[[Path], Step]] = {
    "eager float32": _eager("float32", torch.float32),
    "eager bfloat16": _eager("bfloat16", torch.bfloat16),
    "compiled float32": _compiled("float32", torch.float32),
    "compiled bfloat16": _compiled("bfloat16", torch.bfloat16),
    "onnx float32": _onnx,
    "onnx int8": _onnx_int8,
    "gatehouse int8": _eager("int8", torch.float32),
}
