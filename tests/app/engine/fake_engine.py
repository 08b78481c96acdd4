"""An engine without models, and what the tests of its surroundings share.

It can be imported by an engine process: its loads are functions of this module.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.engine.messages import ModelRevision
from app.engine.request import (
    DecodeRequest,
    DecodingParams,
    EndEvent,
    EndReason,
    Event,
    FinishReason,
    Progress,
    StepReport,
    TokensEvent,
)
from app.engine.spec import EngineSpec
from app.engine.supervisor import SupervisedEngine
from app.exceptions import StartupError

ROW_BUDGET = 16
DEVICE, PRECISION, LOAD_SECONDS = "cpu", "float32", {"count": 0.25, "slow": 0.5}

FAILS, DIES, HANGS = 1_001, 1_002, 1_003
"""First tokens of prompts that mean harm: to themselves alone, or to the whole engine."""

RELEASED = threading.Event()
"""Lets an engine or a load go on that hangs on a thread of this process."""

ENDLESS = 10**9

GUARD_SECONDS = 120
"""What would hang ends so; a busy machine takes its time to start an engine's process."""


@dataclass
class _Running:
    request: DecodeRequest
    submitted_at: float
    started_at: float | None = None
    tokens: list[int] = field(default_factory=list)


class FakeEngine:
    """Answers a prompt that ends with n by n, n + 1, n + 2, ..., a token a step.

    A step of the model ``slow`` takes a millisecond.
    """

    def __init__(self, models: Iterable[str] = ()) -> None:
        self._models = tuple(models) or tuple(LOAD_SECONDS)
        self._requests: dict[int, _Running] = {}
        self._cancelled: set[int] = set()
        self.beats = 0
        self.served: list[tuple[str, int]] = []
        self.retired: list[tuple[str, int]] = []

    @property
    def is_idle(self) -> bool:
        return not self._requests

    def submit(self, requests: Sequence[DecodeRequest]) -> None:
        for request in requests:
            self._requests[request.request_id] = _Running(request, time.monotonic())

    def cancel(self, request_ids: Iterable[int]) -> None:
        self._cancelled.update(self._requests.keys() & set(request_ids))

    def beat(self) -> None:
        self.beats += 1

    def retire(self, name: str, revision: int) -> None:
        self.retired.append((name, revision))

    def step(self) -> Progress:
        events: list[Event] = self._drop()
        started = self._admit()
        running = [r for r in self._requests.values() if r.started_at is not None]
        steps = []
        for model in self._models:
            rows = sum(r.request.rows for r in running if r.request.model == model)
            if rows:
                seconds = 0.001 if model == "slow" else 0.0
                time.sleep(seconds)
                steps.append(StepReport(model, rows, seconds, rows, 2 * rows, rows))
        for each in running:
            events += self._advance(each)
        return Progress(tuple(started), tuple(events), tuple(steps), self._rows_running())

    def _rows_running(self) -> dict[str, int]:
        rows = dict.fromkeys(self._models, 0)
        for each in self._requests.values():
            rows[each.request.model] += each.request.rows if each.started_at is not None else 0
        return rows

    def _drop(self) -> list[Event]:
        now = time.monotonic()
        ends: list[Event] = [self._end(i, EndReason.CANCELLED) for i in sorted(self._cancelled)]
        self._cancelled.clear()
        late = [
            request_id
            for request_id, each in self._requests.items()
            if now - each.submitted_at > each.request.timeout_seconds
        ]
        return ends + [self._end(request_id, EndReason.EXPIRED) for request_id in late]

    def _admit(self) -> list[int]:
        started = []
        for request_id, each in self._requests.items():
            if each.started_at is None:
                if self._rows_running()[each.request.model] + each.request.rows > ROW_BUDGET:
                    break
                each.started_at = time.monotonic()
                started.append(request_id)
        return started

    def _advance(self, each: _Running) -> list[Event]:
        request = each.request
        if request.prompt[0] == DIES:
            raise RuntimeError("the fake engine was told to die")
        if request.prompt[0] == HANGS:
            RELEASED.wait(60)
        if request.prompt[0] == FAILS:
            return [self._end(request.request_id, EndReason.FAILED, "told to fail")]
        each.tokens.append(request.prompt[-1] + len(each.tokens))
        is_last = len(each.tokens) == request.params.max_new_tokens
        reason = FinishReason.LENGTH if is_last else None
        shown = each.tokens[-1:] if request.stream else each.tokens if is_last else []
        events: list[Event] = []
        if shown:
            logprobs = (-1.0,) * len(shown)
            events += [TokensEvent(request.request_id, 0, tuple(shown), logprobs, reason)]
        if is_last:
            events.append(self._end(request.request_id, EndReason.FINISHED))
        return events

    def _end(self, request_id: int, reason: EndReason, message: str = "") -> EndEvent:
        each = self._requests.pop(request_id)
        begun_at = time.monotonic() if each.started_at is None else each.started_at
        return EndEvent(request_id, reason, begun_at - each.submitted_at, None, message)


class _LastWords(FakeEngine):
    """Ends its process as soon as it has answered."""

    def beat(self) -> None:
        if self._has_answered:
            os._exit(9)

    def step(self) -> Progress:
        progress = super().step()
        self._has_answered = any(isinstance(event, EndEvent) for event in progress.events)
        return progress

    _has_answered = False


@dataclass(frozen=True)
class FakeModels:
    engine: FakeEngine
    device: str = DEVICE
    precision: str = PRECISION
    load_seconds: dict[str, float] = field(default_factory=lambda: dict(LOAD_SECONDS))
    capability: str = ""

    def prepare(self, model: ModelRevision) -> Callable[[], None]:
        """The path says what comes of it."""
        if model.path == "refused":
            raise StartupError("damaged checkpoint: a file is missing")
        if model.path == "broken":
            raise RuntimeError("secret")
        if model.path == "slow":
            time.sleep(0.3)
        if model.path == "held":
            RELEASED.wait(GUARD_SECONDS)
        return lambda: self.engine.served.append((model.name, model.revision))


def load_fake() -> FakeModels:
    return FakeModels(FakeEngine())


def load_last_words() -> FakeModels:
    return FakeModels(_LastWords())


def load_spec(spec: EngineSpec) -> FakeModels:
    """In place of :func:`app.engine.loading.load_engine`."""
    seconds = {path.name: 0.25 for path in spec.checkpoints}
    return FakeModels(FakeEngine(seconds), load_seconds=seconds)


def refuse_spec(spec: EngineSpec) -> FakeModels:
    return load_refused()


def break_at_spec(spec: EngineSpec) -> FakeModels:
    return load_broken()


def load_refused() -> FakeModels:
    raise StartupError("damaged checkpoint: a file is missing")


def load_broken() -> FakeModels:
    raise RuntimeError("secret")


def load_killed() -> FakeModels:
    os.kill(os.getpid(), signal.SIGKILL)
    return load_fake()


def load_and_talk() -> FakeModels:
    logger = logging.getLogger(__name__)
    logger.info("an unimportant line")
    logger.warning("a warning")
    print("printed")
    return load_fake()


def load_slowly() -> FakeModels:
    time.sleep(60)
    return load_fake()


def load_if_there(file: Path) -> FakeModels:
    """Loads as long as a file is there."""
    if not file.exists():
        raise StartupError(f"{file.name} is gone")
    return load_fake()


def make_request(
    request_id: int,
    *,
    model: str = "count",
    prompt: tuple[int, ...] = (5,),
    tokens: int = 3,
    rows: int = 1,
    timeout_seconds: float = float("inf"),
    stream: bool = False,
) -> DecodeRequest:
    params = DecodingParams(max_new_tokens=tokens, temperature=1, num_outputs=rows)
    return DecodeRequest(request_id, model, prompt, params, timeout_seconds, stream)


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    async with asyncio.timeout(GUARD_SECONDS):
        return [event async for event in events]


async def ends_of(events: AsyncIterator[Event]) -> dict[int, EndReason]:
    return {e.request_id: e.reason for e in await collect(events) if isinstance(e, EndEvent)}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(GUARD_SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


def books_add_up(engine: SupervisedEngine) -> bool:
    s = engine.stats()
    return s.accepted == s.finished + s.failed + s.cancelled + s.running + s.waiting
