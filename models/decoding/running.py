"""One request while it runs in the batched decoder: its rows, and what they have chosen."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from models.decoding.beam import Candidate, can_improve, expand, rank
from models.decoding.capture import StateCapture
from models.decoding.choice import Choices, RowKinds, RowNeeds
from models.decoding.params import (
    REPETITION_WINDOW,
    DecodingParams,
    Emission,
    FinishReason,
    GeneratedToken,
    Hypothesis,
    KeptCandidate,
    SavedState,
    StateReturn,
    complete_hypothesis,
    emit_hypotheses,
    normalised_score,
)
from models.decoding.sampling import uniform_number
from models.tokenizers import EOS_ID


@dataclass(frozen=True, slots=True)
class DecodingTask:
    """One request for the decoder.

    Attributes:
        key: the caller's name for it, unique among those in the decoder.
        prompt: token ids as :meth:`StepModel.read` takes them; behind a state its last token,
            which it has not seen, and what follows.
        params: how to choose tokens.
        stream: whether to emit each token as it is chosen, or outputs as a whole. Beam searches
            do the latter always.
        is_dropped: whether it left before its prompt was read.
        resume: the state that it goes on from; None begins with no text.
    """

    key: int
    prompt: Sequence[int]
    params: DecodingParams
    stream: bool = False
    is_dropped: bool = False
    resume: SavedState | None = None

    @property
    def rows(self) -> int:
        """Rows that it has at most."""
        return 0 if self.is_dropped else max(self.params.beam_size, self.params.num_outputs)

    @property
    def first_rows(self) -> int:
        """Rows that it begins with."""
        return 1 if self.params.is_beam else self.params.num_outputs

    def dropped(self) -> "DecodingTask":
        """The same, marked as dropped. Its key may come again."""
        return replace(self, is_dropped=True, key=-1)


_Trail: TypeAlias = "tuple[GeneratedToken, _Trail] | None"
"""The tokens of a hypothesis, last first, shared with those that continue it."""


@dataclass(slots=True)
class _Row:
    """One row of the batch: a running output, or a live hypothesis of a beam search."""

    output_index: int
    text: deque[int] = field(default_factory=deque)
    tokens: list[GeneratedToken] = field(default_factory=list)
    cumulative: float = 0.0
    trail: _Trail = None


class Running:
    """A request whose prompt was read.

    Args:
        task: the request.
        continues_prompt: whether the prompt's tokens belong to the text of its outputs.

    Attributes:
        rows: the rows that it has, none when it is complete.
        first_row: where they begin in the batch.
        parents: after :meth:`advance`, the row of the last step that each row continues.
        inputs: the token that each row is to be fed.
        length: steps made.
        failure: what went wrong, if anything.
        trace: the steps of the search so far, or None where nobody asked for them.
    """

    __slots__ = (
        "_finished", "_needs_text", "_places", "_position", "_text", "failure", "first_row",
        "inputs", "length", "parents", "rows", "task", "trace",
    )  # fmt: skip

    def __init__(self, task: DecodingTask, continues_prompt: bool) -> None:
        self.task = task
        # Only a repetition penalty looks back, and a state that may meet one elsewhere.
        wants_state = task.params.return_state is not StateReturn.NEVER
        self._needs_text = task.params.repetition_penalty != 1.0 or wants_state
        before = () if task.resume is None else task.resume.window[:-1]
        text = (*before, *task.prompt) if continues_prompt and self._needs_text else ()
        self._text = text[-REPETITION_WINDOW:]
        self._position = 0 if task.resume is None else task.resume.position
        self.rows = [
            _Row(index, deque(self._text, REPETITION_WINDOW)) for index in range(task.first_rows)
        ]
        self.first_row = 0
        self.parents: list[int] = []
        self.inputs: list[int] = []
        self.failure = ""
        self.length = 0
        self._finished: list[Hypothesis] = []
        self.trace: list[tuple[KeptCandidate, ...]] | None = None
        if task.params.return_beam_trace:
            self.trace = []
            self._places: list[int | None] = [None]  # of the live rows in the trace's last step

    @property
    def reserved_rows(self) -> int:
        """Rows that it may still come to have."""
        if self.task.params.is_beam:
            return self.task.params.beam_size - len(self._finished)
        return len(self.rows)

    def describe_rows(self, kinds: RowKinds) -> None:
        """Say what the choice of each row's next token needs."""
        params = self.task.params
        rows = range(self.first_row, self.first_row + len(self.rows))
        if params.return_attention:
            kinds.attended.extend(rows)
        if params.is_beam:
            kinds.beam.extend(rows)
            kinds.beam_width = max(kinds.beam_width, params.beam_size)
        elif params.is_sampled or self._needs_text:
            for index, row in zip(rows, self.rows, strict=True):
                seed = params.output_seed(row.output_index)
                position = self._position + self.length
                uniform = uniform_number(seed, position) if params.is_sampled else 0.0
                kinds.special[index] = RowNeeds(params, uniform, row.text)

    def keep_all(self) -> None:
        """Go on with the rows as they are: another request is leaving."""
        first = self.first_row
        self.parents = list(range(first, first + len(self.rows)))

    def drop(self) -> None:
        """Give up all rows."""
        self.rows, self.parents, self.inputs = [], [], []

    def advance(self, choices: Choices, capture: StateCapture | None = None) -> list[Emission]:
        """Take over what the step has chosen; return what is to be told.

        Args:
            choices: of all rows.
            capture: the states around the step, needed where states are asked for.
        """
        self.length += 1
        if self.task.params.return_state is StateReturn.NEVER:
            capture = None
        if self.task.params.is_beam:
            return self._advance_beam(choices, capture)
        return self._advance_rows(choices, capture)

    def _advance_rows(self, choices: Choices, capture: StateCapture | None) -> list[Emission]:
        stream, rows = self.task.stream, self.rows
        at_limit = self.length == self.task.params.max_new_tokens
        emissions: list[Emission] = []
        if self.trace is not None:
            token, logprob = choices.tokens[self.first_row], choices.logprobs[self.first_row]
            rows[0].cumulative += logprob
            self._trace_step([Candidate(-rows[0].cumulative, 0, token, logprob)], at_limit)
        self.rows, self.parents, self.inputs = [], [], []
        for index, row in enumerate(rows, start=self.first_row):
            token, logprob = choices.tokens[index], choices.logprobs[index]
            if math.isnan(logprob):
                return self._fail()
            row.tokens.append(GeneratedToken(token, logprob, self._attention(index, choices)))
            reason = state = None
            if token == EOS_ID or at_limit:
                reason = FinishReason.END if token == EOS_ID else FinishReason.LENGTH
            if capture is not None and (reason is not None or self._wants_each_state):
                state = self._save(capture, index, row.text, token)
            if reason is None:
                self.rows.append(row)
                self.parents.append(index)
                self.inputs.append(token)
                if self._needs_text:
                    row.text.append(token)
            if stream or reason is not None:
                emissions.append(Emission(row.output_index, tuple(row.tokens), reason, state))
                row.tokens = []
        return emissions

    @property
    def _wants_each_state(self) -> bool:
        return self.task.stream and self.task.params.return_state is StateReturn.EACH_TOKEN

    def _save(self, capture: StateCapture, row: int, text: Sequence[int], token: int) -> SavedState:
        """Where an output stands that chose a token behind this text.

        Behind ``<eos>`` nothing goes on, so that one is taken back.
        """
        if token == EOS_ID:
            window, length = text, self.length - 1
            vectors = capture.before(row)
        else:
            window, length = [*text, token], self.length
            vectors = capture.after(row)
        return SavedState(vectors, tuple(window)[-REPETITION_WINDOW:], self._position + length)

    def _advance_beam(self, choices: Choices, capture: StateCapture | None) -> list[Emission]:
        params, rows, first = self.task.params, self.rows, self.first_row
        span = range(first, first + len(rows))
        # A row without probabilities has NaN for every token, whichever was chosen.
        if any(math.isnan(choices.logprobs[row]) for row in span):
            return self._fail()
        best = expand(
            [row.cumulative for row in rows],
            [choices.candidate_logprobs[row] for row in span],
            [choices.candidates[row] for row in span],
            params.beam_size - len(self._finished),
        )
        if not best:
            return self._fail()
        at_limit = self.length == params.max_new_tokens
        if self.trace is not None:
            self._trace_step(best, at_limit)
        self.rows, self.parents, self.inputs = [], [], []
        for negative, parent, token, logprob in best:
            attention = self._attention(first + parent, choices)
            trail = (GeneratedToken(token, logprob, attention), rows[parent].trail)
            if token == EOS_ID or at_limit:
                reason = FinishReason.END if token == EOS_ID else FinishReason.LENGTH
                tokens = _tokens_of(trail)
                state = None
                if capture is not None:
                    text = (*self._text, *(each.token for each in tokens[:-1]))
                    state = self._save(capture, first + parent, text, token)
                self._finished.append(
                    complete_hypothesis(tokens, reason, params.length_penalty, state)
                )
                continue
            self.rows.append(_Row(0, cumulative=-negative, trail=trail))
            self.parents.append(first + parent)
            self.inputs.append(token)
        if self.rows and can_improve(self.rows[0].cumulative, self._finished, params):
            return []
        self.drop()
        return emit_hypotheses(rank(self._finished, params.num_outputs))

    def _trace_step(self, best: Sequence[Candidate], at_limit: bool) -> None:
        assert self.trace is not None
        going_on = FinishReason.LENGTH if at_limit else None
        alpha = self.task.params.length_penalty
        kept = tuple(
            KeptCandidate(
                self._places[parent],
                token,
                logprob,
                normalised_score(-negative, self.length, alpha),
                FinishReason.END if token == EOS_ID else going_on,
            )
            for negative, parent, token, logprob in best
        )
        self.trace.append(kept)
        self._places = [place for place, one in enumerate(kept) if one.finish_reason is None]

    def _attention(self, row: int, choices: Choices) -> tuple[float, ...] | None:
        weights = choices.attention.get(row)
        # Behind the source's own positions the batch is padded to its longest source.
        return None if weights is None else tuple(weights[: len(self.task.prompt)])

    def _fail(self) -> list[Emission]:
        self.drop()
        self.failure = "the model's probabilities are not numbers"
        return []


def _tokens_of(trail: _Trail) -> tuple[GeneratedToken, ...]:
    tokens = []
    while trail is not None:
        token, trail = trail
        tokens.append(token)
    return tuple(reversed(tokens))
