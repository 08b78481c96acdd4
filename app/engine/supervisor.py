"""The engine as the HTTP process has it: the books, and an engine that comes back when it dies."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from app.engine.books import Books
from app.engine.client import EventStream
from app.engine.link import Link, LinkFactory
from app.engine.messages import (
    EngineMessage,
    Loaded,
    ModelLoaded,
    ModelNotLoaded,
    ModelRevision,
    Orders,
    Turn,
)
from app.engine.request import DecodeRequest, EndReason, EngineStats, StepReport
from app.engine.watchdog import Watchdog
from app.exceptions import (
    DrainingError,
    NotReadyError,
    QueueFullError,
    ReloadError,
    StartupError,
)

logger = logging.getLogger(__name__)

_DIED_MESSAGE = "the engine process died"


class Backoff:
    """How long to wait before the engine is started anew.

    Not at all when it had worked for a while, and twice as long each time that it dies soon.

    Args:
        first_pause_seconds: after it died twice in a row.
        longest_pause_seconds: the pause never grows above it.
        stable_after_seconds: an engine that lived so long has not died soon.
    """

    def __init__(
        self,
        *,
        first_pause_seconds: float = 0.5,
        longest_pause_seconds: float = 30.0,
        stable_after_seconds: float = 30.0,
    ) -> None:
        self._first = first_pause_seconds
        self._longest = longest_pause_seconds
        self._stable_after = stable_after_seconds
        self._next = 0.0

    def pause_seconds(self, lived_seconds: float) -> float:
        """The pause after an engine that could serve for so long (0: it never could)."""
        if lived_seconds >= self._stable_after:
            self._next = 0.0
        pause = self._next
        self._next = min(self._longest, max(self._first, 2 * pause))
        return pause


def _nobody_watches(steps: Sequence[StepReport]) -> None:
    """Where nobody wants to know what the engine's steps did."""


class SupervisedEngine:
    """Implements :class:`app.engine.client.EngineClient` over an engine behind a link.

    Everything here runs on one event loop. The books are here, so that every accepted request
    ends even when the engine does not answer any more.

    Args:
        open_link: makes the link for each life of the engine.
        queue_capacity: requests that may wait at once.
        row_budget: rows that one model can have at once.
        on_steps: is told what the models' steps did.
        backoff: pauses between the engine's death and its next life.
        hang_seconds: an engine that has taken no step for so long is killed.
    """

    def __init__(
        self,
        open_link: LinkFactory,
        *,
        queue_capacity: int,
        row_budget: int,
        on_steps: Callable[[Sequence[StepReport]], None] = _nobody_watches,
        backoff: Backoff | None = None,
        hang_seconds: float = 30.0,
    ) -> None:
        self._open_link = open_link
        self._row_budget = row_budget
        self._on_steps = on_steps
        self._backoff = backoff or Backoff()
        self._books = Books(queue_capacity)
        self._hang_seconds = hang_seconds
        self._watchdog = Watchdog(hang_seconds, self._end_hanging_engine)
        self._link: Link | None = None
        self._loaded: Loaded | None = None
        self._loaded_at = 0.0
        self._last_step_at = time.monotonic()
        self._rows_running: Mapping[str, int] = {}
        self._restarts = 0
        self._failure = ""  # of the last start, where that was another one
        self._restart: asyncio.TimerHandle | None = None
        self._is_closed = False
        # What this turn of the event loop has for the engine.
        self._new_requests: list[DecodeRequest] = []
        self._new_cancels: list[int] = []
        self._new_loads: list[ModelRevision] = []
        self._newly_retired: list[ModelRevision] = []
        self._gone_names: set[str] = set()  # of models that an engine which starts still loads
        self._loading: dict[ModelRevision, asyncio.Future[ModelLoaded]] = {}
        self._flush_is_due = False

    async def start(self) -> Loaded:
        """Start the engine and wait until it can serve.

        Returns:
            What became of the models.

        Raises:
            StartupError: they could not be loaded; the message says why.
            DrainingError: :meth:`close` was called before they were.
        """
        self._loop = asyncio.get_running_loop()
        self._first_start: asyncio.Future[Loaded] = self._loop.create_future()
        self._begin()
        return await self._first_start

    @property
    def link(self) -> Link | None:
        """The link to the engine that lives now."""
        return self._link

    def not_ready_because(self) -> str | None:
        """Why no requests are taken now; None where they are."""
        if self._is_closed:
            return "the service is shutting down"
        if self._loaded is not None:
            return None
        if self._restarts > 0 or self._restart is not None:
            again = "the engine died and is being started again"
            return f"{again}, which failed: {self._failure}" if self._failure else again
        return "the models are being loaded" if self._link is not None else "no engine is running"

    def queue_full(self) -> QueueFullError | None:
        """What one more request would be told, if the queue has no room for it."""
        return None if self._is_closed or self._loaded is None else self._books.refusal()

    def submit(
        self, requests: Sequence[DecodeRequest], until_seconds: float | None = None
    ) -> EventStream:
        """See :meth:`app.engine.client.EngineClient.submit`."""
        if self._is_closed:
            raise DrainingError("the service is shutting down and takes no more requests")
        if self._loaded is None:
            raise NotReadyError(str(self.not_ready_because()))
        for request in requests:
            if request.model not in self._loaded.load_seconds:
                raise ValueError(f"the engine has no model {request.model!r}")
        stream = self._books.accept(requests, until_seconds)
        self._new_requests.extend(requests)
        self._flush_soon()
        return stream

    def cancel(self, request_ids: Iterable[int]) -> None:
        """See :meth:`app.engine.client.EngineClient.cancel`."""
        if dropped := self._books.open_among(request_ids):
            self._new_cancels.extend(dropped)
            self._flush_soon()

    async def load_model(self, model: ModelRevision) -> ModelLoaded:
        """Load another revision of a model beside the one that serves.

        Raises:
            ReloadError: it cannot be loaded; nothing has changed.
            NotReadyError: the engine is not running, or died meanwhile.
            DrainingError: the service shuts down.
        """
        if self._is_closed:
            raise DrainingError("the service is shutting down and loads no more models")
        if self._loaded is None:
            raise NotReadyError(str(self.not_ready_because()))
        if model in self._loading:
            raise ReloadError(f"{model.name} is being loaded already")
        loading: asyncio.Future[ModelLoaded] = self._loop.create_future()
        self._loading[model] = loading
        self._new_loads.append(model)
        self._flush_soon()
        return await loading

    def retire_model(self, model: ModelRevision, *, name_too: bool = False) -> None:
        """Drop a revision of a model when the requests that were submitted for it are over.

        Args:
            model: which one.
            name_too: whether no other revision of it is there.
        """
        self._newly_retired.append(model)
        if name_too and self._loaded is not None:
            self._loaded.load_seconds.pop(model.name, None)
        elif name_too:
            self._gone_names.add(model.name)
        self._flush_soon()

    def stats(self) -> EngineStats:
        """See :meth:`app.engine.client.EngineClient.stats`."""
        names = self._loaded.load_seconds if self._loaded is not None else {}
        # A model that has left the service is there until its last row is.
        rows = {name: rows for name, rows in self._rows_running.items() if rows or name in names}
        return EngineStats(
            waiting=self._books.waiting,
            running=self._books.running,
            rows_running={**dict.fromkeys(names, 0), **rows},
            row_budget=self._row_budget,
            accepted=self._books.accepted,
            finished=self._books.finished,
            failed=self._books.failed,
            cancelled=self._books.cancelled,
            restarts=self._restarts,
            last_step_age_seconds=time.monotonic() - self._last_step_at,
        )

    async def close(self) -> None:
        """See :meth:`app.engine.client.EngineClient.close`."""
        self._is_closed = True
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        self._books.end_all(EndReason.CANCELLED)
        self._give_up_loads(DrainingError("the service is shutting down"))
        self._watchdog.stop()
        link, self._link, self._loaded, self._rows_running = self._link, None, None, {}
        if link is None:
            return
        await link.close()
        if not self._first_start.done():
            self._first_start.set_exception(DrainingError("the service is shutting down"))

    # ---- to the engine ----

    def _flush_soon(self) -> None:
        """Send what this turn of the event loop brings in one message."""
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._loaded is None and self._link is not None:
            # What left the service while an engine starts is with what that engine loads.
            retired = self._newly_retired.copy()
            self._forget_orders()
            self._newly_retired = retired
            return
        orders = Orders(
            tuple(self._new_requests),
            tuple(self._new_cancels),
            tuple(self._new_loads),
            tuple(self._newly_retired),
        )
        self._forget_orders()
        if self._loaded is not None and self._link is not None:
            self._link.send(orders)

    def _forget_orders(self) -> None:
        for orders in (
            self._new_requests,
            self._new_cancels,
            self._new_loads,
            self._newly_retired,
        ):
            orders.clear()

    def _give_up_loads(self, error: Exception) -> None:
        for loading in self._loading.values():
            if not loading.done():
                loading.set_exception(error)
        self._loading.clear()

    # ---- from the engine ----

    def received(self, message: EngineMessage) -> None:
        """See :meth:`app.engine.link.LinkListener.received`."""
        if isinstance(message, Turn):
            self._take_turn(message)
        elif isinstance(message, Loaded):
            self._loaded = message
            self._failure = ""
            self._loaded_at = self._last_step_at = time.monotonic()
            for name in self._gone_names:
                message.load_seconds.pop(name, None)
            self._gone_names.clear()
            if self._newly_retired:
                self._flush_soon()
            self._watchdog.start()
            if not self._first_start.done():
                self._first_start.set_result(message)
            else:
                logger.warning("the engine is back")

        elif isinstance(message, ModelLoaded | ModelNotLoaded):
            loading = self._loading.pop(message.model, None)
            if loading is None or loading.done():
                return
            if isinstance(message, ModelLoaded):
                if self._loaded is not None:
                    self._loaded.load_seconds.setdefault(message.model.name, message.load_seconds)
                loading.set_result(message)
            else:
                loading.set_exception(ReloadError(message.reason))

    def _take_turn(self, turn: Turn) -> None:
        if turn.stepped:
            self._last_step_at = time.monotonic()
            self._watchdog.feed()
        self._rows_running = turn.rows_running
        self._books.start(turn.started)
        for event in turn.tokens:
            self._books.deliver(event)
        for end in turn.ends:
            self._books.end(end)
        if turn.steps:
            self._on_steps(turn.steps)

    def lost(self, reason: str) -> None:
        """See :meth:`app.engine.link.LinkListener.lost`."""
        self._watchdog.stop()
        loaded = self._loaded
        lived_seconds = 0.0 if loaded is None else time.monotonic() - self._loaded_at
        self._link, self._loaded, self._rows_running = None, None, {}
        self._forget_orders()
        self._gone_names.clear()
        self._give_up_loads(NotReadyError("the engine died while it loaded the model"))
        failed = self._books.end_all(EndReason.FAILED, _DIED_MESSAGE)
        self._failure = reason if loaded is None and self._restarts else ""
        if not self._first_start.done():
            self._first_start.set_exception(StartupError(reason))
        elif not self._is_closed:
            pause = self._backoff.pause_seconds(lived_seconds)
            logger.error(
                "%s; %d texts failed with it; it is started again%s",
                reason,
                failed,
                f" in {pause:g} seconds" if pause else "",
            )
            self._restart = self._loop.call_later(pause, self._start_again)

    def _end_hanging_engine(self) -> None:
        if self._link is not None:
            self._link.kill(f"the engine took no step for {self._hang_seconds:g} seconds")

    def _start_again(self) -> None:
        self._restart = None
        self._restarts += 1
        self._begin()

    def _begin(self) -> None:
        self._link = self._open_link(self)
        try:
            self._link.start()
        except OSError as error:
            self.lost(str(error))
