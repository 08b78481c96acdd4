"""Requests whose prompts or sources are being read, before their rows join the batch.

While no rows run, reading is the next thing to do. While some do, it would hold them up: it is
done in pieces between their steps, or by another thread beside them where there is one. The
kernels of int8 and PyTorch's operations run without the interpreter's lock, so that both get on.
"""

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.decoding.task import DecodingTask
from models.encoder_decoder import Reading
from models.state import DecodeState

PIECES_PER_STEP = 4
"""Pieces of reading between two steps: a short prompt needs one for each layer."""
WAIT_SECONDS = 0.001
"""How long a step without rows waits for the other thread: others may want the next one."""
HANG_SECONDS = 5.0
"""A piece takes milliseconds. When none was done for so long, a step waits until one is: whoever
watches over the steps is to see that something hangs."""

Read = tuple[Tensor, DecodeState]
"""What a reading returns."""


@dataclass
class _Arrival:
    """Requests whose prompts are read together.

    Attributes:
        tasks: of them.
        reading: their prompts.
        outcome: of a reading by another thread, else None.
    """

    tasks: list[DecodingTask]
    reading: Reading
    outcome: "Future[Read] | None" = None

    @property
    def is_wanted(self) -> bool:
        """Whether any of the requests is still there."""
        return not all(task.is_dropped for task in self.tasks)


@dataclass(frozen=True)
class Arrived:
    """Requests whose prompts were read.

    Attributes:
        tasks: of them; some may be dropped.
        read: what came of it, or what went wrong.
    """

    tasks: Sequence[DecodingTask]
    read: Read | Exception


class ReadingThread(ThreadPoolExecutor):
    """The thread that reads prompts beside the steps, for all models of an engine.

    Attributes:
        heard_at: when it was last known to get on, on :func:`time.monotonic`.
    """

    def __init__(self) -> None:
        super().__init__(1, thread_name_prefix="reading")
        self.heard_at = time.monotonic()


@dataclass
class Arrivals:
    """All requests that are being read, turn by turn.

    Attributes:
        executor: of another thread that may read; None leaves all of it to the caller's.
    """

    executor: ReadingThread | None = None
    _news: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    _here: deque[_Arrival] = field(default_factory=deque)
    _elsewhere: list[_Arrival] = field(default_factory=list)

    @property
    def news(self) -> int:
        """Address of an int64 that is not 0 once the other thread has read something."""
        return self._news.ctypes.data

    @property
    def reads_here(self) -> bool:
        """Whether the caller's thread reads, between its steps."""
        return bool(self._here)

    def tasks(self) -> Iterator[DecodingTask]:
        """Of all of them."""
        for arrival in (*self._here, *self._elsewhere):
            yield from arrival.tasks

    def add(self, tasks: Sequence[DecodingTask], reading: Reading, *, rows_run: bool) -> None:
        """Begin with requests whose prompts are read together.

        Args:
            tasks: of them.
            reading: their prompts.
            rows_run: whether there are rows that this would hold up.
        """
        arrival = _Arrival(list(tasks), reading)
        if self.executor is None or not rows_run:
            self._here.append(arrival)
            return
        arrival.outcome = Future()
        if not self._elsewhere:
            self.executor.heard_at = time.monotonic()
        self._elsewhere.append(arrival)
        self.executor.submit(self._go_on, arrival)

    def drop_all(self) -> None:
        """Drop every request."""
        self.drop({task.key for task in self.tasks()})

    def drop(self, keys: Collection[int]) -> None:
        """Drop requests. Read to the end with the others of their arrival, they do not join."""
        for arrival in (*self._here, *self._elsewhere):
            arrival.tasks = [t if t.key not in keys else t.dropped() for t in arrival.tasks]
        self._here = deque(arrival for arrival in self._here if arrival.is_wanted)
        self._elsewhere = [arrival for arrival in self._elsewhere if arrival.is_wanted]

    def proceed(self, *, rows_run: bool) -> Iterator[Arrived]:
        """Read for a while, or see what was read.

        Args:
            rows_run: whether there are rows to go on with meanwhile.

        Yields:
            What was read to its end.
        """
        yield from self._arrived(wait_seconds=0.0 if rows_run or self._here else WAIT_SECONDS)
        for _ in range(PIECES_PER_STEP):
            if not self._here:
                return
            arrival = self._here.popleft()
            try:
                next(arrival.reading)
            except StopIteration as stop:
                yield Arrived(arrival.tasks, stop.value)
            except Exception as error:
                yield Arrived(arrival.tasks, error)
            else:
                self._here.append(arrival)

    def _arrived(self, wait_seconds: float) -> Iterator[Arrived]:
        self._news[0] = 0
        outcomes = [arrival.outcome for arrival in self._elsewhere if arrival.outcome]
        if outcomes and self.executor and time.monotonic() - self.executor.heard_at > HANG_SECONDS:
            wait(outcomes, return_when=FIRST_COMPLETED)
        elif outcomes and wait_seconds:
            wait(outcomes, wait_seconds, FIRST_COMPLETED)
        reading = []
        for arrival in self._elsewhere:
            if arrival.outcome is None or not arrival.outcome.done():
                reading.append(arrival)
                continue
            error = arrival.outcome.exception()
            if isinstance(error, Exception):
                yield Arrived(arrival.tasks, error)
            else:
                yield Arrived(arrival.tasks, arrival.outcome.result())
        self._elsewhere = reading

    def _go_on(self, arrival: _Arrival) -> None:
        """Some pieces by the other thread, which takes turns if there is more to read."""
        assert arrival.outcome is not None
        assert self.executor is not None
        if not arrival.is_wanted:
            return
        try:
            with torch.inference_mode():
                for _ in range(PIECES_PER_STEP):
                    next(arrival.reading)
                    self.executor.heard_at = time.monotonic()
            self.executor.submit(self._go_on, arrival)
        except StopIteration as stop:
            arrival.outcome.set_result(stop.value)
        except BaseException as error:  # or the requests would wait for ever
            arrival.outcome.set_exception(error)
        if arrival.outcome.done():
            self._news[0] = 1
        self.executor.heard_at = time.monotonic()
