"""Counts every request to the endpoints that do the work, and tells it in one line of the log."""

import asyncio
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.admission import key_name
from app.api.errors import CANCELLED, OUTCOME_SCOPE_KEY
from app.api.scope import route_path
from app.logs import gathered_facts
from app.metrics import NO_MODEL, Metrics

logger = logging.getLogger(__name__)

MODEL_SCOPE_KEY = "gatehouse.model"
"""Where a route leaves the name of the model that answers: always that of a loaded one."""

OK = "ok"
COUNTED_PATHS = {
    "/generate": "generate",
    "/translate": "translate",
    "/bleu": "bleu",
    "/v1/completions": "completions",
    "/detect": "detect",
}
_REJECTIONS = frozenset({"queue_full", "rate_limit_exceeded", "draining", "not_ready"})


class ObservationMiddleware:
    """Writes one request's outcome into the metrics and the log when it is over.

    Args:
        app: the application behind.
        metrics: what to write into.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        endpoint = COUNTED_PATHS.get(route_path(scope)) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        started_at = time.monotonic()
        # Decided only at the end: an answer in events may fail when it has long begun.
        outcome = "internal_error"
        status: int | None = None

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with gathered_facts() as facts:
            try:
                await self._app(scope, receive, send_and_see)
                outcome = scope.get(OUTCOME_SCOPE_KEY, OK)
            except asyncio.CancelledError:
                outcome = CANCELLED
                raise
            finally:
                model = scope.get(MODEL_SCOPE_KEY, NO_MODEL)
                seconds = time.monotonic() - started_at
                count(self._metrics, endpoint, model, outcome, seconds=seconds)
                told = {"endpoint": endpoint, "model": model, "outcome": outcome, "status": status}
                if (name := key_name(scope)) is not None:
                    told["key_name"] = name
                times = {"total_ms": round(1000 * seconds, 3)}
                logger.info("request", extra=told | times | facts)


def count(metrics: Metrics, endpoint: str, model: str, outcome: str, *, seconds: float) -> None:
    """Write a request that is over into the metrics.

    Args:
        metrics: what to write into.
        endpoint: of :data:`COUNTED_PATHS`.
        model: that answered, or :data:`app.metrics.NO_MODEL`.
        outcome: :data:`OK` or an error's code.
        seconds: that it took.
    """
    metrics.requests.labels(endpoint, model, outcome).inc()
    metrics.request_seconds.labels(endpoint).observe(seconds)
    if outcome in _REJECTIONS:
        metrics.rejected.labels(outcome).inc()
    elif outcome == CANCELLED:
        metrics.cancelled.labels(endpoint).inc()
    elif outcome == "deadline_exceeded":
        metrics.expired.labels(endpoint).inc()
