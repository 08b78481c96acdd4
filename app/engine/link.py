"""The seam between the HTTP side and an engine: in a process of its own, or on a thread."""

from collections.abc import Callable
from typing import Protocol

from app.engine.messages import EngineMessage, Orders

SECONDS_TO_LEAVE = 5.0
"""How long an engine that is told to stop may finish its step."""


class LinkListener(Protocol):
    """Whoever hears from a link; called on the event loop."""

    def received(self, message: EngineMessage) -> None:
        """The engine said something."""
        ...

    def lost(self, reason: str) -> None:
        """The engine is gone, and nothing more comes over this link.

        Args:
            reason: why, as a sentence for a person.
        """
        ...


class Link(Protocol):
    """One life of an engine, from its start to its end.

    A link calls its listener until it has said that the engine is lost, or until it is closed,
    whichever comes first. An engine that cannot load its models is lost, too.
    """

    def start(self) -> None:
        """Begin to start the engine; to be called on the event loop, once.

        Raises:
            OSError: the machine has no room for it.
        """
        ...

    def send(self, orders: Orders) -> None:
        """Tell the engine something, without ever waiting.

        Orders to an engine that is gone are dropped: its listener will hear of that.
        """
        ...

    def kill(self, reason: str) -> None:
        """End an engine that does not answer any more; its listener hears that it is lost.

        Args:
            reason: why, as a sentence for a person.
        """
        ...

    async def close(self) -> None:
        """End the engine, by force where it does not leave by itself; a second call does nothing.

        An engine that still loads its models is not waited for where that can be helped.
        """
        ...


LinkFactory = Callable[[LinkListener], Link]
"""Makes the link for a new life of the engine."""
