"""One model on one device: its queue, its batch of rows, and what its steps bring."""

import itertools
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch

from app.engine.pace import Pace
from app.engine.request import (
    BeamTrace,
    DecodeRequest,
    DecodingParams,
    EndEvent,
    EndReason,
    Event,
    StepReport,
    TokensEvent,
)
from app.engine.scheduler import Entry, Scheduler
from models.decoding.arrivals import ReadingThread
from models.decoding.params import Emission
from models.decoding.step import MOST_STEPS, BatchedDecoder, StepResult
from models.decoding.task import DecodingTask
from models.encoder_decoder import StepModel, read_at_once

logger = logging.getLogger(__name__)

_WARM_UP_REQUESTS = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Turn:
    """What one turn of one model brought.

    Attributes:
        started: ids of the requests that got their rows.
        events: what is to be told.
        reports: of its steps, in order.
    """

    started: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    reports: list[StepReport] = field(default_factory=list)


class Runner:
    """Runs one model: admit rows, make steps, drop rows.

    Args:
        name: of the model.
        model: in evaluation mode, on its device.
        heartbeat_prompt: the shortest prompt that it reads.
        row_budget: rows that may run at once.
        single_lane: see :class:`BatchedDecoder`.
        prefix_bytes: see :class:`BatchedDecoder`.
        executor: see :class:`BatchedDecoder`.
        revision: see :class:`app.engine.messages.ModelRevision`.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        name: str,
        model: StepModel,
        *,
        heartbeat_prompt: Sequence[int],
        row_budget: int,
        single_lane: bool = False,
        prefix_bytes: int = 0,
        executor: ReadingThread | None = None,
        revision: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.revision = revision
        self._model = model
        self._heartbeat_prompt = tuple(heartbeat_prompt)
        self._clock = clock
        self._scheduler = Scheduler(row_budget)
        self._single_lane = single_lane
        self._prefix_bytes = prefix_bytes
        self._executor = executor
        self._decoder = self._new_decoder()
        self._pace = Pace()
        self._leaving: list[Event] = []
        self._steps_made = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, runs, or is yet to be told."""
        scheduler = self._scheduler
        return not (scheduler.waiting or scheduler.running or self._leaving)

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self._decoder.rows

    def submit(self, request: DecodeRequest) -> None:
        """Queue a request; one that cannot be run fails with the next turn."""
        entry = Entry(request, self._clock())
        try:
            self._decoder.check(_task_of(request))
            self._scheduler.add(entry)
        except ValueError as error:
            self._end(entry, EndReason.FAILED, str(error))

    def cancel(self, request_ids: Collection[int]) -> None:
        """Drop those of the requests that are here."""
        self._drop(request_ids, EndReason.CANCELLED)

    def turn(self, *, is_alone: bool = True) -> Turn:
        """Drop what has run out of time, admit what fits, make one step, or several at once.

        Args:
            is_alone: whether no other model waits for its turn.

        Raises:
            Exception: a request failed, and then the model at its heartbeat, too: the fault is
                no request's, and others would fail as well.
        """
        turn = Turn()
        expired = self._scheduler.expired(self._clock())
        self._drop([entry.request.request_id for entry in expired], EndReason.EXPIRED)
        started_at = self._clock()
        admitted = self._scheduler.admit(self._decoder.rows, started_at, self._steps_made)
        self._steps_made = 0
        turn.started = [entry.request.request_id for entry in admitted]
        if self._scheduler.running:
            max_steps = self._max_steps() if is_alone else 1
            turn.reports = self._step(admitted, turn.events, started_at, max_steps)
            self._steps_made = len(turn.reports)
        turn.events += self._leaving
        self._leaving = []
        return turn

    def beat(self) -> None:
        """One real step outside any request."""
        with torch.inference_mode():
            tokens, state = read_at_once(self._model, [self._heartbeat_prompt])
            self._model.step(tokens, state).logits.sum().item()

    def warm_up(self) -> None:
        """Some steps of several sizes, for the first request not to pay for first times.

        Raises:
            Exception: the model cannot read, or take a step.
        """
        decoder = BatchedDecoder(self._model, single_lane=self._single_lane)
        # All that is done in another way: kernels are compiled when they are first called.
        greedy, beam = DecodingParams(2), DecodingParams(2, beam_size=2)
        sampled = DecodingParams(2, temperature=1.0)
        for count, others in itertools.product(_WARM_UP_REQUESTS, ([beam, sampled], [])):
            kinds = [*others, *[greedy] * count][:count]
            tasks = [
                DecodingTask(key, self._heartbeat_prompt, params)
                for key, params in enumerate(kinds)
            ]
            for max_steps in (1, MOST_STEPS):
                decoder.admit(tasks)
                while decoder.rows:
                    decoder.step(max_steps)
        # What a request of the decoder fails of is told to the request, and nobody waits for these.
        self.beat()

    def _max_steps(self) -> int:
        """How many steps may be made at once, for nobody to wait longer."""
        most = self._pace.steps_at_once
        return min(most, self._scheduler.steps_to_admission) if self._scheduler.waiting else most

    def _new_decoder(self) -> BatchedDecoder:
        return BatchedDecoder(
            self._model,
            single_lane=self._single_lane,
            prefix_bytes=self._prefix_bytes,
            executor=self._executor,
            clock=self._clock,
        )

    def _step(
        self, admitted: Sequence[Entry], events: list[Event], started_at: float, max_steps: int
    ) -> list[StepReport]:
        try:
            self._decoder.admit([_task_of(entry.request) for entry in admitted])
            result = self._decoder.step(max_steps, self._pace.tokens_at_once)
        except Exception as error:
            # Whose fault it was cannot be known: the rows are computed together.
            logger.exception("model %s failed at a step", self.name)
            self._decoder.abandon()
            self._decoder = self._new_decoder()
            self._drop(
                self._scheduler.running_ids(), EndReason.FAILED, f"{type(error).__name__}: {error}"
            )
            result = StepResult()
            self.beat()
        now = self._clock()
        reports = self._reports_of(result, now - started_at)
        self._pace.note(now - started_at, result.rows)
        # Of the steps that were made at once, all but the first came later.
        first_token_at = now - sum(report.seconds for report in reports[1:])
        for request_id in result.begun:
            entry = self._scheduler.get(request_id)
            if entry is not None and not entry.request.params.is_beam:
                entry.first_token_at_seconds = first_token_at
        for request_id, emissions in result.emissions.items():
            events += [_event_of(request_id, emission) for emission in emissions]
        for request_id in result.complete:
            self._leave(request_id, EndReason.FINISHED, trace=result.traces.get(request_id))
        for request_id, message in result.failed.items():
            logger.error("model %s failed at request %d: %s", self.name, request_id, message)
            self._leave(request_id, EndReason.FAILED, message)
        if result.failed:
            self.beat()
        return reports

    def _reports_of(self, result: StepResult, seconds: float) -> list[StepReport]:
        first, *others = result.rows or [0]
        share = result.later_step_seconds
        report = StepReport(
            self.name,
            first,
            seconds - share * len(others),
            result.positions_read,
            result.positions_attended,
            result.padding_attended,
            result.prefixes.hits,
            result.prefixes.misses,
            result.prefixes.positions,
        )
        return [report, *(StepReport(self.name, rows, share) for rows in others)]

    def _drop(self, request_ids: Collection[int], reason: EndReason, message: str = "") -> None:
        here = [number for number in request_ids if self._scheduler.get(number) is not None]
        if here:
            self._decoder.remove(here)
        for request_id in here:
            self._leave(request_id, reason, message)

    def _leave(
        self,
        request_id: int,
        reason: EndReason,
        message: str = "",
        trace: BeamTrace | None = None,
    ) -> None:
        entry = self._scheduler.remove(request_id)
        if entry is not None:
            self._end(entry, reason, message, trace)

    def _end(
        self,
        entry: Entry,
        reason: EndReason,
        message: str = "",
        trace: BeamTrace | None = None,
    ) -> None:
        now, began = self._clock(), entry.submitted_at_seconds
        started_at = now if entry.started_at_seconds is None else entry.started_at_seconds
        first_token_at = entry.first_token_at_seconds
        if first_token_at is None and reason is EndReason.FINISHED:
            first_token_at = now  # a beam search has no token before its end
        self._leaving.append(
            EndEvent(
                entry.request.request_id,
                reason,
                queue_seconds=started_at - began,
                first_token_seconds=None if first_token_at is None else first_token_at - began,
                message=message,
                beam_trace=trace,
            )
        )


def _task_of(request: DecodeRequest) -> DecodingTask:
    return DecodingTask(
        request.request_id,
        request.prompt,
        request.params,
        request.stream,
        resume=request.resume,
    )


def _event_of(request_id: int, emission: Emission) -> TokensEvent:
    tokens, logprobs, attention = zip(*emission.tokens, strict=True)
    return TokensEvent(
        request_id,
        emission.output_index,
        tokens,
        logprobs,
        emission.finish_reason,
        None if attention[0] is None else attention,
        emission.state,
    )
