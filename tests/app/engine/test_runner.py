"""One model's queue, batch and events, over models that do as they are told."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import Tensor

from app.engine.request import (
    DecodeRequest,
    DecodingParams,
    EndEvent,
    EndReason,
    FinishReason,
    StepReport,
    TokensEvent,
)
from app.engine.runner import Runner
from app.engine.scheduler import ADMISSION_INTERVAL_STEPS
from models.decoding.params import Emission
from models.decoding.reference import decode_reference
from models.decoding.step import MOST_STEPS, BatchedDecoder, StepResult
from models.encoder_decoder import StepOutput
from models.precision import Precision, set_precision
from models.state import DecodeState
from models.vocabulary import BOS_ID, EOS_ID
from tests.app.engine.scripted_models import (
    FIRST,
    LAST,
    CountingModel,
    ManualClock,
    counting_request,
    endless_model,
    ends_of,
    make_runner,
    run_alone,
    run_to_end,
    tokens_of,
)
from tests.models.decoding.toy_models import make_model

SAMPLED = DecodingParams(max_new_tokens=9, temperature=1.5, seed=7, num_outputs=3)
BEAM = DecodingParams(max_new_tokens=9, beam_size=4, num_outputs=2)
SECONDS_PER_STEP = 10.0


# ---------------------------------------------------------------- what is told


def test_a_streamed_request_is_told_every_token_when_it_is_chosen() -> None:
    runner = make_runner(CountingModel())
    runner.submit(counting_request(1, 3, stream=True))
    turns = [runner.turn() for _ in range(3)]
    assert runner.is_idle
    assert [turn.started for turn in turns] == [[1], [], []]
    told = [[e.tokens for e in turn.events if isinstance(e, TokensEvent)] for turn in turns]
    assert told == [[(5,)], [(6,)], [(7,)]]
    reasons = [e.finish_reason for turn in turns for e in turn.events if isinstance(e, TokensEvent)]
    assert reasons == [None, None, FinishReason.LENGTH]
    end = turns[-1].events[-1]
    assert isinstance(end, EndEvent)
    assert end.reason is EndReason.FINISHED


def test_another_request_is_told_each_output_as_a_whole() -> None:
    events = run_alone(counting_request(1, 99), CountingModel())
    tokens, end = events
    assert isinstance(tokens, TokensEvent)
    assert tokens.tokens == (*range(FIRST + 1, LAST + 1), EOS_ID)
    assert len(tokens.logprobs) == len(tokens.tokens)
    assert tokens.finish_reason is FinishReason.END
    assert tokens.attention is None
    assert isinstance(end, EndEvent)
    events = run_alone(counting_request(1, params=SAMPLED), CountingModel())
    assert sorted(e.output_index for e in events if isinstance(e, TokensEvent)) == [0, 1, 2]


def test_a_beam_search_tells_its_best_hypotheses_at_its_end() -> None:
    for stream in (False, True):
        first, second, end = run_alone(
            counting_request(1, params=BEAM, stream=stream), CountingModel()
        )
        assert isinstance(first, TokensEvent)
        assert isinstance(second, TokensEvent)
        assert (first.output_index, second.output_index) == (0, 1)
        assert first.tokens == tuple(range(FIRST + 1, FIRST + 10))
        assert sum(first.logprobs) > sum(second.logprobs)
        assert isinstance(end, EndEvent)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "params",
    [
        DecodingParams(max_new_tokens=9, return_attention=True),
        DecodingParams(9, temperature=1.2, seed=5, num_outputs=3, return_attention=True),
        DecodingParams(9, beam_size=5, num_outputs=3, return_attention=True),
    ],
    ids=["greedy", "sampled", "beam"],
)
def test_the_events_are_the_references(params: DecodingParams, stream: bool) -> None:
    model = set_precision(make_model("additive", "lstm", 29), "int8")
    prompt = (5, 9, 13, 2)
    events = run_alone(DecodeRequest(3, "model", prompt, params, stream=stream), model)
    assert isinstance(events[-1], EndEvent)
    told: dict[int, list[tuple[object, ...]]] = {}
    for event in events[:-1]:
        assert isinstance(event, TokensEvent)
        assert event.attention is not None
        assert {len(weights) for weights in event.attention} == {len(prompt)}
        triples = zip(event.tokens, event.logprobs, event.attention, strict=True)
        told.setdefault(event.output_index, []).extend(triples)
    reference = list(itertools.chain.from_iterable(decode_reference(model, prompt, params)))
    assert {index: [tuple(t) for t in output] for index, output in told.items()} == {
        index: [tuple(t) for e in _of_output(reference, index) for t in e.tokens]
        for index in range(params.num_outputs)
    }


def test_a_trace_comes_with_the_end_of_who_asked_for_it() -> None:
    for params, steps in ((BEAM, None), (replace(BEAM, return_beam_trace=True), 9)):
        end = run_alone(counting_request(1, params=params), CountingModel())[-1]
        assert isinstance(end, EndEvent)
        assert (end.beam_trace and len(end.beam_trace)) == steps


def _of_output(emissions: list[Emission], index: int) -> list[Emission]:
    return [emission for emission in emissions if emission.output_index == index]


def test_a_turn_reports_its_step() -> None:
    clock = ManualClock()
    model = CountingModel(on_step=lambda: setattr(clock, "now", clock.now + SECONDS_PER_STEP))
    runner = make_runner(model, clock=clock)
    assert runner.turn().reports == []
    for request_id in range(2):
        runner.submit(counting_request(request_id))
    runner.submit(counting_request(2, params=SAMPLED))
    turn = runner.turn()
    assert turn.started == [0, 1, 2]
    assert turn.reports == [StepReport("model", 5, SECONDS_PER_STEP, positions_read=3)]
    assert runner.turn().reports == [StepReport("model", 5, SECONDS_PER_STEP)]


def greedy_runner(
    requests: int,
    max_new_tokens: int,
    row_budget: int = 16,
    clock: Callable[[], float] | None = None,
) -> Runner:
    """A runner of which several steps may be made at once, with requests that wait."""
    runner = make_runner(endless_model(), row_budget, clock)
    for request_id in range(requests):
        runner.submit(greedy_request(request_id, max_new_tokens))
    return runner


def greedy_request(request_id: int, max_new_tokens: int) -> DecodeRequest:
    """To :func:`greedy_runner`."""
    prompt = (BOS_ID, 5 + request_id % 20)
    return DecodeRequest(request_id, "model", prompt, DecodingParams(max_new_tokens))


def test_a_turn_of_several_steps_reports_each() -> None:
    runner = greedy_runner(2, 3)
    turn = runner.turn()
    steps = len(turn.reports)
    assert steps == 3
    assert [report.positions_read for report in turn.reports] == [4] + [0] * (steps - 1)
    assert [report.rows for report in turn.reports] == [2] * steps


@pytest.mark.parametrize(("rows", "steps"), [(1, 8), (16, 8), (17, 7), (43, 2), (64, 2), (65, 1)])
def test_the_more_rows_the_fewer_steps_are_made_at_once(rows: int, steps: int) -> None:
    """In the first turn, in which all of them join, and nobody knows how fast they are."""
    runner = greedy_runner(rows, 20, row_budget=rows)
    assert [report.rows for report in runner.turn().reports] == [rows] * steps


CLOCK_READINGS = 3
"""From a turn's start to its end."""


@pytest.mark.parametrize(("seconds_per_turn", "steps"), [(0.014, 4), (0.029, 2), (0.2, 1)])
def test_the_slower_steps_are_the_fewer_are_made_at_once(
    seconds_per_turn: float, steps: int
) -> None:
    """By what the turn before took, for eight tokens of four rows."""
    clock = itertools.count(step=seconds_per_turn / CLOCK_READINGS)
    runner = greedy_runner(4, 2, row_budget=4, clock=lambda: next(clock))
    for request_id in range(4, 8):
        runner.submit(greedy_request(request_id, 40))
    assert len(runner.turn().reports) == 2
    assert len(runner.turn().reports) == steps


def test_the_first_token_of_several_steps_came_before_the_others() -> None:
    """And behind the reading, which nobody takes for a step."""
    clock = itertools.count(step=3.0)
    runner = greedy_runner(1, 3, clock=lambda: next(clock))
    turn = runner.turn()
    # Three seconds for reading, for three steps, and for what follows them.
    assert [report.seconds for report in turn.reports] == [7.0, 1.0, 1.0]
    end = ends_of(turn.events)[0]
    assert end.first_token_seconds == end.queue_seconds + 7.0


def test_several_steps_are_made_at_once_by_who_is_alone() -> None:
    runner = greedy_runner(1, 20)
    assert len(runner.turn(is_alone=False).reports) == 1
    assert len(runner.turn(is_alone=True).reports) == 8


def test_who_waits_is_admitted_as_soon_as_without_steps_that_are_made_at_once() -> None:
    """After so many steps, neither sooner nor later."""
    runner = greedy_runner(3, 40, row_budget=2)
    steps = [len(runner.turn().reports) for _ in range(3)]
    assert steps == [8, ADMISSION_INTERVAL_STEPS - 8, 8]


@pytest.mark.parametrize(
    ("precision", "attended", "padding"),
    # Sources are padded to 16 or 32 positions; the kernels of int8 pass padding over.
    [("float32", 16 + 32 + 16, 11 + 12 + 13), ("int8", 5 + 20 + 3, 0)],
)
def test_a_turn_reports_the_padding_that_attention_looks_at(
    precision: Precision, attended: int, padding: int
) -> None:
    runner = make_runner(set_precision(make_model("dot", "gru", 29), precision))
    for request_id, length in enumerate((5, 20, 3)):
        source = (7,) * (length - 1) + (EOS_ID,)
        runner.submit(DecodeRequest(request_id, "model", source, DecodingParams(9, beam_size=2)))
    report = StepReport("", 0, 0.0)
    while not report.rows:
        (report,) = runner.turn().reports
    assert report.positions_attended == attended
    assert report.padding_attended == padding


# ---------------------------------------------------------------- times


def test_times_are_told_with_the_end() -> None:
    clock = ManualClock()
    model = CountingModel(on_step=lambda: setattr(clock, "now", clock.now + SECONDS_PER_STEP))
    runner = make_runner(model, row_budget=5, clock=clock)
    runner.submit(counting_request(0, 6))
    runner.submit(counting_request(1, 6))
    runner.submit(counting_request(2, params=BEAM))
    clock.now = 3.0
    runner.submit(counting_request(3, 12))
    clock.now = 5.0
    ends = ends_of(run_to_end(runner))
    # The beam's rows are free 6 steps later, before admission is due again.
    first_steps = {1: 0, 3: 0, 2: ADMISSION_INTERVAL_STEPS}
    for request_id, submitted_at in ((1, 0.0), (2, 0.0), (3, 3.0)):
        began_at = 5.0 + first_steps[request_id] * SECONDS_PER_STEP
        assert ends[request_id].queue_seconds == began_at - submitted_at
    assert ends[1].first_token_seconds == 5.0 + SECONDS_PER_STEP
    assert ends[3].first_token_seconds == 2.0 + SECONDS_PER_STEP
    # A beam search has nothing to show before its end.
    beam_began_at = 5.0 + first_steps[2] * SECONDS_PER_STEP
    assert ends[2].first_token_seconds == beam_began_at + 9 * SECONDS_PER_STEP


def test_no_more_rows_run_than_there_are() -> None:
    model = CountingModel()
    runner = make_runner(model, row_budget=5)
    runner.submit(counting_request(0, 30))
    runner.submit(counting_request(1, params=BEAM))  # begins with one row of its four
    for request_id in range(2, 8):
        runner.turn()
        runner.submit(counting_request(request_id, 2 * ADMISSION_INTERVAL_STEPS))
    ends = ends_of(run_to_end(runner))
    assert {end.reason for end in ends.values()} == {EndReason.FINISHED}
    assert len(ends) == 8
    assert max(model.step_rows) == 5


def test_a_request_that_starts_at_time_0_has_not_waited() -> None:
    clock = ManualClock(0.0)
    model = CountingModel(on_step=lambda: setattr(clock, "now", clock.now + SECONDS_PER_STEP))
    runner = make_runner(model, clock=clock)
    runner.submit(counting_request(1))
    assert ends_of(run_to_end(runner))[1].queue_seconds == 0.0


def test_a_request_that_never_started_has_waited_all_its_time_and_has_no_first_token() -> None:
    clock = ManualClock()
    runner = make_runner(CountingModel(), row_budget=1, clock=clock)
    runner.submit(counting_request(1, 20))
    runner.submit(counting_request(2, 20))
    runner.turn()
    clock.now = 7.0
    runner.cancel([1, 2])
    ends = ends_of(runner.turn().events)
    assert (ends[2].queue_seconds, ends[2].first_token_seconds) == (7.0, None)
    assert (ends[1].queue_seconds, ends[1].first_token_seconds) == (0.0, 0.0)


# ---------------------------------------------------------------- the heartbeat


def test_a_beat_is_a_real_step_that_nobody_notices() -> None:
    model = CountingModel()
    runner = make_runner(model)
    runner.submit(counting_request(1, 3, stream=True))
    events = list(runner.turn().events)
    runner.beat()
    assert model.pieces == 2
    assert model.step_rows == [1, 1]
    events += run_to_end(runner)
    assert tokens_of(events, 1) == {0: [5, 6, 7]}
    model.failure = RuntimeError("boom")
    with pytest.raises(RuntimeError, match="boom"):
        runner.beat()


class _Lost(CountingModel):
    """Computes nothing from some point on, like a GPU after an error that stays."""

    is_lost = False

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        if self.is_lost:
            raise RuntimeError("lost at a step")
        return super().step(tokens, state)

    def _read_piece(self) -> None:
        if self.is_lost:
            raise RuntimeError("lost while it read")
        super()._read_piece()


@pytest.mark.parametrize("at", ["step", "reading"])
def test_a_model_that_can_do_nothing_any_more_ends_the_engine(at: str) -> None:
    model = _Lost()
    runner = make_runner(model)
    if at == "step":
        runner.submit(counting_request(1, 9))
        runner.turn()
    model.is_lost = True
    runner.submit(counting_request(2, 9))
    # Whatever fails now would fail for everybody: the process is to be started anew.
    with pytest.raises(RuntimeError, match="lost while it read"):
        runner.turn()


def test_warming_up_makes_steps_one_by_one_and_several_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    step = BatchedDecoder.step

    def noted(self: BatchedDecoder, max_steps: int = 1, *others: int) -> StepResult:
        asked.append(max_steps)
        return step(self, max_steps, *others)

    monkeypatch.setattr(BatchedDecoder, "step", noted)
    make_runner(CountingModel()).warm_up()
    assert set(asked) == {1, MOST_STEPS}


def test_warming_up_takes_steps_and_leaves_nothing_behind() -> None:
    model = CountingModel()
    runner = make_runner(model)
    runner.warm_up()
    assert len(set(model.step_rows)) > 1  # batches of several sizes
    assert runner.is_idle
    assert runner.rows == 0
    runner.submit(counting_request(0))
    assert tokens_of(run_to_end(runner), 0) == {0: [5, 6, 7]}
