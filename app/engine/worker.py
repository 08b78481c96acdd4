"""The engine as one thread that answers one request at a time.

Implements :class:`app.engine.client.EngineClient`. Requests wait in a bounded queue; the
thread decodes the first one with :func:`models.decoding.reference.decode_reference`, looks
for a cancellation after every step, and hands the events over to the event loop.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from app.engine.request import (
    MAX_ROWS_PER_REQUEST,
    DecodeRequest,
    DecodingParams,
    EndEvent,
    EndReason,
    EngineStats,
    Event,
    TokenEvent,
)
from app.exceptions import DrainingError, NotReadyError, QueueFullError
from models.decoding.params import Emission

logger = logging.getLogger(__name__)

Decode = Callable[[Sequence[int], DecodingParams], Iterator[list[Emission]]]
"""Decodes one prompt: yields after every model step the tokens that it brought."""

_HEARTBEAT_PARAMS = DecodingParams(max_new_tokens=1)
_MAX_RETRY_AFTER_SECONDS = 60
_JOIN_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """A model as the worker sees it.

    Attributes:
        decode: the plain decoding loop over its weights.
        heartbeat_prompt: the shortest prompt it reads, for the step of an idle engine.
    """

    decode: Decode
    heartbeat_prompt: tuple[int, ...]


class _Stream(AsyncIterator[Event]):
    """Events of one :meth:`WorkerEngine.submit`, carried from the thread to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, open_requests: int) -> None:
        self._loop = loop
        self._open_requests = open_requests
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()

    def deliver(self, events: Sequence[Event]) -> None:
        """Hand events over, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._receive, events)
        except RuntimeError:  # the loop is closed: nobody listens any more
            logger.debug("the event loop is closed; %d events dropped", len(events))

    def _receive(self, events: Sequence[Event]) -> None:
        self._events.extend(events)
        self._arrived.set()

    async def __anext__(self) -> Event:
        while not self._events:
            if self._open_requests == 0:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if isinstance(event, EndEvent):
            self._open_requests -= 1
        return event


@dataclass(slots=True)
class _Job:
    request: DecodeRequest
    stream: _Stream
    submitted_at: float
    started_at: float | None = None
    cancelled: bool = False

    @property
    def queue_seconds(self) -> float:
        started_at = self.started_at if self.started_at is not None else time.monotonic()
        return started_at - self.submitted_at

    @property
    def rows(self) -> int:
        return max(self.request.params.beam_size, self.request.params.num_outputs)


@dataclass(slots=True)
class _Books:
    accepted: int = 0
    ended: dict[EndReason, int] = field(default_factory=lambda: dict.fromkeys(EndReason, 0))
    mean_request_seconds: float = 0.1


class WorkerEngine:
    """One thread, one request at a time, a bounded queue in front.

    Args:
        models: what to decode with, by model name.
        queue_capacity: requests that may wait at once.
        heartbeat_seconds: an idle engine runs one real step of every model this often.
    """

    def __init__(
        self,
        models: Mapping[str, WorkerModel],
        *,
        queue_capacity: int,
        heartbeat_seconds: float = 1.0,
    ) -> None:
        self._models = dict(models)
        self._queue_capacity = queue_capacity
        self._heartbeat_seconds = heartbeat_seconds
        self._changed = threading.Condition()
        # Everything below is read and written under `_changed`.
        self._waiting: deque[_Job] = deque()
        self._running: _Job | None = None
        self._books = _Books()
        self._last_step_at = time.monotonic()
        self._next_beat_at = time.monotonic()
        self._draining = False
        self._stopping = False
        self._dead = False
        self._thread = threading.Thread(target=self._run, name="gatehouse-engine", daemon=True)

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: it was started before.
        """
        self._thread.start()

    # ---- the client's side: called on the event loop ----

    def submit(self, requests: Sequence[DecodeRequest]) -> AsyncIterator[Event]:
        """See :meth:`app.engine.client.EngineClient.submit`."""
        stream = _Stream(asyncio.get_running_loop(), len(requests))
        now = time.monotonic()
        with self._changed:
            self._check_admission(requests)
            self._waiting.extend(_Job(request, stream, now) for request in requests)
            self._books.accepted += len(requests)
            self._changed.notify_all()
        return stream

    def _check_admission(self, requests: Sequence[DecodeRequest]) -> None:
        if self._draining:
            raise DrainingError("the service is shutting down and takes no more requests")
        if self._dead or not self._thread.is_alive():
            raise NotReadyError("the engine is not running")
        for request in requests:
            if request.model not in self._models:
                raise ValueError(f"the engine has no model {request.model!r}")
        if len(self._waiting) + len(requests) > self._queue_capacity:
            seconds = len(self._waiting) * self._books.mean_request_seconds
            raise QueueFullError(
                f"the queue has no room for {len(requests)} more: {len(self._waiting)} of "
                f"{self._queue_capacity} places are taken",
                retry_after_seconds=min(_MAX_RETRY_AFTER_SECONDS, max(1, round(seconds))),
            )

    def cancel(self, request_ids: Iterable[int]) -> None:
        """See :meth:`app.engine.client.EngineClient.cancel`."""
        ids = frozenset(request_ids)
        with self._changed:
            dropped = [job for job in self._waiting if job.request.request_id in ids]
            if dropped:
                self._waiting = deque(
                    job for job in self._waiting if job.request.request_id not in ids
                )
            for job in dropped:
                self._end(job, EndReason.CANCELLED)
            if self._running is not None and self._running.request.request_id in ids:
                self._running.cancelled = True

    def stats(self) -> EngineStats:
        """See :meth:`app.engine.client.EngineClient.stats`."""
        with self._changed:
            return EngineStats(
                waiting=len(self._waiting),
                running=0 if self._running is None else 1,
                rows_running=0 if self._running is None else self._running.rows,
                row_budget=MAX_ROWS_PER_REQUEST,
                accepted=self._books.accepted,
                finished=self._books.ended[EndReason.FINISHED],
                failed=self._books.ended[EndReason.FAILED],
                cancelled=self._books.ended[EndReason.CANCELLED],
                last_step_age_seconds=time.monotonic() - self._last_step_at,
            )

    async def drain(self, timeout_seconds: float) -> None:
        """See :meth:`app.engine.client.EngineClient.drain`; the thread ends with it."""
        with self._changed:
            self._draining = True
        await asyncio.to_thread(self._finish, timeout_seconds)

    def _finish(self, timeout_seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(self._is_idle, timeout_seconds)
            unfinished = [job.request.request_id for job in self._waiting]
            if self._running is not None:
                unfinished.append(self._running.request.request_id)
            self.cancel(unfinished)
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_TIMEOUT_SECONDS)
        if self._thread.is_alive():
            logger.error("the engine's thread is stuck in a step; it is left behind")

    def _is_idle(self) -> bool:
        return self._dead or (self._running is None and not self._waiting)

    # ---- the thread's side ----

    def _run(self) -> None:
        try:
            while (job := self._next_job()) is not None:
                self._answer(job)
        except BaseException:
            logger.exception("the engine's thread died")
        finally:
            self._close_books()

    def _next_job(self) -> _Job | None:
        """Wait for a request, with a heartbeat in the meantime; None means stop."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or bool(self._waiting), self._seconds_to_heartbeat()
                )
                if self._waiting:
                    job = self._waiting.popleft()
                    job.started_at = time.monotonic()
                    self._running = job
                    return job
                if self._stopping:
                    return None
            self._beat()

    def _seconds_to_heartbeat(self) -> float:
        return max(0.0, self._next_beat_at - time.monotonic())

    def _beat(self) -> None:
        """Run one real step of every model, so that readiness tells the truth."""
        for name, model in self._models.items():
            try:
                for _ in model.decode(model.heartbeat_prompt, _HEARTBEAT_PARAMS):
                    pass
            except Exception:
                # Without a mark of life the age of the last step grows until not ready.
                logger.exception("model %s failed its heartbeat", name)
                self._next_beat_at = time.monotonic() + self._heartbeat_seconds
                return
        self._mark_step()

    def _mark_step(self) -> None:
        with self._changed:
            self._last_step_at = time.monotonic()
            self._next_beat_at = self._last_step_at + self._heartbeat_seconds

    def _answer(self, job: _Job) -> None:
        request = job.request
        message = ""
        reason = EndReason.FINISHED
        try:
            for step in self._models[request.model].decode(request.prompt, request.params):
                self._mark_step()
                if job.cancelled:
                    reason = EndReason.CANCELLED
                    break
                if step:
                    job.stream.deliver(
                        [TokenEvent(request.request_id, *item) for item in step],
                    )
        except Exception as error:
            logger.exception("request %d failed", request.request_id)
            reason, message = EndReason.FAILED, f"{type(error).__name__}: {error}"
        with self._changed:
            self._running = None
            self._end(job, reason, message)

    def _end(self, job: _Job, reason: EndReason, message: str = "") -> None:
        """Write the request off and tell its stream. The caller holds the lock."""
        self._books.ended[reason] += 1
        if reason is EndReason.FINISHED and job.started_at is not None:
            seconds = time.monotonic() - job.started_at
            self._books.mean_request_seconds += 0.1 * (seconds - self._books.mean_request_seconds)
        job.stream.deliver([EndEvent(job.request.request_id, reason, job.queue_seconds, message)])
        self._changed.notify_all()

    def _close_books(self) -> None:
        """End whatever is left when the thread ends, however it ended."""
        with self._changed:
            self._dead = True
            left = list(self._waiting)
            self._waiting.clear()
            if self._running is not None:
                left.append(self._running)
                self._running = None
            for job in left:
                self._end(job, EndReason.FAILED, "the engine's thread died")
            self._changed.notify_all()
