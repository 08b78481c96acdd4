"""Clients that take more than their share: too many connections, answers that nobody reads.

uvicorn's own limit on connections answers in plain text, and it waits for ever for a client that
does not read.
"""

import asyncio
import logging
import resource
from collections.abc import Callable
from typing import Any, ClassVar

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.api.errors import problem_of, told
from app.api.scope import route_path
from app.exceptions import TooManyConnectionsError
from app.settings import Settings

logger = logging.getLogger(__name__)

_REFUSED_AT_ONCE = 200
"""So many connections beyond the limit are told why they are not served; others are cut off."""
_OTHER_FILES = 200
"""Files that a service has open beside its connections, more than ever were counted."""
_HEALTH = "/health/"


class CrowdProtocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it, for clients of whom none can crowd out the others.

    Attributes:
        max_connections: further ones are answered with 503, but for the health pages.
        send_timeout_seconds: a client that takes nothing for so long, while an answer waits for
            it, is cut off.
        drain_timeout_seconds: a request that is not here so long after the service began to shut
            down is not waited for.
        on_refusal: called for each request that is answered with 503.
    """

    max_connections: ClassVar[int]
    send_timeout_seconds: ClassVar[float]
    drain_timeout_seconds: ClassVar[float]
    on_refusal: ClassVar[Any]  # mypy takes a Callable for a method

    _patience: asyncio.TimerHandle | None = None
    _unsent_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Serve the connection, refuse its requests, or cut it off."""
        super().connection_made(transport)
        excess = len(self.connections) - self.max_connections
        if excess > _REFUSED_AT_ONCE:
            transport.abort()
        elif excess > 0:
            self.app = _Refusing(self.app, self._is_crowded, self._turn_away)

    def _is_crowded(self) -> bool:
        return len(self.connections) > self.max_connections

    def _turn_away(self) -> TooManyConnectionsError:
        self.on_refusal()
        return TooManyConnectionsError(
            f"the service has {self.max_connections} connections and takes no more"
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._be_patient()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More of an answer waits than the transport likes to keep."""
        super().pause_writing()
        self._watch_answer()

    def resume_writing(self) -> None:
        """The client has taken what waited."""
        self._be_patient()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one that still takes its answer is not idle."""
        if not self.transport.is_closing() and self.transport.get_write_buffer_size():
            if self._patience is None:
                self._watch_answer()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """Finish the answer, but do not wait for ever for the rest of a request."""
        super().shutdown()
        self.loop.call_later(self.drain_timeout_seconds, self._give_up_half)

    def _give_up_half(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_started:
            self.transport.close()

    def _be_patient(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _watch_answer(self) -> None:
        """Look again later whether anything was taken of what waits now."""
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self._patience = self.loop.call_later(self.send_timeout_seconds, self._look_at_answer)

    def _look_at_answer(self) -> None:
        unsent, self._patience = self.transport.get_write_buffer_size(), None
        if not unsent:
            return
        if unsent < self._unsent_bytes:
            self._watch_answer()
        else:
            self.transport.abort()


class _Refusing:
    """Answers requests with 503 as long as there is a crowd, but those for the health pages."""

    def __init__(
        self,
        app: ASGIApp,
        is_crowded: Callable[[], bool],
        refuse: Callable[[], TooManyConnectionsError],
    ) -> None:
        self._app = app
        self._is_crowded = is_crowded
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if route_path(scope).startswith(_HEALTH) or not self._is_crowded():
            await self._app(scope, receive, send)
            return
        answer = told(scope, problem_of(self._refuse()))
        answer.headers["Connection"] = "close"
        await answer(scope, receive, send)


def crowd_protocol(
    settings: Settings, on_refusal: Callable[[], object] = lambda: None
) -> type[CrowdProtocol]:
    """The protocol with the limits of the settings: see :class:`CrowdProtocol`."""
    names = ("max_connections", "send_timeout_seconds", "drain_timeout_seconds")
    limits = {name: getattr(settings, name) for name in names}
    own = limits | {"on_refusal": staticmethod(on_refusal)}
    return type("Protocol", (CrowdProtocol,), own)


def make_room_for(max_connections: int) -> None:
    """Have this process open as many files as so many connections need, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max_connections + _REFUSED_AT_ONCE + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < needed:
            logger.warning(
                "%d connections need %d open files, and this process may have %d: raise its "
                "limit (ulimit -n)",
                max_connections,
                needed,
                allowed,
            )
