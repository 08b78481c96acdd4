"""The loop that an engine lives in, in a process of its own as well as on a thread."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from app.engine.background import BackgroundLoads
from app.engine.messages import (
    EngineMessage,
    Loaded,
    ModelRevision,
    NotLoaded,
    Orders,
    Turn,
)
from app.engine.request import DecodeRequest, EndEvent, Progress, StepReport, TokensEvent
from app.exceptions import StartupError

HEARTBEAT_SECONDS = 1.0
"""How often an idle engine takes a real step, so that readiness tells the truth."""

_MAX_SILENCE_SECONDS = 0.05
_MAX_REPORTS = 256
_LOAD_CHECK_SECONDS = 0.02


class SteppingEngine(Protocol):
    """What :class:`app.engine.engine.Engine` offers to its host; see there."""

    def submit(self, requests: Sequence[DecodeRequest]) -> None:
        """Queue requests."""
        ...

    def cancel(self, request_ids: Collection[int]) -> None:
        """Drop requests; each still gets its end with the next step."""
        ...

    def retire(self, name: str, revision: int) -> None:
        """Drop a revision of a model when its last request is over."""
        ...

    def step(self) -> Progress:
        """Take one turn."""
        ...

    def beat(self) -> None:
        """Take one real step of every model, for no request."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, runs, or is yet to be told."""
        ...


class LoadedModels(Protocol):
    """What loading brings: see :class:`app.engine.loading.LoadedEngine`."""

    @property
    def engine(self) -> SteppingEngine:
        """The engine over the models."""
        ...

    @property
    def device(self) -> str:
        """Where the models are."""
        ...

    @property
    def precision(self) -> str:
        """What they compute in."""
        ...

    @property
    def load_seconds(self) -> Mapping[str, float]:
        """How long each took to load, by name."""
        ...

    @property
    def capability(self) -> str:
        """What their arithmetic depends on besides."""
        ...

    def prepare(self, model: ModelRevision) -> Callable[[], None]:
        """Load another revision of a model; see :class:`app.engine.loading.LoadedEngine`."""
        ...


EngineLoad = Callable[[], LoadedModels]
"""Loads the models and makes an engine over them, which takes long.

For an engine in a process of its own it must be picklable: a function of a module, or a partial
of one.
"""


class EngineChannel(Protocol):
    """The engine's end of a link."""

    def receive(self, timeout_seconds: float | None) -> list[Orders]:
        """The orders that have come, in order.

        Args:
            timeout_seconds: how long to wait for the first; 0 not at all, None for ever.
        """
        ...

    def send(self, message: EngineMessage) -> None:
        """Tell the HTTP side something, without waiting."""
        ...


def host_engine(
    load: EngineLoad, channel: EngineChannel, *, heartbeat_seconds: float = HEARTBEAT_SECONDS
) -> None:
    """Load the models, tell how that went, and keep the engine going until the order to stop.

    Args:
        load: what to run.
        channel: to the HTTP side.
        heartbeat_seconds: an engine that had nothing to do for so long takes a step.

    Raises:
        Exception: the engine broke, and can do nothing more.
    """
    try:
        loaded = load()
    except StartupError as error:
        channel.send(NotLoaded(str(error)))
        while not any(orders.stop for orders in channel.receive(None)):
            pass
        return
    # A model that cannot take a step has not been loaded.
    loaded.engine.beat()
    channel.send(
        Loaded(loaded.device, loaded.precision, dict(loaded.load_seconds), loaded.capability)
    )
    loads = BackgroundLoads(loaded.prepare)
    try:
        _take_turns(loaded.engine, loads, channel, heartbeat_seconds)
    finally:
        loads.close()


def _take_turns(
    engine: SteppingEngine,
    loads: BackgroundLoads,
    channel: EngineChannel,
    heartbeat_seconds: float,
) -> None:
    reporter = _Reporter(channel)
    next_beat_at = time.monotonic() + heartbeat_seconds
    while True:
        seconds = max(0.0, next_beat_at - time.monotonic()) if engine.is_idle else 0.0
        if loads.is_busy:
            seconds = min(seconds, _LOAD_CHECK_SECONDS)
        for orders in channel.receive(seconds):
            if orders.stop:
                return
            _follow(orders, engine, loads)
        for message in loads.finished() if loads.is_busy else ():
            channel.send(message)
        if not engine.is_idle:
            progress = engine.step()
            if progress.steps:
                next_beat_at = time.monotonic() + heartbeat_seconds
            reporter.report(progress, now_idle=engine.is_idle)
        elif time.monotonic() >= next_beat_at:
            engine.beat()
            next_beat_at = time.monotonic() + heartbeat_seconds
            channel.send(Turn(stepped=True))


def _follow(orders: Orders, engine: SteppingEngine, loads: BackgroundLoads) -> None:
    if orders.requests:
        engine.submit(orders.requests)
    if orders.cancelled:
        engine.cancel(orders.cancelled)
    for model in orders.loads:
        loads.begin(model)
    for model in orders.retired:
        engine.retire(model.name, model.revision)


class _Reporter:
    """Tells what somebody waits for at once, and what only metrics want now and then."""

    def __init__(self, channel: EngineChannel) -> None:
        self._channel = channel
        self._steps: list[StepReport] = []
        self._sent_at = time.monotonic()

    def report(self, progress: Progress, *, now_idle: bool) -> None:
        """Take up what a turn brought, and send it unless it can wait."""
        self._steps.extend(progress.steps)
        if (
            progress.events
            or progress.started
            or now_idle
            or len(self._steps) >= _MAX_REPORTS
            or time.monotonic() - self._sent_at >= _MAX_SILENCE_SECONDS
        ):
            self._channel.send(
                Turn(
                    started=progress.started,
                    tokens=tuple(e for e in progress.events if isinstance(e, TokensEvent)),
                    ends=tuple(e for e in progress.events if isinstance(e, EndEvent)),
                    steps=tuple(self._steps),
                    rows_running=dict(progress.rows_running),
                    stepped=bool(self._steps),
                )
            )
            self._steps.clear()
            self._sent_at = time.monotonic()
