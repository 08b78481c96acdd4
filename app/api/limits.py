"""The limit on the size of a request's body.

Starlette has a middleware of its own for this, but it answers in plain text whenever the size
is declared, and this service answers every error as ``application/problem+json``.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import problem_of, told
from app.exceptions import BodyTooLargeError


class BodyLimitMiddleware:
    """Answers 413 for a body that is declared or turns out larger than the limit.

    Args:
        app: the application behind.
        max_body_bytes: the limit.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._declared_bytes(scope) > self._max_body_bytes:
            await told(scope, problem_of(self._too_large()))(scope, receive, send)
            return
        received_bytes = 0

        async def receive_within_limit() -> Message:
            nonlocal received_bytes
            message = await receive()
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
