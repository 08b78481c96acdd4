"""Answers that come in events."""

from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Generic, Protocol, Self, TypeVar

Event = TypeVar("Event")
Event_co = TypeVar("Event_co", covariant=True)


class EventSource(Protocol[Event_co]):
    """A request under way, as :class:`app.service.generation.Generation` is."""

    def events(self) -> AsyncGenerator[Event_co, None]:
        """What it says, as it comes."""
        ...


class AnswerStream(Generic[Event]):
    """The events of one client's request, which is already under way.

    To be walked over once and closed in any case, with :func:`contextlib.aclosing`: that drops
    what the engine still works on.

    Args:
        events: yields the events; raises what ends them early.
        at_close: what is to be done at the end.
    """

    def __init__(self, events: AsyncGenerator[Event, None], at_close: ExitStack) -> None:
        self._events = events
        self._at_close = at_close

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Give up what is not finished; a second call changes nothing."""
        with self._at_close:
            await self._events.aclose()
