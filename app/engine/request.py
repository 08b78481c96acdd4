"""What goes into the engine and what comes out: frozen data that knows neither HTTP nor text."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from models.decoding.params import (
    BeamTrace,
    DecodingParams,
    FinishReason,
    SavedState,
    StateReturn,
)

__all__ = [
    "DEADLINE_GRACE_SECONDS",
    "DEFAULT_LENGTH_PENALTY",
    "MAX_ROWS_PER_REQUEST",
    "BeamTrace",
    "DecodeRequest",
    "DecodingParams",
    "EndEvent",
    "EndReason",
    "EngineStats",
    "Event",
    "FinishReason",
    "Progress",
    "SavedState",
    "StateReturn",
    "StepReport",
    "TokensEvent",
]

MAX_ROWS_PER_REQUEST = 16
"""Widest request: rows of a batch that its beam or its outputs may take."""

DEADLINE_GRACE_SECONDS = 1.0
"""How much later than for the client a request's time is up in the engine."""

DEFAULT_LENGTH_PENALTY = DecodingParams(max_new_tokens=1).length_penalty
"""Alpha of the beam score of a request that names none."""


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """One prompt to continue or one source sentence to translate.

    Attributes:
        request_id: unique in the life of the service.
        model: name of a loaded model.
        prompt: token ids as the model reads them: a language model's prompt with ``<bos>``
            in front, or a source sentence with ``<eos>`` behind; behind a state, the last token
            of its window and what follows it.
        params: how to choose tokens.
        timeout_seconds: the engine drops the request when it is not finished so long after it
            was submitted.
        stream: whether tokens are wanted as they are chosen, or each output as a whole.
        resume: the state that a language model goes on from; None begins with no text.
        revision: which of the model's revisions the prompt was tokenized for: 0 at the start of
            the service, one more with each reload.
    """

    request_id: int
    model: str
    prompt: tuple[int, ...]
    params: DecodingParams
    timeout_seconds: float = float("inf")
    stream: bool = False
    resume: SavedState | None = None
    revision: int = 0

    @property
    def rows(self) -> int:
        """Rows of the batch that it takes at most."""
        return max(self.params.beam_size, self.params.num_outputs)


@dataclass(frozen=True, slots=True)
class TokensEvent:
    """The next tokens of one output, at least one.

    A streamed request gets one event for each token of each output, any other request one for
    each whole output. A beam search cannot be streamed: it sends its best hypotheses, best
    first, when it is over.

    Attributes:
        request_id: of the :class:`DecodeRequest`.
        output_index: which of the request's outputs.
        tokens: token ids.
        logprobs: the model's own log-probability of each.
        finish_reason: set where the last of the tokens ends the output.
        attention: for each token the weight of each source token, where asked for.
        state: where the output stands behind the tokens, where asked for.
    """

    request_id: int
    output_index: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason | None
    attention: tuple[tuple[float, ...], ...] | None = None
    state: SavedState | None = None


class EndReason(enum.StrEnum):
    """How a request left the engine."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """Its time was up."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EndEvent:
    """The last event of every accepted request.

    Attributes:
        request_id: of the :class:`DecodeRequest`.
        reason: how it ended.
        queue_seconds: how long it waited for its rows.
        first_token_seconds: from its submission to its first token, or None without one.
        message: for a failed request, what went wrong.
        beam_trace: for a finished request that asked for it, how its search went.
    """

    request_id: int
    reason: EndReason
    queue_seconds: float
    first_token_seconds: float | None = None
    message: str = ""
    beam_trace: BeamTrace | None = None


Event = TokensEvent | EndEvent


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step of one model did, for the metrics.

    Attributes:
        model: whose step it was.
        rows: rows that advanced by one token.
        seconds: how long it took, reading prompts and sources included. Steps that were made at
            once have an equal share each, and the first of them has all that follows.
        positions_read: positions of prompts and sources that were read.
        positions_attended: source positions that the attention looked at, padding included.
        padding_attended: how many of them are padding.
        prefix_hits: prompts of which the state after a beginning was still known.
        prefix_misses: prompts of which none was.
        prefix_positions: positions that for this reason did not have to be read.
    """

    model: str
    rows: int
    seconds: float
    positions_read: int = 0
    positions_attended: int = 0
    padding_attended: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    prefix_positions: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """What one turn of the engine brought.

    Attributes:
        started: ids of the requests that got their rows.
        events: what is to be told to whom, in order.
        steps: what the models did.
        rows_running: rows in use after it, by model.
    """

    started: tuple[int, ...] = ()
    events: tuple[Event, ...] = ()
    steps: tuple[StepReport, ...] = ()
    rows_running: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's books at one moment.

    ``accepted == finished + failed + cancelled + running + waiting`` always holds.

    Attributes:
        waiting: requests without rows yet.
        running: requests with rows.
        rows_running: rows in use, by model.
        row_budget: rows that one model can have at once.
        accepted: requests ever accepted.
        finished: requests that ran to their end.
        failed: requests that ended with an error.
        cancelled: requests that were dropped, by their client or because their time was up.
        restarts: how often the engine was started anew after it had died.
        last_step_age_seconds: time since the engine last finished a real step.
    """

    waiting: int
    running: int
    rows_running: Mapping[str, int]
    row_budget: int
    accepted: int
    finished: int
    failed: int
    cancelled: int
    restarts: int
    last_step_age_seconds: float
