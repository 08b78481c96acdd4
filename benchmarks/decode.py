"""Offline decoding by rows and precision, beside the least that a step could take.

All rows are kept busy: as requests end, others join, admitted as the engine admits them. The
prompts are real sentences, and the texts are as long as the model makes them (translations) or
as another sentence is. On a processor everything runs on one thread, whose processor time counts:
what other programs take of the processor meanwhile does not. The clock on the wall counts where
several threads share out the steps (``--threads``), and on a GPU, where steps are CUDA graphs, as
in the service.

Beside each step stands its floor: see :mod:`benchmarks.floor`.
"""

import argparse
import itertools
import operator
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from app.engine.device import resolve_device
from app.engine.graphs import CudaCapture, GraphedModel
from app.engine.pace import Pace
from app.engine.scheduler import ADMISSION_INTERVAL_STEPS
from app.exceptions import StartupError
from benchmarks.floor import floor_seconds, step_weights
from benchmarks.report import finish, markdown_table
from benchmarks.subjects import Subject, all_subjects
from models.decoding.step import BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import Reading, StepModel, StepOutput
from models.precision import Precision, keep_float32_exact, set_precision, use_threads
from models.seq2seq import Seq2Seq
from models.several_steps import whole_step_of
from models.state import DecodeState
from models.team import TEAM

SENTENCES = Path(__file__).parent / "data" / "sentences.txt"
ROWS = (1, 8, 64, 128, 256)
QUICK_ROWS = (1, 64)
PRECISIONS: tuple[Precision, ...] = ("int8", "bfloat16", "float32")
GPU_PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float16", "float32")
BEAM_SIZES = (1, 4)
WARM_UP_LIMIT = 3
"""The rows are let go apart, which they begin together, for so many times the seconds at most."""
WINDOWS = 5
"""Parts of a measurement, whose median counts: others may disturb some."""


# ---------------------------------------------------------------- how fast it is decoded

Clock = Callable[[], float]
"""Seconds since some moment."""


def clock_of(device: torch.device) -> Clock:
    """What measures steps on a device: they end with a transfer, for which the host waits."""
    is_alone = device.type == "cpu" and torch.get_num_threads() == TEAM.threads == 1
    return time.thread_time if is_alone else time.perf_counter


class TimedModel:
    """A model that notes how long it reads.

    Args:
        model: the real one.
        clock: see :func:`clock_of`. On a GPU it sees what the host does, not what it has begun.

    Attributes:
        reading_seconds: in all.
    """

    def __init__(self, model: StepModel, clock: Clock) -> None:
        self._model = model
        self._clock = clock
        self.vocabulary_size = model.vocabulary_size
        self.prompt_vocabulary_size = model.prompt_vocabulary_size
        self.continues_prompt = model.continues_prompt
        self.whole_step = whole_step_of(model)
        self.reading_seconds = 0.0

    def read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        """See :class:`StepModel`."""
        reading = self._model.read(prompts)
        while True:
            began = self._clock()
            try:
                next(reading)
            except StopIteration as stop:
                result: tuple[Tensor, DecodeState] = stop.value
                return result
            finally:
                self.reading_seconds += self._clock() - began
            yield

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """See :class:`StepModel`."""
        return self._model.step(tokens, state)


@dataclass
class Tally:
    """What a stretch of steps brought.

    Attributes:
        seconds: in all.
        tokens: of the outputs that were completed.
        step_seconds: of each step, what was spent on reading left out.
        rows: that advanced in these steps.
        positions: source positions of their requests, padding left out.
    """

    seconds: float = 0.0
    tokens: int = 0
    step_seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


class Drive:
    """Keeps the rows of a batched decoder busy.

    Args:
        model: to decode with.
        tasks: what to decode, without end.
        rows: of the batch.
        beam_size: of every task.
        device: where the model is.
    """

    def __init__(
        self,
        model: StepModel,
        tasks: Iterator[DecodingTask],
        rows: int,
        beam_size: int,
        device: torch.device,
    ) -> None:
        self._clock = clock_of(device)
        self._model = TimedModel(model, self._clock)
        self._decoder = BatchedDecoder(self._model, single_lane=device.type != "cpu")
        self._tasks, self._rows, self._width = tasks, rows, beam_size
        self._pace = Pace()
        self._lengths: dict[int, int] = {}
        self._running: set[int] = set()
        self._completed = 0
        self._steps = 0  # since requests were admitted

    @property
    def reading_seconds(self) -> float:
        """Spent on prompts and sources, in all."""
        return self._model.reading_seconds

    def step(self, tally: Tally) -> None:
        """Admit when it is time, make a step, and note it."""
        joining: list[DecodingTask] = []
        began = self._clock()
        if self._steps >= ADMISSION_INTERVAL_STEPS or not self._decoder.rows:
            self._steps = 0
            room = (self._rows - self._decoder.rows) // self._width
            joining = list(itertools.islice(self._tasks, room))
        read_before = self.reading_seconds
        self._decoder.admit(joining)
        left = ADMISSION_INTERVAL_STEPS - self._steps
        result = self._decoder.step(min(self._pace.steps_at_once, left), self._pace.tokens_at_once)
        self._steps += max(len(result.rows), 1)
        seconds = self._clock() - began
        self._pace.note(seconds, result.rows)
        self._lengths.update((task.key, len(task.prompt)) for task in joining)
        self._running.update(result.begun)
        tally.seconds += seconds
        for emissions in result.emissions.values():
            tally.tokens += sum(len(emission.tokens) for emission in emissions)
        if result.rows:
            steps = len(result.rows)
            share = (seconds - (self.reading_seconds - read_before)) / steps
            tally.step_seconds += [share] * steps
            tally.rows += result.rows
            positions = sum(self._lengths[key] for key in self._running)
            tally.positions += [positions * rows // result.rows[0] for rows in result.rows]
        self._running.difference_update(result.complete)
        self._completed += len(result.complete)

    def warm_up(self, limit_seconds: float) -> None:
        """Go on until as many requests have ended as began together."""
        tally = Tally()
        while self._completed < self._rows // self._width and tally.seconds < limit_seconds:
            self.step(tally)

    def run(self, seconds: float) -> Tally:
        """Go on for so long."""
        tally = Tally()
        while tally.seconds < seconds or not tally.step_seconds:
            self.step(tally)
        return tally


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Record:
    """One line of the table.

    Attributes:
        model: the subject.
        precision: what it computed in.
        beam_size: 1 is greedy.
        rows: of the batch.
        rows_running: of these, on average; a request that ends leaves its rows empty for a while.
        tokens_per_second: of the outputs, reading included.
        step_ms: a step without what it reads, in milliseconds.
        floor_ms: the least that such a step could take, on a processor.
        ratio: of the two.
        reading_share: of the time that is spent on prompts and sources.
    """

    model: str
    precision: str
    beam_size: int
    rows: int
    rows_running: float
    tokens_per_second: float
    step_ms: float
    floor_ms: float | None
    ratio: float | None
    reading_share: float

    def cells(self) -> list[str]:
        """The line."""
        decoding = "greedy" if self.beam_size == 1 else f"beam {self.beam_size}"
        return [
            self.model,
            decoding,
            self.precision,
            f"{self.rows}",
            f"{self.rows_running:.1f}",
            f"{self.tokens_per_second:,.0f}",
            f"{self.step_ms:.2f}",
            "" if self.floor_ms is None else f"{self.floor_ms:.2f}",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            f"{self.reading_share:.0%}",
        ]


HEADER = [
    "model", "decoding", "precision", "rows", "running", "tokens/s", "ms/step", "floor ms", "ratio",
    "reading",
]  # fmt: skip


class Bench:
    """A model in one precision, to be measured in several ways.

    Args:
        subject: the model and what it is asked for.
        precision: what it computes in.
        device: where.
        has_graphs: whether steps on a GPU are CUDA graphs.
    """

    def __init__(
        self, subject: Subject, precision: Precision, device: torch.device, *, has_graphs: bool
    ) -> None:
        self._subject, self._precision, self._device = subject, precision, device
        model = subject.build()
        self._weights = step_weights(model)
        has_memory = isinstance(model, Seq2Seq) and model.config.decoder != "context"
        # Of each source position, a key and a value.
        self._memory_numbers = 2 * model.config.hidden_size if has_memory else 0
        self._model: StepModel = set_precision(model.to(device), precision)
        if device.type == "cuda" and has_graphs:
            self._model = GraphedModel(self._model, CudaCapture(device))

    def measure(self, beam_size: int, rows: int, seconds: float) -> Record:
        """Decode for some seconds, and measure the floor every now and then."""
        tasks = self._subject.tasks(beam_size)
        drive = Drive(self._model, tasks, rows, beam_size, self._device)
        drive.warm_up(WARM_UP_LIMIT * seconds)
        read_before = drive.reading_seconds
        tallies: list[Tally] = []
        floors: list[float] = []
        for _ in range(WINDOWS):
            tallies.append(drive.run(seconds / WINDOWS))
            if self._device.type == "cpu":
                floors.append(self._floor_seconds(tallies[-1]))
        steps = [statistics.median(tally.step_seconds) for tally in tallies]
        reading_seconds = drive.reading_seconds - read_before
        return Record(
            model=self._subject.name,
            precision=self._precision,
            beam_size=beam_size,
            rows=rows,
            rows_running=round(statistics.mean(statistics.mean(t.rows) for t in tallies), 1),
            tokens_per_second=round(statistics.median(t.tokens / t.seconds for t in tallies)),
            step_ms=round(1e3 * statistics.median(steps), 3),
            floor_ms=round(1e3 * statistics.median(floors), 3) if floors else None,
            # Of each part alone: a processor that slows down slows both.
            ratio=round(statistics.median(map(operator.truediv, steps, floors)), 2)
            if floors
            else None,
            reading_share=round(reading_seconds / sum(tally.seconds for tally in tallies), 3),
        )

    def _floor_seconds(self, tally: Tally) -> float:
        """Of the steps of a tally."""
        rows, positions = statistics.mean(tally.rows), statistics.mean(tally.positions)
        memory_shape = (round(positions), self._memory_numbers)
        return floor_seconds(self._weights, round(rows), self._model.vocabulary_size, memory_shape)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--models", nargs="+", metavar="NAME", help="some of them (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--no-graphs", action="store_true", help="on a GPU: start each kernel")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=get_args(Precision),
        help=f"default: {', '.join(PRECISIONS)}; on a GPU {', '.join(GPU_PRECISIONS)}",
    )
    parser.add_argument("--rows", nargs="+", type=int, help=f"default: {ROWS}")
    parser.add_argument("--threads", type=int, default=1, help="that compute (default: 1)")
    parser.add_argument("--beams", nargs="+", type=int, default=BEAM_SIZES, help="1 is greedy")
    parser.add_argument("--seconds", type=float, default=0.6, help="of one measurement")
    parser.add_argument("--sentences", type=Path, default=SENTENCES, help="a text, one a line")
    parser.add_argument("--quick", action="store_true", help="a rough look, in a fifth of the time")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print.

    Returns:
        The exit status.
    """
    try:
        device = resolve_device(arguments.device)
    except StartupError as error:
        raise SystemExit(str(error)) from None
    if device.type == "cuda":
        keep_float32_exact()
    precisions = arguments.precisions or (PRECISIONS if device.type == "cpu" else GPU_PRECISIONS)
    lines = arguments.sentences.read_text(encoding="utf-8").splitlines()
    sentences = [line for line in lines if line.strip()]
    random.Random(0).shuffle(sentences)
    subjects = {subject.name: subject for subject in all_subjects(sentences)}
    names = arguments.models or list(subjects)
    if unknown := [name for name in names if name not in subjects]:
        raise SystemExit(f"there is no model {unknown[0]!r} here: choose of {', '.join(subjects)}")
    widths = arguments.rows or (QUICK_ROWS if arguments.quick else ROWS)
    seconds = 0.3 if arguments.quick else arguments.seconds
    records = []
    for name, precision in itertools.product(names, precisions):
        print(f"measuring {name} in {precision} ...", file=sys.stderr, flush=True)
        use_threads(arguments.threads, precision)
        bench = Bench(subjects[name], precision, device, has_graphs=not arguments.no_graphs)
        records += [
            bench.measure(beam_size, max(rows, beam_size), seconds)
            for beam_size in arguments.beams
            for rows in widths
        ]
    print(markdown_table(HEADER, [record.cells() for record in records]), end="\n\n")
    finish("decode", {"seconds": seconds, "records": [asdict(record) for record in records]})
    return 0
