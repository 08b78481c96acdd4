"""The books of the HTTP side: which requests wait, which run, how all the others ended."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from app.engine.client import EventStream
from app.engine.request import (
    DEADLINE_GRACE_SECONDS,
    DecodeRequest,
    EndEvent,
    EndReason,
    TokensEvent,
)
from app.exceptions import QueueFullError

_MAX_RETRY_AFTER_SECONDS = 60
_FIRST_GUESS_SECONDS = 0.1
_MEAN_WEIGHT = 0.1
_USABLE_SHARE = 0.7
"""Of a request's time that it may be expected to take: an expectation is no promise."""
_ENOUGH_TO_JUDGE_BY = 20
"""So many requests have to have finished before any is refused for its time."""


@dataclass(slots=True)
class _OpenRequest:
    """An accepted request that has not ended; times are the clock's."""

    stream: EventStream
    submitted_at: float
    started_at: float | None = None


class Books:
    """Accepts requests while there is room, and accounts for each until it has ended.

    ``accepted == finished + failed + cancelled + running + waiting`` holds between any two
    calls. Everything here is called on one thread.

    Args:
        queue_capacity: requests that may wait at once.
        clock: tells the time, in seconds.

    Attributes:
        accepted: requests ever accepted.
        running: requests that have rows.
    """

    def __init__(self, queue_capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue_capacity = queue_capacity
        self._clock = clock
        self._open: dict[int, _OpenRequest] = {}
        self._ended: Counter[EndReason] = Counter()
        self._mean_running_seconds = _FIRST_GUESS_SECONDS
        self._mean_running_together = 1.0
        self.accepted = 0
        self.running = 0

    @property
    def waiting(self) -> int:
        """Requests without rows yet."""
        return len(self._open) - self.running

    @property
    def finished(self) -> int:
        """Requests that ran to their end."""
        return self._ended[EndReason.FINISHED]

    @property
    def failed(self) -> int:
        """Requests that ended with an error."""
        return self._ended[EndReason.FAILED]

    @property
    def cancelled(self) -> int:
        """Requests that were dropped, by their client or because their time was up."""
        return self._ended[EndReason.CANCELLED] + self._ended[EndReason.EXPIRED]

    def open_among(self, request_ids: Iterable[int]) -> list[int]:
        """Those of the requests that have not ended."""
        return [request_id for request_id in request_ids if request_id in self._open]

    def refusal(self, count: int = 1) -> QueueFullError | None:
        """Why so many requests find no room in the queue now; None where they do."""
        if self.waiting + count <= self._queue_capacity:
            return None
        return QueueFullError(
            f"the queue has no room for {count} more: {self.waiting} of "
            f"{self._queue_capacity} places are taken",
            retry_after_seconds=self._retry_after_seconds(),
        )

    def accept(
        self, requests: Sequence[DecodeRequest], until_seconds: float | None = None
    ) -> EventStream:
        """Accept all of the requests or none.

        Args:
            requests: to accept.
            until_seconds: see :meth:`app.engine.client.EngineClient.submit`.

        Returns:
            Where their events will come.

        Raises:
            QueueFullError: the queue has no room for all of them, or is so long that their
                time would be up before they came to their end.
            ValueError: an id is in use.
        """
        if (error := self.refusal(len(requests))) is not None:
            raise error
        self._check_time(requests)
        ids = {request.request_id for request in requests}
        if len(ids) < len(requests) or not self._open.keys().isdisjoint(ids):
            raise ValueError("a request's id is already in use")
        stream = EventStream(len(requests), until_seconds)
        now = self._clock()
        for request_id in ids:
            self._open[request_id] = _OpenRequest(stream, now)
        self.accepted += len(requests)
        return stream

    def start(self, request_ids: Iterable[int]) -> None:
        """The requests got their rows."""
        now = self._clock()
        for request_id in request_ids:
            request = self._open.get(request_id)
            if request is not None and request.started_at is None:
                request.started_at = now
                self.running += 1

    def deliver(self, event: TokensEvent) -> None:
        """Pass tokens on to whoever waits for them."""
        request = self._open.get(event.request_id)
        if request is not None:
            request.stream.deliver(event)

    def end(self, event: EndEvent) -> None:
        """Write a request off, and tell whoever waits for it."""
        request = self._open.pop(event.request_id, None)
        if request is None:
            return
        if request.started_at is not None:
            together, self.running = self.running, self.running - 1
            if event.reason is EndReason.FINISHED:
                seconds = self._clock() - request.started_at
                self._mean_running_seconds += _MEAN_WEIGHT * (seconds - self._mean_running_seconds)
                more = together - self._mean_running_together
                self._mean_running_together += _MEAN_WEIGHT * more
        self._ended[event.reason] += 1
        request.stream.deliver(event)

    def end_all(self, reason: EndReason, message: str = "") -> int:
        """End every open request without the engine; returns how many these were."""
        now = self._clock()
        left = list(self._open.items())
        for request_id, request in left:
            begun_at = now if request.started_at is None else request.started_at
            self.end(EndEvent(request_id, reason, begun_at - request.submitted_at, None, message))
        return len(left)

    def _check_time(self, requests: Sequence[DecodeRequest]) -> None:
        """Refuse what would be begun too late, and would keep others from their time for nothing.

        Where nobody waits, all are accepted: so the expectation cannot lock everybody out.
        """
        if self.waiting == 0 or self.finished < _ENOUGH_TO_JUDGE_BY:
            return
        expected_seconds = self._queue_seconds() + self._mean_running_seconds
        seconds = min(request.timeout_seconds for request in requests) - DEADLINE_GRACE_SECONDS
        if expected_seconds > _USABLE_SHARE * seconds:
            raise QueueFullError(
                f"the queue is {expected_seconds:.1f} seconds long, too long for the "
                f"{max(0.0, seconds):.1f} seconds that the request has",
                retry_after_seconds=self._retry_after_seconds(),
            )

    def _queue_seconds(self) -> float:
        """When the queue will have been worked off: Little's law over the requests that run."""
        # Of a burst into an idle engine, none runs yet.
        together = max(1.0, self.running, self._mean_running_together)
        return self.waiting * self._mean_running_seconds / together

    def _retry_after_seconds(self) -> int:
        return min(_MAX_RETRY_AFTER_SECONDS, max(1, round(self._queue_seconds())))
