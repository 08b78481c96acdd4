"""One request while it runs in the batched decoder: its rows, and what they have chosen."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap
from operator import itemgetter
from typing import TypeAlias

from models.decoding.beam import BeamSearch, BeamStep, LiveBeams, Weights, rank
from models.decoding.capture import StateCapture
from models.decoding.choice import Choices, RowKinds, RowNeeds
from models.decoding.draws import uniform_number
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
from models.tokenizers import EOS_ID

History: TypeAlias = list[tuple[int, float]] | deque[tuple[int, float]]
"""The tokens that a row has chosen, with their log-probabilities."""
_NOWHERE: deque[tuple[int, float]] = deque(maxlen=0)
"""A search keeps its own history: what its rows seem to choose has no meaning."""


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


@dataclass(slots=True)
class _Output:
    """A running output that is no hypothesis of a beam search: one row.

    Attributes:
        index: its number in the request.
        chosen: its tokens, the last one of the step that :meth:`Running.advance` is told of.
        told: how many of them have been handed out.
        attention: of those that have not, where asked for.
    """

    index: int
    chosen: list[tuple[int, float]] = field(default_factory=list)
    told: int = 0
    attention: list[Weights] = field(default_factory=list)

    def tell(self) -> tuple[GeneratedToken, ...]:
        """The tokens that have not been handed out yet."""
        chosen, weights = self.chosen[self.told :], self.attention
        self.told, self.attention = len(self.chosen), []
        if not weights:
            return tuple(starmap(GeneratedToken, chosen))
        return tuple(GeneratedToken(*one, w) for one, w in zip(chosen, weights, strict=True))


class Running:
    """A request whose prompt was read.

    Args:
        task: the request.
        continues_prompt: whether the prompt's tokens belong to the text of its outputs.

    Attributes:
        is_plain: whether nobody asks for more than tokens: then several steps may be made at once.
        is_watched: whether :meth:`advance` is to be called after every step, and not only after
            those at which one of its rows may have ended.
        is_described: whether the choice of its tokens depends on more than their logits, or more
            than a token is to be chosen.
        rows: in the batch, those that it had before :meth:`advance`.
        parents: after :meth:`advance`, the row of the last step that each row continues.
        inputs: of a search, the token that each row is to be fed; others are fed what they chose.
        row_count: rows that it has, none when it is complete.
        last_step: the step of the batch at which it is at its limit.
        failure: what went wrong, if anything.
        trace: the steps of the search so far, or None where nobody asked for them.
    """

    __slots__ = (
        "_beam_index", "_needs_text", "_outputs", "_places", "_position", "_search", "_text",
        "_total", "failure", "inputs", "is_described", "is_plain", "is_watched", "last_step",
        "parents", "row_count", "rows", "task", "trace",
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
        self._search = BeamSearch(task.params) if task.params.is_beam else None
        self._beam_index = 0
        self._outputs: list[_Output] = []
        if self._search is None:
            self._outputs = [_Output(index) for index in range(task.first_rows)]
        self.row_count = task.first_rows
        self.rows = range(self.row_count)
        self.parents: Sequence[int] = self.rows
        self.last_step = 0
        self.inputs: list[int] = []
        self.failure = ""
        self.trace: list[tuple[KeptCandidate, ...]] | None = None
        if task.params.return_beam_trace:
            self.trace = []
            self._total = 0.0  # of a greedy search, which is a beam of one
            self._places: list[int | None] = [None]  # of the live rows in the trace's last step
        looks, is_search = task.params.return_attention, self._search is not None
        # A search is told of all its steps, and so can trace them.
        is_traced = self.trace is not None and not is_search
        self.is_plain = not (looks or wants_state or is_traced)
        self.is_watched = task.stream or is_search or not self.is_plain
        self.is_described = looks or is_search or self._needs_text or task.params.is_sampled

    @property
    def is_search(self) -> bool:
        """Whether its rows are hypotheses of a beam search."""
        return self._search is not None

    @property
    def length(self) -> int:
        """Steps made, that which :meth:`advance` is told of among them."""
        return len(self._outputs[0].chosen) if self._search is None else self._search.length

    @property
    def steps_left(self) -> int:
        """How many it may still make."""
        return self.task.params.max_new_tokens - self.length

    @property
    def histories(self) -> Sequence[History]:
        """Of each row, where to note what it chooses, before :meth:`advance` is called."""
        if self._search is not None:
            return [_NOWHERE] * self.row_count
        return [output.chosen for output in self._outputs]

    @property
    def stays(self) -> bool:
        """Whether after :meth:`advance` its rows are those that it had, in their order."""
        return self.parents is self.rows or list(self.parents) == list(self.rows)

    def place(self, first_row: int) -> None:
        """Take rows in the batch from this one on."""
        self.rows = range(first_row, first_row + self.row_count)
        self.parents = self.rows

    @property
    def reserved_rows(self) -> int:
        """Rows that it may still come to have."""
        return self.row_count if self._search is None else self._search.width

    def describe_rows(self, kinds: RowKinds) -> None:
        """Say what the choice of each row's next token needs."""
        params = self.task.params
        rows = self.rows
        if params.return_attention:
            kinds.attended.extend(rows)
        if self._search is not None:
            self.join_beams(kinds.beams)
        elif params.is_sampled or self._needs_text:
            kinds.special.update(zip(rows, self.needs(1), strict=True))

    def join_beams(self, beams: LiveBeams) -> BeamSearch:
        """Put the search behind others; returns it."""
        assert self._search is not None
        self._beam_index = len(beams.counts)
        beams.add(self.rows, self._search)
        return self._search

    def needs(self, steps: int) -> Iterator[RowNeeds]:
        """What the choices of each row's next tokens depend on; nothing, where it is a search's."""
        params, position = self.task.params, self._position + self.length
        uniforms = [0.0] * steps
        if self._search is not None:
            yield from [RowNeeds(params, uniforms, ())] * self.row_count
        for output in self._outputs:
            if params.is_sampled:
                seed = params.output_seed(output.index)
                uniforms = [uniform_number(seed, position + step) for step in range(steps)]
            yield RowNeeds(params, uniforms, self._seen_by(output, len(output.chosen)))

    def _seen_by(self, output: _Output, length: int) -> Sequence[int]:
        """The end of an output's text with so many of its tokens, where somebody looks back."""
        if not self._needs_text:
            return ()
        chosen = [token for token, _ in output.chosen[max(length - REPETITION_WINDOW, 0) : length]]
        return [*self._text, *chosen][-REPETITION_WINDOW:]

    def drop(self) -> None:
        """Give up all rows."""
        self.row_count, self._outputs = 0, []
        self.parents, self.inputs = [], []

    def advance(self, choices: Choices, capture: StateCapture | None = None) -> list[Emission]:
        """Take over what the step has chosen; return what is to be told.

        Args:
            choices: of all rows.
            capture: the states around the step, needed where states are asked for.
        """
        if self.task.params.return_state is StateReturn.NEVER:
            capture = None
        if self._search is not None:
            return self._advance_beam(self._search, choices, capture)
        return self._advance_outputs(choices, capture)

    def _advance_outputs(self, choices: Choices, capture: StateCapture | None) -> list[Emission]:
        if self.trace is not None:
            token, logprob = self._outputs[0].chosen[-1]
            self._total += logprob
            step = BeamStep([0], [token], [logprob], [self._total])
            self._trace_step(step, at_limit=self.steps_left == 0)
        emissions: list[tuple[int, Emission]] = []  # with the step of its last token
        going_on: list[_Output] = []
        parents: list[int] = []
        failed_at = self._failed_at
        for row, output in zip(self.rows, self._outputs, strict=True):
            if self.task.params.return_attention:
                output.attention.append(self._attention(row, choices))
            reason = self._reason_of(output)
            if reason is None:
                going_on.append(output)
                parents.append(row)
            if self.task.stream or reason is not None:
                state = self._state_of(output, row, reason, capture)
                emissions += self._tell(output, reason, state)
        self._outputs, self.row_count, self.parents = going_on, len(going_on), parents
        # Step by step, as if each had been told of.
        emissions.sort(key=itemgetter(0))
        told = [emission for step, emission in emissions if step < failed_at]
        return self._fail(told) if failed_at < math.inf else told

    @property
    def _failed_at(self) -> float:
        """At which step an output's log-probability was no number; infinity where each is one."""
        failed = (len(one.chosen) for one in self._outputs if math.isnan(one.chosen[-1][1]))
        return min(failed, default=math.inf)

    def _reason_of(self, output: _Output) -> FinishReason | None:
        """Why an output ends here, if it does."""
        if output.chosen[-1][0] == EOS_ID:
            return FinishReason.END
        is_long = len(output.chosen) == self.task.params.max_new_tokens
        return FinishReason.LENGTH if is_long else None

    def _state_of(
        self, output: _Output, row: int, reason: FinishReason | None, capture: StateCapture | None
    ) -> SavedState | None:
        """Where an output stands, if somebody wants to know."""
        if capture is None or (reason is None and not self._wants_each_state):
            return None
        text = self._seen_by(output, len(output.chosen) - 1)
        return self._save(capture, row, text, output.chosen[-1][0])

    def _tell(
        self, output: _Output, reason: FinishReason | None, state: SavedState | None
    ) -> Iterator[tuple[int, Emission]]:
        """What has not been told of an output, with the steps at which it was settled."""
        told = output.tell()
        steps = len(output.chosen)
        if self.task.stream:
            # Whoever reads a stream gets each token for itself, though several come at once.
            for place, token in enumerate(told[:-1], steps - len(told) + 1):
                yield place, Emission(output.index, (token,), None)
            told = told[-1:]
        yield steps, Emission(output.index, told, reason, state)

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

    def _advance_beam(
        self, search: BeamSearch, choices: Choices, capture: StateCapture | None
    ) -> list[Emission]:
        params = self.task.params
        parents: Sequence[int] = ()
        for step in choices.beams[self._beam_index]:
            if not step.tokens:
                return self._fail()
            parents = self._advance_by_step(search, step, choices, capture)
            if not search.can_improve:
                self.drop()
                return emit_hypotheses(rank(search.finished, params.num_outputs))
        self.row_count, self.inputs = len(parents), search.last_tokens
        first = self.rows.start
        self.parents = [first + parent for parent in parents]
        if choices.places:
            first = choices.places[self._beam_index]
            self.parents = range(first, first + self.row_count)
        return []

    def _advance_by_step(
        self, search: BeamSearch, step: BeamStep, choices: Choices, capture: StateCapture | None
    ) -> Sequence[int]:
        """Take over one step; returns which hypotheses the live ones continue."""
        params, first = self.task.params, self.rows.start
        search.length += 1
        at_limit = self.steps_left == 0
        if self.trace is not None:
            self._trace_step(step, at_limit)
        attention: list[Weights] = []
        if params.return_attention:
            attention = [self._attention(first + parent, choices) for parent in step.parents]
        if at_limit or EOS_ID in step.tokens:
            live = []
            for place, token in enumerate(step.tokens):
                if token != EOS_ID and not at_limit:
                    live.append(place)
                    continue
                tokens = search.tokens(step, place, attention[place] if attention else None)
                search.finished.append(self._complete(tokens, first + step.parents[place], capture))
            step, attention = step.only(live), [attention[i] for i in live if attention]
        search.go_on(step, attention)
        return step.parents

    def _complete(
        self, tokens: tuple[GeneratedToken, ...], row: int, capture: StateCapture | None
    ) -> Hypothesis:
        """A hypothesis that ends with what was chosen for this row."""
        token, state = tokens[-1].token, None
        if capture is not None:
            text = (*self._text, *(each.token for each in tokens[:-1]))
            state = self._save(capture, row, text, token)
        reason = FinishReason.END if token == EOS_ID else FinishReason.LENGTH
        return complete_hypothesis(tokens, reason, self.task.params.length_penalty, state)

    def _trace_step(self, step: BeamStep, at_limit: bool) -> None:
        assert self.trace is not None
        going_on = FinishReason.LENGTH if at_limit else None
        alpha = self.task.params.length_penalty
        kept = tuple(
            KeptCandidate(
                self._places[parent],
                token,
                logprob,
                normalised_score(total, self.length, alpha),
                FinishReason.END if token == EOS_ID else going_on,
            )
            for parent, token, logprob, total in zip(*step, strict=True)
        )
        self.trace.append(kept)
        self._places = [place for place, one in enumerate(kept) if one.finish_reason is None]

    def _attention(self, row: int, choices: Choices) -> tuple[float, ...] | None:
        weights = choices.attention.get(row)
        # Behind the source's own positions the batch is padded to its longest source.
        return None if weights is None else tuple(weights[: len(self.task.prompt)])

    def _fail(self, told: Sequence[Emission] = ()) -> list[Emission]:
        self.drop()
        self.failure = "the model's probabilities are not numbers"
        return list(told)
