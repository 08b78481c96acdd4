"""A running request that is a beam search: a row for each live hypothesis."""

from collections import deque
from collections.abc import Iterator, Sequence

from models.decoding.beam import BeamSearch, BeamStep, LiveBeams, Weights, rank
from models.decoding.capture import StateCapture
from models.decoding.choice import Choices, RowKinds, RowNeeds
from models.decoding.params import (
    Emission,
    FinishReason,
    GeneratedToken,
    Hypothesis,
    complete_hypothesis,
    emit_hypotheses,
)
from models.decoding.running import History, Running
from models.decoding.task import DecodingTask
from models.tokenizers import EOS_ID

_NOWHERE: deque[tuple[int, float]] = deque(maxlen=0)
"""A search keeps its own history: what its rows seem to choose has no meaning."""


class RunningSearch(Running):
    """A request with a beam: see :class:`Running`.

    Attributes:
        inputs: the token that each row is to be fed.
    """

    __slots__ = ("_beam_index", "_search", "inputs")
    is_search = True

    def __init__(self, task: DecodingTask, continues_prompt: bool) -> None:
        super().__init__(task, continues_prompt)
        self._search = BeamSearch(task.params)
        self._beam_index = 0
        self.inputs: list[int] = []

    @property
    def length(self) -> int:
        """See :attr:`Running.length`."""
        return self._search.length

    @property
    def histories(self) -> Sequence[History]:
        """See :attr:`Running.histories`."""
        return [_NOWHERE] * self.row_count

    @property
    def reserved_rows(self) -> int:
        """See :attr:`Running.reserved_rows`."""
        return self._search.width

    def describe_rows(self, kinds: RowKinds) -> None:
        """See :meth:`Running.describe_rows`."""
        super().describe_rows(kinds)
        self.join_beams(kinds.beams)

    def join_beams(self, beams: LiveBeams) -> BeamSearch:
        """Put the search behind others; returns it."""
        self._beam_index = len(beams.counts)
        beams.add(self.rows, self._search)
        return self._search

    def needs(self, steps: int) -> Iterator[RowNeeds]:
        """See :meth:`Running.needs`."""
        yield from [RowNeeds(self.task.params, [0.0] * steps, ())] * self.row_count

    def drop(self) -> None:
        """See :meth:`Running.drop`."""
        super().drop()
        self.inputs = []

    def _advance(self, choices: Choices, capture: StateCapture | None) -> list[Emission]:
        emissions: list[Emission] = []
        for step in choices.beams[self._beam_index]:
            if not step.tokens:
                self._fail()
                break
            parents = self._advance_by_step(step, choices, capture)
            if not self._search.can_improve:
                self.drop()
                num_outputs = self.task.params.num_outputs
                emissions = emit_hypotheses(rank(self._search.finished, num_outputs))
                break
            self.row_count, self.inputs = len(parents), self._search.last_tokens
            self.parents = [self.rows.start + parent for parent in parents]
        if choices.places:
            self.parents = choices.places[self._beam_index]
            if len(self.parents) != self.row_count:
                raise RuntimeError("whoever made several steps went on with a search otherwise")
        return emissions

    def _advance_by_step(
        self, step: BeamStep, choices: Choices, capture: StateCapture | None
    ) -> list[int]:
        """Take over one step; returns which hypotheses the live ones continue."""
        search, first = self._search, self.rows.start
        search.length += 1
        at_limit = self.steps_left == 0
        if self.trace is not None:
            self._trace_step(step, at_limit)
        attention: list[Weights] = []
        if self.task.params.return_attention:
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
