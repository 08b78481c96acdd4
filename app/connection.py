"""Limits on a request's way in, where uvicorn has none with httptools: its size and its time.

By itself a connection could stay open for ever without ever asking anything, or send headers
without an end; h11, uvicorn's other parser, bounds their size, but is slower.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.api.scope import WATCH_SCOPE_KEY

MAX_HEAD_BYTES = 64 * 1024
"""Most bytes of a request line and its headers: what h11 takes, too."""
_HEAD_TOO_LARGE = b"431 Request Header Fields Too Large"
_Part = Literal["head", "body"]
_GRACE_SECONDS = 5.0
"""How much later than the application a body that does not come is given up here: it answers."""


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it, for requests that arrive in time and with a bounded head.

    A head that is too large is answered with 431, one that does not come with 408, both in plain
    text, since no path is known yet; then the connection is closed. So is one whose body does
    not come, after the application has answered.

    Attributes:
        receive_timeout_seconds: for the head, and then again for the body.
    """

    receive_timeout_seconds: ClassVar[float] = 30.0

    _awaited: _Part | None = None
    _watched: _Part | None = None
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _is_lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for the first request's head."""
        super().connection_made(transport)
        self._watchers: set[Callable[[], None]] = set()
        self._awaited = "head"
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more, and tell whoever works for the client."""
        self._awaited, self._is_lost = None, True
        self._watch()
        super().connection_lost(exc)
        self._tell_watchers()

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head, and read it."""
        if self._awaited != "body":
            self._awaited = "head"
            self._head_bytes += len(data)
        super().data_received(data)
        if self._awaited == "head" and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_HEAD_TOO_LARGE)
        # Only now: a request that is here in one piece, as nearly all are, needs no timer.
        self._watch()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._awaited = "head"
        super().on_message_begin()
        self.scope[WATCH_SCOPE_KEY] = self._watch_client  # type: ignore[literal-required]  # ours

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self._awaited = "body"
        head_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if head_bytes > MAX_HEAD_BYTES:
            self._refuse(_HEAD_TOO_LARGE)
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body is here."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """It is here as a whole."""
        self._awaited, self._head_bytes = None, 0
        self._watch()
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """A head that began to come during the answer has all of its time from now on."""
        super().on_response_complete()
        if self._watched == "head":
            self._watched = None
            self._watch()

    def _watch_client(self, tell: Callable[[], None]) -> Callable[[], None]:
        """See :data:`app.api.scope.WATCH_SCOPE_KEY`."""
        self._watchers.add(tell)
        if self._is_lost:
            self.loop.call_soon(self._tell_watchers)
        return partial(self._watchers.discard, tell)

    def _tell_watchers(self) -> None:
        while self._watchers:
            self._watchers.pop()()

    def _watch(self) -> None:
        """See to it that what is awaited comes in time."""
        if self._awaited == self._watched:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._watched = self._awaited
        if self._watched is not None:
            grace_seconds = _GRACE_SECONDS if self._watched == "body" else 0.0
            seconds = self.receive_timeout_seconds + grace_seconds
            self._timer = self.loop.call_later(seconds, self._time_out)

    def _time_out(self) -> None:
        self._timer = self._watched = None
        if self.transport.is_closing():
            return
        if self._answers_an_earlier_one():
            self._watch()
        elif self._awaited == "head":
            self._refuse(b"408 Request Timeout")
        else:
            self.transport.close()

    def _answers_an_earlier_one(self) -> bool:
        """Whether the connection still works for a request before the one that is awaited."""
        if self._awaited == "body":
            return bool(self.pipeline)  # and then uvicorn does not read on
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _refuse(self, status: bytes) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(
            b"HTTP/1.1 " + status + b"\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(status), status)
        )
        self.transport.close()


def limited_protocol(receive_timeout_seconds: float) -> type[LimitedProtocol]:
    """The protocol with a time limit.

    Args:
        receive_timeout_seconds: for a head, and then again for its body.
    """
    limits = {"receive_timeout_seconds": receive_timeout_seconds}
    return type("Protocol", (LimitedProtocol,), limits)
