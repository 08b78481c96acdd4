"""Answers that are sent in events while they are made."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Generic, NoReturn

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from starlette.types import Receive, Scope, Send

from app.api.disconnect import ClientGoneError, while_connected
from app.api.errors import CANCELLED, OUTCOME_SCOPE_KEY, ProblemResponse, problem_of
from app.api.events import encode_problem
from app.service.streaming import AnswerStream, Event

_TURN_SECONDS = 0.005
"""How long a stream may send before others have their turn."""


class EventStreamResponse(EventSourceResponse, Generic[Event]):
    """Server-sent events for what a stream of the service gives.

    An error that comes after the first byte is the last event: the same problem that would
    have been the whole answer. The stream is closed whatever happens, also when the client
    goes away.

    Args:
        stream: what the service gives, already under way.
        encode_event: gives its events their form.
        encode_error: gives an error its form.
        keepalive_seconds: how long nothing may be sent before a comment is, so that nobody on
            the way takes the connection for dead.
    """

    def __init__(
        self,
        stream: AnswerStream[Event],
        encode_event: Callable[[Event], bytes],
        keepalive_seconds: float,
        encode_error: Callable[[ProblemResponse], bytes] = encode_problem,
    ) -> None:
        super().__init__((), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._stream = stream
        self._encode_event = encode_event
        self._encode_error = encode_error
        self._keepalive_seconds = keepalive_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with aclosing(self._stream):
            try:
                await while_connected(scope, receive, self._send_all(scope, send))
            except ClientGoneError:
                scope[OUTCOME_SCOPE_KEY] = CANCELLED

    async def _send_all(self, scope: Scope, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        body = _Body(send, self._keepalive_seconds)
        try:
            async for event in self._stream:
                await body.send(self._encode_event(event))
        except Exception as error:
            answer = problem_of(error)
            scope[OUTCOME_SCOPE_KEY] = answer.code
            await body.send(self._encode_error(answer))
        finally:
            body.close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Body:
    """Sends the chunks of a body, and a comment whenever there was none for a while."""

    def __init__(self, send: Send, keepalive_seconds: float) -> None:
        self._send = send
        self._keepalive_seconds = keepalive_seconds
        self._sending = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._yielded_at = self._loop.time()
        self._pinger = asyncio.ensure_future(self._ping())

    async def send(self, chunk: bytes) -> None:
        async with self._sending:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._sent_at = self._loop.time()
        if self._sent_at - self._yielded_at > _TURN_SECONDS:
            # Sending need not wait, nor need what is sent: a stream that was held up, or whose
            # client is gone, would otherwise stop everybody else until it has caught up.
            await asyncio.sleep(0)
            self._yielded_at = self._loop.time()

    def close(self) -> None:
        self._pinger.cancel()

    async def _ping(self) -> NoReturn:
        while True:
            quiet_seconds = self._loop.time() - self._sent_at
            if quiet_seconds >= self._keepalive_seconds:
                await self.send(KEEPALIVE_COMMENT)
            else:
                await asyncio.sleep(self._keepalive_seconds - quiet_seconds)
