"""The limits on a request's body: its size, and the time in which it must come.

Starlette has a middleware of its own for this, but it answers in plain text whenever the size
is declared, and this service answers every error as ``application/problem+json``.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import problem_of, told
from app.exceptions import BodyTooLargeError, SlowRequestError


class BodyLimitMiddleware:
    """Answers 413 for a body that is too large, 408 for one that takes too long to come.

    Args:
        app: the application behind.
        max_body_bytes: the limit, for the declared and the real size.
        timeout_seconds: from the request's head to the end of its body.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, timeout_seconds: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._declared_bytes(scope) > self._max_body_bytes:
            await told(scope, problem_of(self._too_large()))(scope, receive, send)
            return
        received_bytes = 0
        is_complete = False
        latest = asyncio.get_running_loop().time() + self._timeout_seconds

        async def receive_within_limit() -> Message:
            nonlocal received_bytes, is_complete
            if is_complete:
                # What is waited for now is the client's going away.
                return await receive()
            try:
                async with asyncio.timeout_at(latest):
                    message = await receive()
            except TimeoutError:
                raise SlowRequestError(
                    f"the request did not arrive within {self._timeout_seconds:g} seconds"
                ) from None
            is_complete = not message.get("more_body", False)
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_body_bytes:
                raise self._too_large()
            return message

        await self._app(scope, receive_within_limit, send)

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"the body has more than {self._max_body_bytes} bytes")

    @staticmethod
    def _declared_bytes(scope: Scope) -> int:
        for name, value in scope["headers"]:
            if name == b"content-length":
                return int(value) if value.isdigit() and len(value) < 20 else 0
        return 0
