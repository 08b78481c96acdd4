"""The batched decoder: requests of every kind share one batch of rows and advance together.

Rows join by :meth:`BatchedDecoder.admit`, all advance by :meth:`BatchedDecoder.step`, and leave
when their output is complete or by :meth:`BatchedDecoder.remove`. A greedy or sampled request
has one row for each output still running, a beam search one for each live hypothesis.

Prompts and sources of similar lengths are read together, and between the steps or beside them, so
that a long one does not hold up the rows that run: see :mod:`models.decoding.arrivals`.
"""

import itertools
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models import placement
from models.decoding.arrivals import Arrivals, ReadingThread
from models.decoding.beam import places_of, steps_of
from models.decoding.capture import StateCapture
from models.decoding.choice import Choices, choose
from models.decoding.lanes import Lane
from models.decoding.params import BeamTrace, Emission
from models.decoding.prefixes import PrefixCounts
from models.decoding.reading import Beginning, PromptReader
from models.decoding.roster import Roster, run
from models.decoding.running import Running
from models.decoding.task import DecodingTask
from models.encoder_decoder import StepModel
from models.placement import on_device
from models.several_steps import SeveralSteps, whole_step_of
from models.state import (
    AttentionMemory,
    DecodeState,
    MemoryPool,
    join_memories,
    stored_size,
)
from models.team import TEAM
from models.tokenizers import PAD_ID

SHORT_PROMPT = 32
"""Prompts up to this length are all read together: more of them cost less than one by one."""
SHARED_LANE = 64
"""Sources up to this padded size stand together where nobody looks at padding: each lane costs a
step as much Python as twenty rows. Longer ones apart, or short ones would take as much memory."""
MOST_STEPS = 8
"""Steps that are made at once. Beyond these nothing is gained: Python is a tenth of the time."""


@dataclass
class StepResult:
    """What a step settled, or several at once.

    Attributes:
        emissions: tokens by request key.
        begun: keys of the requests that made their first step, and have not failed.
        complete: keys of the requests that ended with this step.
        failed: what went wrong, by the keys of the requests that ended for it.
        traces: how the searches went, by the keys of the complete requests that asked.
        rows: of each step, rows that advanced by a token.
        later_step_seconds: how long each of them took; the first has what was read before, too.
        positions_read: positions of prompts and sources whose reading began.
        positions_attended: source positions that the attention looked at, padding included.
        padding_attended: how many of them are padding.
        prefixes: what the known prefixes of prompts were good for.
    """

    emissions: dict[int, list[Emission]] = field(default_factory=dict)
    begun: list[int] = field(default_factory=list)
    complete: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    traces: dict[int, BeamTrace] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    later_step_seconds: float = 0.0
    positions_read: int = 0
    positions_attended: int = 0
    padding_attended: int = 0
    prefixes: PrefixCounts = field(default_factory=PrefixCounts)


_Advanced = tuple[Sequence[Running], Choices, StateCapture | None]
"""Requests to be told of a step, what it has chosen, and the states around it."""


class BatchedDecoder:
    """One batch of rows over one model.

    Args:
        model: in evaluation mode.
        single_lane: whether to keep sources of all sizes together, padded to the longest: for a
            GPU, to which one large computation is cheaper than several small ones.
        prefix_bytes: memory for states of prompts: see :class:`PromptReader`.
        executor: of another thread that may read prompts while rows run.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        model: StepModel,
        *,
        single_lane: bool = False,
        prefix_bytes: int = 0,
        executor: ReadingThread | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._clock = clock
        self._reader = PromptReader(model, prefix_bytes)
        self._single_lane = single_lane
        self._arrivals = Arrivals(executor)
        self._lanes: dict[int, Lane] = {}  # by the size of their sources
        self._roster = Roster()
        self._state: DecodeState | None = None  # its memory stands in the lanes' pools
        self._inputs = torch.empty(0, dtype=torch.int64)
        self._positions_read = 0

    def _running(self) -> Iterator[Running]:
        """The running requests in the order of their rows."""
        return itertools.chain.from_iterable(lane.running for lane in self._lanes.values())

    @property
    def rows(self) -> int:
        """Rows in the batch, and those that requests still being read will have at most."""
        return sum(task.rows for task in self._arrivals.tasks()) + self._rows_to_come()

    def _rows_to_come(self) -> int:
        """Rows that the running requests have, or may still come to have."""
        return sum(running.reserved_rows for running in self._running())

    @property
    def keys(self) -> list[int]:
        """Of all requests that were admitted and have not ended."""
        reading = [task.key for task in self._arrivals.tasks() if not task.is_dropped]
        return reading + [running.task.key for running in self._running()]

    def check(self, task: DecodingTask) -> None:
        """See whether a request can be taken in: see :meth:`PromptReader.check`."""
        self._reader.check(task)

    def admit(self, tasks: Sequence[DecodingTask]) -> None:
        """Take requests in; their prompts are read by the steps that follow.

        Raises:
            ValueError: a key is in use already, or a prompt cannot be read.
        """
        for task in tasks:
            self.check(task)
        keys = [*self.keys, *(task.key for task in tasks)]
        if len(set(keys)) < len(keys):
            raise ValueError("each request in the decoder needs a key of its own")
        groups: dict[int, list[Beginning]] = {}
        for beginning in map(self._reader.begin, tasks):
            groups.setdefault(_length_class(len(beginning.tokens)), []).append(beginning)
        for group in groups.values():
            self._positions_read += sum(len(beginning.tokens) for beginning in group)
            arriving = [beginning.task for beginning in group]
            reading = self._reader.read(group)
            self._arrivals.add(arriving, reading, rows_run=self._state is not None)

    @torch.inference_mode()
    def remove(self, keys: Collection[int]) -> None:
        """Drop requests, whatever they are at; unknown keys are ignored."""
        self._arrivals.drop(keys)
        leaving = [running for running in self._running() if running.task.key in keys]
        if not leaving:
            return
        for running in leaving:
            running.drop()
        parents = self._close_gaps()
        self._inputs = self._inputs.index_select(0, self._on_device(parents))
        self._select(parents)

    def abandon(self) -> None:
        """Read no more for anyone: this decoder broke, and its reading thread is others', too."""
        self._arrivals.drop_all()

    @torch.inference_mode()
    def step(self, max_steps: int = 1, max_tokens: int = sys.maxsize) -> StepResult:
        """Read for a while, then advance every row by one token, or by as many as may be.

        Several steps are made at once where nobody asks for more than tokens. They end when another
        thread has read a prompt, and are not made while this one reads.

        Args:
            max_steps: 1 at least.
            max_tokens: how many all rows together may choose in more steps than one.
        """
        TEAM.suit(len(self._inputs))
        prefixes = self._reader.take_counts()
        result = StepResult(positions_read=self._positions_read, prefixes=prefixes)
        joined = self._read(result)
        self._positions_read = 0
        if self._state is None:
            return result
        rows = self._rows_to_come()
        TEAM.suit(rows)
        state = self._whole_state()
        began_at = self._clock()
        several = self._decode_ahead(state, min(max_steps, max_tokens // rows))
        if several is None:
            advancing, choices, capture = self._advance(state, result)
        else:
            advancing, choices, capture = self._note_several(several, result)
        for running in advancing:
            emissions = running.advance(choices, capture)
            if emissions:
                result.emissions[running.task.key] = emissions
            if running.failure:
                result.failed[running.task.key] = running.failure
                continue
            if not running.row_count:
                result.complete.append(running.task.key)
                if running.trace is not None:
                    result.traces[running.task.key] = tuple(running.trace)
        result.begun = [running.task.key for running in joined if not running.failure]
        self._go_on(choices.tokens, stay=all(running.stays for running in advancing))
        if len(result.rows) > 1:
            result.later_step_seconds = (self._clock() - began_at) / len(result.rows)
        return result

    def _go_on(self, tokens: Sequence[int], *, stay: bool) -> None:
        """Feed every row what it chose, those of searches what they say.

        Args:
            tokens: what the rows chose.
            stay: whether all rows go on where they are.
        """
        assert self._state is not None
        parents = list(range(self._state.rows)) if stay else self._close_gaps()
        inputs = [tokens[parent] for parent in parents]
        # On a GPU the next step may write over the state that this one has brought.
        if not stay or placement.is_apart(self._inputs.device):
            self._select(parents)
        for search in self._roster.searches:
            inputs[search.rows.start : search.rows.stop] = search.inputs
        self._inputs = self._on_device(inputs)

    def _whole_state(self) -> DecodeState:
        """The rows' state with their sources."""
        assert self._state is not None
        memories = [lane.memory() for lane in self._lanes.values() if lane.running]
        memory = join_memories([memory for memory in memories if memory is not None])
        return DecodeState(self._state.layers, self._state.context, memory)

    def _advance(self, before: DecodeState, result: StepResult) -> _Advanced:
        """One step."""
        result.rows.append(before.rows)
        for lane in self._lanes.values():
            positions, padding = lane.positions
            result.positions_attended += positions
            result.padding_attended += padding
        logits, after, attention = self._model.step(self._inputs, before)
        self._state = DecodeState(after.layers, after.context)
        choices = choose(logits, attention, self._roster.describe())
        return self._roster.note(choices), choices, StateCapture(before, self._state)

    def _decode_ahead(self, state: DecodeState, steps: int) -> SeveralSteps | None:
        """So many steps at once, if that can be done."""
        whole_step = whole_step_of(self._model)
        if steps < 2 or whole_step is None or self._arrivals.reads_here:
            return None
        if not (whole_step.can_decode(state) and self._roster.are_plain):
            return None
        rules = self._roster.rules(steps)
        return whole_step.decode(self._inputs, state, rules, steps, self._arrivals.news)

    def _note_several(self, several: SeveralSteps, result: StepResult) -> _Advanced:
        counts, found = several.counts, several.searches
        result.rows += several.rows[several.rows > 0].tolist()
        if any(lane.pool is not None for lane in self._lanes.values()):
            made = counts.tolist()
            steps = {one: max(made[one.rows.start : one.rows.stop]) for one in self._running()}
            steps.update(zip(self._roster.searches, found.steps.tolist(), strict=True))
            # Rows that share a source look at it together.
            result.positions_attended = sum(len(one.task.prompt) * steps[one] for one in steps)
        self._state = DecodeState(several.state.layers)
        last = (counts - 1, np.arange(len(counts)))
        tokens, logprobs = several.tokens[last].tolist(), several.logprobs[last].tolist()
        # Behind them stand the rows of searches, which say themselves what they are fed.
        tokens += [PAD_ID] * (several.state.rows - len(counts))
        places = places_of(found, first_row=len(counts))
        choices = Choices(tokens, logprobs, steps_of(found), attention={}, places=places)
        return self._roster.note_several(several), choices, None

    def _close_gaps(self) -> list[int]:
        """Part with the requests that have no rows; return the rows to go on with."""
        for lane in self._lanes.values():
            lane.part()
        return [row for running in self._running() for row in running.parents]

    def _select(self, parents: list[int]) -> None:
        """Go on with these rows of the state, numbered anew."""
        if not parents:
            self._state = None
        elif self._state is not None:
            self._state = self._state.close_gaps(parents)
        self._roster.renew(self._running())

    def _on_device(self, values: list[int]) -> Tensor:
        return on_device(values, self._inputs.device)

    def _read(self, result: StepResult) -> list[Running]:
        """Read for a while; what is read to its end joins, and is returned."""
        joined: list[Running] = []
        for arrived in self._arrivals.proceed(rows_run=self._state is not None):
            read = arrived.read
            if isinstance(read, Exception):  # those who run have nothing to do with it
                message = f"{type(read).__name__}: {read}"
                tasks = [task for task in arrived.tasks if not task.is_dropped]
                result.failed.update((task.key, message) for task in tasks)
            else:
                joined += self._join(arrived.tasks, *read)
        return joined

    def _lane_size(self, length: int, memory: AttentionMemory | None) -> int:
        """Which lane a source of this length belongs to."""
        if self._single_lane or memory is None:
            return 0
        size = stored_size(length)
        return max(size, SHARED_LANE) if memory.is_of_integers else size

    def _join(
        self, tasks: Sequence[DecodingTask], tokens: Tensor, state: DecodeState
    ) -> list[Running]:
        self._inputs = self._inputs.to(tokens.device)
        groups: dict[int, list[int]] = {}
        for index, task in enumerate(tasks):
            if not task.is_dropped:
                size = self._lane_size(len(task.prompt), state.memory)
                groups.setdefault(size, []).append(index)
        if not groups:
            return []
        self._reader.keep(tasks, state)
        new_rows: list[int] = []
        joined: list[Running] = []
        for size, indices in groups.items():
            lane = self._lanes.setdefault(size, Lane())
            joining = [tasks[index] for index in indices]
            if state.memory is not None:
                lane.pool = lane.pool or MemoryPool()
                sources = state.memory.select(self._on_device(indices))
                lane.pool.append(sources, [len(task.prompt) for task in joining])
            for place, task in zip(indices, joining, strict=True):
                running = run(task, self._model.continues_prompt)
                self._roster.join(running)
                new_rows += [place] * task.first_rows
                lane.running.append(running)
                joined.append(running)
        rows = self._on_device(new_rows)
        new = state.select_layers(rows)
        self._state = new if self._state is None else DecodeState.concat([self._state, new])
        inputs = torch.cat([self._inputs, tokens.index_select(0, rows)])
        order = [row for running in self._running() for row in running.rows]
        self._inputs = inputs.index_select(0, self._on_device(order))
        self._select(order)
        return joined


def _length_class(length: int) -> int:
    """Prompts of one class are read together, so that a short one waits for no long one."""
    return max(SHORT_PROMPT, 1 << (length - 1).bit_length())
