"""What goes into the engine and what comes out: frozen data that knows neither HTTP nor text."""

import enum
from dataclasses import dataclass

from models.decoding.params import DecodingParams, FinishReason, GeneratedToken

__all__ = [
    "DEFAULT_LENGTH_PENALTY",
    "MAX_ROWS_PER_REQUEST",
    "DecodeRequest",
    "DecodingParams",
    "EndEvent",
    "EndReason",
    "EngineStats",
    "Event",
    "FinishReason",
    "GeneratedToken",
    "TokenEvent",
]

MAX_ROWS_PER_REQUEST = 16
"""Widest request: rows of a batch that its beam or its outputs may take."""

DEFAULT_LENGTH_PENALTY = DecodingParams(max_new_tokens=1).length_penalty
"""Alpha of the beam score of a request that names none."""


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """One prompt to continue or one source sentence to translate.

    Attributes:
        request_id: unique in the life of the service.
        model: name of a loaded model.
        prompt: token ids as the model reads them: a language model's prompt with ``<bos>``
            in front, or a source sentence with ``<eos>`` behind.
        params: how to choose tokens.
    """

    request_id: int
    model: str
    prompt: tuple[int, ...]
    params: DecodingParams


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of one output.

    Greedy and sampled outputs send each token as it is chosen. A beam search sends the tokens
    of its best hypotheses, best first, when it is over.

    Attributes:
        request_id: of the :class:`DecodeRequest`.
        output_index: which of the request's outputs.
        token: the token with its log-probability.
        finish_reason: set on the last token of an output.
    """

    request_id: int
    output_index: int
    token: GeneratedToken
    finish_reason: FinishReason | None


class EndReason(enum.StrEnum):
    """How a request left the engine."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EndEvent:
    """The last event of every accepted request.

    Attributes:
        request_id: of the :class:`DecodeRequest`.
        reason: how it ended.
        queue_seconds: how long it waited before its first step.
        message: for a failed request, what went wrong.
    """

    request_id: int
    reason: EndReason
    queue_seconds: float
    message: str = ""


Event = TokenEvent | EndEvent


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's books at one moment.

    ``accepted == finished + failed + cancelled + running + waiting`` always holds.

    Attributes:
        waiting: requests in the queue.
        running: requests being decoded.
        rows_running: rows of the batch in use.
        row_budget: rows that can run at once.
        accepted: requests ever accepted.
        finished: requests that ran to their end.
        failed: requests that ended with an error.
        cancelled: requests that were cancelled.
        last_step_age_seconds: time since the engine last finished a real step.
    """

    waiting: int
    running: int
    rows_running: int
    row_budget: int
    accepted: int
    finished: int
    failed: int
    cancelled: int
    last_step_age_seconds: float
