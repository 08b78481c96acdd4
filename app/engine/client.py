"""The asyncio side of the engine: the narrow interface that the service sees."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

from app.engine.request import DecodeRequest, EndEvent, EngineStats, Event


class EngineClient(Protocol):
    """Submit requests, receive their events, cancel, look at the books, close.

    All of it belongs to one event loop and is called on its thread.
    """

    def submit(
        self, requests: Sequence[DecodeRequest], until_seconds: float | None = None
    ) -> AsyncIterator[Event]:
        """Queue all of the requests or none, at once.

        Args:
            requests: with ids that no other one has.
            until_seconds: how long their events are waited for, on the event loop's clock;
                None for ever.

        Returns:
            Their events as they come, interleaved; it ends after each request's
            :class:`EndEvent`, or with a TimeoutError when an event is waited for too long.

        Raises:
            QueueFullError: the queue has no room for all of them.
            DrainingError: the engine was closed.
            NotReadyError: the engine has not started, or has died and is not back yet.
        """
        ...

    def cancel(self, request_ids: Iterable[int]) -> None:
        """Drop requests that wait or run; each still gets its :class:`EndEvent`.

        Unknown and ended requests are ignored.
        """
        ...

    def stats(self) -> EngineStats:
        """The engine's books now."""
        ...

    async def close(self) -> None:
        """Take no more requests, cancel those that are here, end the engine."""
        ...


class EventStream(AsyncIterator[Event]):
    """Events of one :meth:`EngineClient.submit`, for one reader.

    A deque, and at most one future and timer: no task, queue or lock for each token.

    Args:
        open_requests: how many requests were submitted together.
        until_seconds: see :meth:`EngineClient.submit`.
    """

    def __init__(self, open_requests: int, until_seconds: float | None = None) -> None:
        self._open_requests = open_requests
        self._until_seconds = until_seconds
        self._events: deque[Event] = deque()
        self._reader: asyncio.Future[None] | None = None

    def deliver(self, event: Event) -> None:
        """Hand over an event; to be called on the reader's event loop."""
        self._events.append(event)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def __anext__(self) -> Event:
        while not self._events:
            if self._open_requests == 0:
                raise StopAsyncIteration
            await self._wait(asyncio.get_running_loop())
        event = self._events.popleft()
        if isinstance(event, EndEvent):
            self._open_requests -= 1
        return event

    async def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until something is there.

        Raises:
            TimeoutError: the time is up.
        """
        reader = self._reader = loop.create_future()
        timer = None
        if self._until_seconds is not None:
            timer = loop.call_at(self._until_seconds, _expire, reader)
        try:
            await reader
        finally:
            self._reader = None
            if timer is not None:
                timer.cancel()


def _expire(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_exception(TimeoutError())
