"""Answers what nobody expected to go wrong, where the answer still gets all that others have."""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import unexpected_error

logger = logging.getLogger(__name__)


class UnexpectedErrorMiddleware:
    """Logs an exception that nobody answered, under its request's id, and answers with 500.

    Starlette's own place for that lies outside all middleware: such an answer would lack the
    request's id and the headers that browsers look at.

    Args:
        app: the application behind.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        has_begun = scope["type"] != "http"

        async def send_and_see(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        except Exception:
            if has_begun:  # the server cuts the connection: a half answer must not look whole
                raise
            logger.exception("a request met an unexpected error")
            await unexpected_error(scope)(scope, receive, send)
