"""One request while it runs in the batched decoder: its rows, and what they have chosen."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from typing import ClassVar, TypeAlias

from models.decoding.beam import BeamStep
from models.decoding.capture import StateCapture
from models.decoding.choice import Choices, RowKinds, RowNeeds
from models.decoding.params import (
    REPETITION_WINDOW,
    Emission,
    FinishReason,
    KeptCandidate,
    SavedState,
    StateReturn,
    normalised_score,
)
from models.decoding.task import DecodingTask
from models.tokenizers import EOS_ID

History: TypeAlias = list[tuple[int, float]] | deque[tuple[int, float]]
"""The tokens that a row has chosen, with their log-probabilities."""


class Running(ABC):
    """A request whose prompt was read.

    Args:
        task: the request.
        continues_prompt: whether the prompt's tokens belong to the text of its outputs.

    Attributes:
        is_search: whether its rows are hypotheses of a beam search.
        is_plain: whether nobody asks for more than tokens: then several steps may be made at once.
        is_watched: whether :meth:`advance` is to be called after every step, or several at once,
            and not only after those at which one of its rows may have ended.
        is_described: whether the choice of its tokens depends on more than their logits, or more
            than a token is to be chosen.
        rows: in the batch, those that it had before :meth:`advance`.
        parents: after :meth:`advance`, the row of the last step that each row continues.
        row_count: rows that it has, none when it is complete.
        last_step: the step of the batch at which it is at its limit.
        failure: what went wrong, if anything.
        trace: the steps of the search so far, or None where nobody asked for them.
    """

    __slots__ = (
        "_needs_text", "_places", "_position", "_text", "failure", "is_described", "is_plain",
        "is_watched", "last_step", "parents", "row_count", "rows", "task", "trace",
    )  # fmt: skip
    is_search: ClassVar[bool]

    def __init__(self, task: DecodingTask, continues_prompt: bool) -> None:
        self.task = task
        params = task.params
        # Only a repetition penalty looks back, and a state that may meet one elsewhere.
        wants_state = params.return_state is not StateReturn.NEVER
        self._needs_text = params.repetition_penalty != 1.0 or wants_state
        before = () if task.resume is None else task.resume.window[:-1]
        text = (*before, *task.prompt) if continues_prompt and self._needs_text else ()
        self._text = text[-REPETITION_WINDOW:]
        self._position = 0 if task.resume is None else task.resume.position
        self.row_count = task.first_rows
        self.rows = range(self.row_count)
        self.parents: Sequence[int] = self.rows
        self.last_step = 0
        self.failure = ""
        self.trace: list[tuple[KeptCandidate, ...]] | None = None
        if params.return_beam_trace:
            self.trace = []
            self._places: list[int | None] = [None]  # of the live rows in the trace's last step
        # A search is told of all its steps, and so can trace them.
        is_traced = self.trace is not None and not self.is_search
        self.is_plain = not (params.return_attention or wants_state or is_traced)
        self.is_watched = task.stream or self.is_search or not self.is_plain
        looks = params.return_attention or self._needs_text
        self.is_described = looks or self.is_search or params.is_sampled

    @property
    @abstractmethod
    def length(self) -> int:
        """Steps made, that which :meth:`advance` is told of among them."""

    @property
    def steps_left(self) -> int:
        """How many it may still make."""
        return self.task.params.max_new_tokens - self.length

    @property
    @abstractmethod
    def histories(self) -> Sequence[History]:
        """Of each row, where to note what it chooses, before :meth:`advance` is called."""

    @property
    def stays(self) -> bool:
        """Whether after :meth:`advance` its rows are those that it had, in their order."""
        return self.parents is self.rows or list(self.parents) == list(self.rows)

    def place(self, first_row: int) -> None:
        """Take rows in the batch from this one on."""
        self.rows = range(first_row, first_row + self.row_count)
        self.parents = self.rows

    @property
    @abstractmethod
    def reserved_rows(self) -> int:
        """Rows that it may still come to have."""

    def describe_rows(self, kinds: RowKinds) -> None:
        """Say what the choice of each row's next token needs."""
        if self.task.params.return_attention:
            kinds.attended.extend(self.rows)

    @abstractmethod
    def needs(self, steps: int) -> Iterator[RowNeeds]:
        """What the choices of each row's next tokens depend on; nothing, where it is a search's."""

    def drop(self) -> None:
        """Give up all rows."""
        self.row_count, self.parents = 0, []

    def advance(self, choices: Choices, capture: StateCapture | None = None) -> list[Emission]:
        """Take over what the step, or several, have chosen; return what is to be told.

        Args:
            choices: of all rows.
            capture: the states around the step, needed where states are asked for.
        """
        wants_state = self.task.params.return_state is not StateReturn.NEVER
        return self._advance(choices, capture if wants_state else None)

    @abstractmethod
    def _advance(self, choices: Choices, capture: StateCapture | None) -> list[Emission]: ...

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
