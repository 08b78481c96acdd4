"""From decode requests to their tokens: deadlines, cancellation, times and token metrics.

Everything that decodes anything goes through :class:`Decoding`, whatever API dialect asked.
"""

import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from app.engine.client import EngineClient
from app.engine.request import (
    DEADLINE_GRACE_SECONDS,
    BeamTrace,
    DecodeRequest,
    DecodingParams,
    EndEvent,
    EndReason,
    SavedState,
    TokensEvent,
)
from app.exceptions import DrainingError, EngineFailedError
from app.logs import note
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
        first_token_seconds: from submitting until the first token was chosen; the whole time
            where there was none.
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

    def request(
        self,
        model: str,
        prompt: Sequence[int],
        params: DecodingParams,
        deadline: Deadline,
        *,
        stream: bool,
        resume: SavedState | None = None,
        revision: int = 0,
    ) -> DecodeRequest:
        """A decode request with an id of its own, to be submitted now.

        Args:
            model: name of the model.
            prompt: token ids as the model reads them.
            params: how to choose tokens.
            deadline: of the client's request.
            stream: whether tokens are wanted one by one, or each output whole.
            resume: the state before the prompt; None is that of no text.
            revision: of the model that the prompt was tokenized for.
        """
        timeout_seconds = deadline.remaining_seconds() + DEADLINE_GRACE_SECONDS
        return DecodeRequest(
            next(self._ids),
            model,
            tuple(prompt),
            params,
            timeout_seconds,
            stream,
            resume,
            revision,
        )

    def start(
        self,
        model: str,
        requests: Sequence[DecodeRequest],
        deadline: Deadline,
        input_tokens: int | None = None,
    ) -> "Decoding":
        """Submit all texts of one client's request, or none.

        Args:
            model: name of the model.
            requests: for its texts.
            deadline: of the client's request.
            input_tokens: what counts as read; None counts each request's prompt.

        Raises:
            QueueFullError: the queue has no room for all of the requests.
            DrainingError: the service shuts down.
            NotReadyError: the engine is not running.
        """
        if input_tokens is None:
            input_tokens = sum(len(request.prompt) for request in requests)
        return Decoding(self._client, self._metrics, model, requests, deadline, input_tokens)


class Decoding:
    """One client's request while it is decoded: all of its texts, one deadline.

    To be walked over once, inside ``with``, which drops what the engine still works on
    whatever happens to the caller: an error, its client goes away. It gives the tokens as they
    come, but those of released requests, and raises:

    - EngineFailedError: the engine failed at one of the texts;
    - DrainingError: the service shut down;
    - DeadlineError: the time is up.

    Attributes:
        requests: the decode requests of its texts, possibly none.
        input_tokens: what counts as read.
        beam_traces: how their searches went, by id, of those that have ended and had asked.
    """

    def __init__(
        self,
        client: EngineClient,
        metrics: Metrics,
        model: str,
        requests: Sequence[DecodeRequest],
        deadline: Deadline,
        input_tokens: int,
    ) -> None:
        self.requests = tuple(requests)
        self.input_tokens = input_tokens
        self.beam_traces: dict[int, BeamTrace] = {}
        self._client = client
        self._metrics = metrics
        self._model = model
        self._deadline = deadline
        self._open = {request.request_id for request in requests}
        self._streamed = {request.request_id for request in requests if request.stream}
        self._released: set[int] = set()
        self._started_at = time.monotonic()
        self._queue_seconds: list[float] = []
        self._first_token_seconds: list[float] = []
        self._interval_seconds = metrics.token_interval_seconds.labels(model)
        self._last_token_at: dict[tuple[int, int], float] = {}
        self._output_tokens = 0
        if requests:
            self._events = aiter(client.submit(requests, deadline.at_seconds))
            metrics.input_tokens.labels(model).inc(input_tokens)
            note(input_tokens=input_tokens, texts=len(requests))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._open:
            self._client.cancel(self._open)

    def release(self, request_id: int) -> None:
        """Stop decoding one of the requests, because its outputs are complete as they are."""
        self._released.add(request_id)
        self._client.cancel([request_id])

    def count(self, output_tokens: int) -> Usage:
        """Count the tokens of the answer, which is complete; returns what the client is told."""
        self._metrics.output_tokens.labels(self._model).inc(output_tokens)
        note(output_tokens=output_tokens)
        return Usage(self.input_tokens, output_tokens)

    def timings(self) -> Timings:
        """Times until now."""
        total_seconds = time.monotonic() - self._started_at
        queue_seconds = min(self._queue_seconds, default=0.0)
        first_token_seconds = min(self._first_token_seconds, default=total_seconds)
        note(
            queue_ms=round(1000 * queue_seconds, 3),
            first_token_ms=round(1000 * first_token_seconds, 3),
        )
        return Timings(queue_seconds, first_token_seconds, total_seconds)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokensEvent:
        while self._open:
            try:
                event = await anext(self._events)
            except TimeoutError:
                raise self._deadline.error() from None
            if isinstance(event, EndEvent):
                self._close(event)
            elif event.request_id not in self._released:
                # Told at once: the client may go away, and never hear of a whole answer.
                self._output_tokens += len(event.tokens)
                note(output_tokens=self._output_tokens)
                if event.request_id in self._streamed:
                    self._observe_interval(event)
                return event
        raise StopAsyncIteration

    def _close(self, event: EndEvent) -> None:
        self._open.discard(event.request_id)
        self._require_an_answer(event)
        self._queue_seconds.append(event.queue_seconds)
        self._metrics.queue_seconds.labels(self._model).observe(event.queue_seconds)
        if event.first_token_seconds is not None:
            self._first_token_seconds.append(event.first_token_seconds)
        if not self._open and self._first_token_seconds:
            first_token_seconds = min(self._first_token_seconds)
            self._metrics.first_token_seconds.labels(self._model).observe(first_token_seconds)
        if event.beam_trace is not None:
            self.beam_traces[event.request_id] = event.beam_trace

    def _require_an_answer(self, event: EndEvent) -> None:
        if event.reason is EndReason.FINISHED or event.request_id in self._released:
            return
        if event.reason is EndReason.EXPIRED:
            raise self._deadline.error()
        if event.reason is EndReason.CANCELLED:
            raise DrainingError("the service shut down before the request was finished")
        logger.error("the engine failed at request %d: %s", event.request_id, event.message)
        raise EngineFailedError("the engine failed while it worked on the request")

    def _observe_interval(self, event: TokensEvent) -> None:
        now, key = time.monotonic(), (event.request_id, event.output_index)
        if key in self._last_token_at:
            self._interval_seconds.observe(now - self._last_token_at[key])
        self._last_token_at[key] = now
