"""The asyncio side of the engine: the narrow interface that the service sees."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

from app.engine.request import DecodeRequest, EngineStats, Event


class EngineClient(Protocol):
    """Submit requests, receive their events, cancel, look at the books, drain."""

    def submit(self, requests: Sequence[DecodeRequest]) -> AsyncIterator[Event]:
        """Queue all of the requests or none, at once.

        Returns:
            Their events as they come, interleaved; it ends after each request's
            :class:`EndEvent`.

        Raises:
            QueueFullError: the queue has no room for all of them.
            DrainingError: the engine takes no more requests.
            NotReadyError: the engine has not started or has died.
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

    async def drain(self, timeout_seconds: float) -> None:
        """Take no more requests, finish what was accepted, cancel the rest at the timeout."""
        ...
