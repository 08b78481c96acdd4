"""From decode requests to their tokens: deadlines, cancellation, times and token metrics.

Everything that decodes anything goes through :class:`Decoding`, whatever API dialect asked.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from app.engine.client import EngineClient
from app.engine.request import DecodeRequest, DecodingParams, EndEvent, EndReason, TokenEvent
from app.exceptions import DrainingError, EngineFailedError
from app.metrics import Metrics
from app.service.deadline import Deadline

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer.

    Attributes:
        input_tokens: tokens that the model read.
        output_tokens: tokens of the outputs in the answer.
    """

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Times of one answer.

    Attributes:
        queue_seconds: from submitting until the first of the texts was begun.
        first_token_seconds: from submitting until the first token arrived.
        total_seconds: from submitting until the answer was complete.
    """

    queue_seconds: float
    first_token_seconds: float
    total_seconds: float


class Decoder:
    """Makes :class:`Decoding` objects over one engine.

    Args:
        client: the engine.
        metrics: where tokens and times are counted.
    """

    def __init__(self, client: EngineClient, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics
        self._ids = itertools.count(1)

    def request(self, model: str, prompt: Sequence[int], params: DecodingParams) -> DecodeRequest:
        """A decode request with an id of its own."""
        return DecodeRequest(next(self._ids), model, tuple(prompt), params)

    def start(
        self, model: str, requests: Sequence[DecodeRequest], deadline: Deadline
    ) -> "Decoding":
        """The decoding of one client's request; nothing is submitted before its first token."""
        return Decoding(self._client, self._metrics, model, requests, deadline)


class Decoding:
    """One client's request while it is decoded: all of its texts, one deadline.

    Use :meth:`tokens` once, inside :func:`contextlib.aclosing`, so that whatever happens to the
    caller (an error, its client goes away) drops what the engine still works on.

    Attributes:
        requests: the decode requests of its texts, possibly none.
    """

    def __init__(
        self,
        client: EngineClient,
        metrics: Metrics,
        model: str,
        requests: Sequence[DecodeRequest],
        deadline: Deadline,
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._model = model
        self.requests = tuple(requests)
        self._deadline = deadline
        self._open = {request.request_id for request in requests}
        self._beams = {request.request_id for request in requests if request.params.is_beam}
        self._released: set[int] = set()
        self._started_at = time.monotonic()
        self._queue_seconds: list[float] = []
        self._first_token_at: float | None = None
        self._last_token_at: dict[tuple[int, int], float] = {}

    def release(self, request_id: int) -> None:
        """Stop decoding one of the requests, because its outputs are complete as they are."""
        self._released.add(request_id)
        self._client.cancel([request_id])

    def timings(self) -> Timings:
        """Times until now."""
        total_seconds = time.monotonic() - self._started_at
        first_token_at = self._first_token_at
        return Timings(
            queue_seconds=min(self._queue_seconds, default=0.0),
            first_token_seconds=(
                total_seconds if first_token_at is None else first_token_at - self._started_at
            ),
            total_seconds=total_seconds,
        )

    async def tokens(self) -> AsyncGenerator[TokenEvent, None]:
        """Submit everything and yield the tokens as they come, those of released requests not.

        Raises:
            QueueFullError: the queue has no room for all of the requests.
            DrainingError: the service shuts down.
            NotReadyError: the engine is not running.
            EngineFailedError: the engine failed at one of them.
            DeadlineError: the time is up.
        """
        if not self.requests:
            return
        events = self._client.submit(self.requests)
        self._metrics.input_tokens.labels(self._model).inc(
            sum(len(request.prompt) for request in self.requests)
        )
        try:
            while self._open:
                # The timeout holds for the wait alone: around a `yield` it would interrupt
                # the caller's own code.
                async with asyncio.timeout_at(self._deadline.at_seconds):
                    event = await anext(events)
                if isinstance(event, EndEvent):
                    self._close(event)
                elif event.request_id not in self._released:
                    self._observe(event)
                    yield event
        except TimeoutError:
            raise self._deadline.error() from None
        finally:
            if self._open:
                self._client.cancel(self._open)

    def _close(self, event: EndEvent) -> None:
        self._open.discard(event.request_id)
        self._queue_seconds.append(event.queue_seconds)
        self._metrics.queue_seconds.labels(self._model).observe(event.queue_seconds)
        if event.reason is EndReason.FAILED:
            logger.error("the engine failed at request %d: %s", event.request_id, event.message)
            raise EngineFailedError("the engine failed while it worked on the request")
        if event.reason is EndReason.CANCELLED and event.request_id not in self._released:
            raise DrainingError("the service shut down before the request was finished")

    def _observe(self, event: TokenEvent) -> None:
        now = time.monotonic()
        if self._first_token_at is None:
            self._first_token_at = now
            self._metrics.first_token_seconds.labels(self._model).observe(now - self._started_at)
        key = (event.request_id, event.output_index)
        last_token_at = self._last_token_at.get(key)
        # A beam search sends all of its tokens at once: there is no time between them.
        if last_token_at is not None and event.request_id not in self._beams:
            self._metrics.token_interval_seconds.labels(self._model).observe(now - last_token_at)
        self._last_token_at[key] = now
