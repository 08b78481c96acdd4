"""One request while it runs in the batched decoder: its rows, and what they have chosen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from models.decoding.beam import Candidate, can_improve, expand, rank
from models.decoding.choice import Choices, RowKinds, RowNeeds
from models.decoding.params import (
    DecodingParams,
    Emission,
    FinishReason,
    GeneratedToken,
    Hypothesis,
    KeptCandidate,
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
        prompt: token ids as :meth:`StepModel.read` takes them.
        params: how to choose tokens.
        stream: whether to emit each token as it is chosen, or outputs as a whole. Beam searches
            do the latter always.
        is_dropped: whether it left before its prompt was read.
    """

    key: int
    prompt: Sequence[int]
    params: DecodingParams
    stream: bool = False
    is_dropped: bool = False

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
    text: list[int] = field(default_factory=list)
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
        "_finished", "_needs_text", "_places", "failure", "first_row", "inputs", "length",
        "parents", "rows", "task", "trace",
    )  # fmt: skip

    def __init__(self, task: DecodingTask, continues_prompt: bool) -> None:
        self.task = task
        # Only a repetition penalty looks back.
        self._needs_text = task.params.repetition_penalty != 1.0
        text = list(task.prompt) if continues_prompt and self._needs_text else []
        self.rows = [_Row(index, list(text)) for index in range(task.first_rows)]
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
                uniform = uniform_number(seed, self.length) if params.is_sampled else 0.0
                kinds.special[index] = RowNeeds(params, uniform, row.text)

    def keep_all(self) -> None:
        """Go on with the rows as they are: another request is leaving."""
        first = self.first_row
        self.parents = list(range(first, first + len(self.rows)))

    def drop(self) -> None:
        """Give up all rows."""
        self.rows, self.parents, self.inputs = [], [], []

    def advance(self, choices: Choices) -> list[Emission]:
        """Take over what the step has chosen; return what is to be told."""
        self.length += 1
        if self.task.params.is_beam:
            return self._advance_beam(choices)
        return self._advance_rows(choices)

    def _advance_rows(self, choices: Choices) -> list[Emission]:
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
            reason = None
            if token == EOS_ID or at_limit:
                reason = FinishReason.END if token == EOS_ID else FinishReason.LENGTH
            else:
                self.rows.append(row)
                self.parents.append(index)
                self.inputs.append(token)
                if self._needs_text:
                    row.text.append(token)
            if stream or reason is not None:
                emissions.append(Emission(row.output_index, tuple(row.tokens), reason))
                row.tokens = []
        return emissions

    def _advance_beam(self, choices: Choices) -> list[Emission]:
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
                self._finished.append(complete_hypothesis(tokens, reason, params.length_penalty))
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
