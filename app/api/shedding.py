"""Load shedding: while the queue is full, requests are refused before anything is done for them.

To read, check and tokenize a request takes ten times as long as to refuse it, and a service that
is asked for many times what it can answer would spend its time on what it refuses in the end.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.body import looks_like
from app.api.errors import ErrorShape, problem_of, told
from app.api.libretranslate.requests import LibreTranslateBody
from app.api.observation import COUNTED_PATHS, count
from app.api.requests import TranslateBody
from app.api.scope import ERROR_SHAPE_SCOPE_KEY, route_path
from app.exceptions import QueueFullError
from app.metrics import NO_MODEL, Metrics

logger = logging.getLogger(__name__)

_QUEUED_PATHS = frozenset({"/generate", "/translate", "/v1/completions"})
"""Whose requests all go through the queue."""
_TELLING_SECONDS = 1.0
_ANSWERS_KEPT = 100
"""They differ in their dialect and in when to try again; to make one takes longer than all else."""
_BYTES_THAT_TELL = 2**16
"""Most bytes of a body that are looked at to see which dialect it is."""


class SheddingMiddleware:
    """Answers 429 while the queue has no room for a single text.

    Requests that are refused here are counted like others, but a line in the log tells of all
    of one second: a line for each would take longer than the answer.

    Args:
        app: the application behind.
        queue_full: the refusal of one more text, or None while there is room.
        metrics: where requests are counted.
    """

    def __init__(
        self, app: ASGIApp, queue_full: Callable[[], QueueFullError | None], metrics: Metrics
    ) -> None:
        self._app = app
        self._queue_full = queue_full
        self._metrics = metrics
        self._untold = 0
        self._answers: dict[Hashable, Response] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["method"] == "POST":
            path = route_path(scope)
            if path in _QUEUED_PATHS and (error := self._queue_full()) is not None:
                if path == "/translate" and ERROR_SHAPE_SCOPE_KEY not in scope:
                    await _find_shape(scope, receive)
                self._count(COUNTED_PATHS[path], error)
                await self._answer(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _count(self, endpoint: str, error: QueueFullError) -> None:
        count(self._metrics, endpoint, NO_MODEL, error.code, seconds=0.0)
        if not self._untold:
            asyncio.get_running_loop().call_later(_TELLING_SECONDS, self._tell, error.code)
        self._untold += 1

    def _answer(self, scope: Scope, error: QueueFullError) -> Response:
        key = scope.get(ERROR_SHAPE_SCOPE_KEY), str(error), error.retry_after_seconds
        if key not in self._answers:
            if len(self._answers) == _ANSWERS_KEPT:
                self._answers.clear()
            self._answers[key] = told(scope, problem_of(error))
        return self._answers[key]

    def _tell(self, outcome: str) -> None:
        requests, self._untold = self._untold, 0
        logger.info("requests refused", extra={"outcome": outcome, "requests": requests})


async def _find_shape(scope: Scope, receive: Receive) -> None:
    """By the beginning of the body, where two dialects share a path."""
    content, more = b"", True
    while more and len(content) < _BYTES_THAT_TELL:
        message = await receive()
        content += message.get("body", b"")
        more = message.get("more_body", False)
    schema = looks_like(content, (TranslateBody, LibreTranslateBody))
    shape: ErrorShape | None = schema.dialect_error
    if shape is not None:
        scope[ERROR_SHAPE_SCOPE_KEY] = shape
