"""A running request without a beam: its outputs, each in a row of its own."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from operator import itemgetter

from models.decoding.beam import BeamStep, Weights
from models.decoding.capture import StateCapture
from models.decoding.choice import Choices, RowKinds, RowNeeds
from models.decoding.draws import uniform_number
from models.decoding.params import (
    REPETITION_WINDOW,
    Emission,
    FinishReason,
    GeneratedToken,
    SavedState,
    StateReturn,
)
from models.decoding.running import History, Running
from models.decoding.task import DecodingTask
from models.tokenizers import EOS_ID


@dataclass(slots=True)
class _Output:
    """A running output.

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


class RunningOutputs(Running):
    """A request that is no beam search: see :class:`Running`."""

    __slots__ = ("_outputs", "_total")
    is_search = False

    def __init__(self, task: DecodingTask, continues_prompt: bool) -> None:
        super().__init__(task, continues_prompt)
        self._outputs = [_Output(index) for index in range(task.first_rows)]
        self._total = 0.0  # of a greedy search that is traced, which is a beam of one

    @property
    def length(self) -> int:
        """See :attr:`Running.length`."""
        return len(self._outputs[0].chosen)

    @property
    def histories(self) -> Sequence[History]:
        """See :attr:`Running.histories`."""
        return [output.chosen for output in self._outputs]

    @property
    def reserved_rows(self) -> int:
        """See :attr:`Running.reserved_rows`."""
        return self.row_count

    def describe_rows(self, kinds: RowKinds) -> None:
        """See :meth:`Running.describe_rows`."""
        super().describe_rows(kinds)
        if self.task.params.is_sampled or self._needs_text:
            kinds.special.update(zip(self.rows, self.needs(1), strict=True))

    def needs(self, steps: int) -> Iterator[RowNeeds]:
        """See :meth:`Running.needs`."""
        params, position = self.task.params, self._position + self.length
        uniforms = [0.0] * steps
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
        """See :meth:`Running.drop`."""
        super().drop()
        self._outputs = []

    def _advance(self, choices: Choices, capture: StateCapture | None) -> list[Emission]:
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
