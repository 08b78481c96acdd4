"""Every request has an id, which its answer and its log lines carry."""

import os
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars

HEADER = "X-Request-ID"
_NAME = HEADER.lower().encode()
_VALID = re.compile(rb"[\x21-\x7e]{1,128}")
"""Printable, and no longer than a log line bears."""


class RequestIdMiddleware:
    """Takes a request's id from its header, or makes one, and answers with it.

    Args:
        app: the application behind.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == _NAME), b"")
        request_id = given if _VALID.fullmatch(given) else os.urandom(16).hex().encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (_NAME, request_id)]
            await send(message)

        tokens = bind_contextvars(request_id=request_id.decode())
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            reset_contextvars(**tokens)
