"""How requests leave a runner before they are finished, and what they leave behind: nothing."""

import logging

import pytest

from app.engine.request import (
    DecodeRequest,
    DecodingParams,
    EndEvent,
    EndReason,
    Event,
    SavedState,
    TokensEvent,
)
from app.engine.scheduler import ADMISSION_INTERVAL_STEPS
from models.decoding.arrivals import PIECES_PER_STEP
from models.decoding.step import BatchedDecoder
from models.tokenizers import BOS_ID
from tests.app.engine.scripted_models import (
    BROKEN,
    FIRST,
    CountingModel,
    ManualClock,
    counting_request,
    ends_of,
    greedy,
    make_runner,
    run_alone,
    run_to_end,
    tokens_of,
)
from tests.models.decoding.toy_models import random_language_model

SAMPLED = DecodingParams(max_new_tokens=9, temperature=1.5, seed=7, num_outputs=3)
BEAM = DecodingParams(max_new_tokens=9, beam_size=4, num_outputs=2)


def only_tokens(events: list[Event], request_id: int) -> list[Event]:
    return [e for e in events if isinstance(e, TokensEvent) and e.request_id == request_id]


# ---------------------------------------------------------------- leaving early


def test_a_request_is_cancelled_while_it_waits() -> None:
    model = CountingModel()
    runner = make_runner(model, row_budget=1)
    runner.submit(counting_request(1))
    runner.submit(counting_request(2))
    runner.turn()
    runner.cancel([2])
    events = run_to_end(runner)
    assert ends_of(events)[2].reason is EndReason.CANCELLED
    assert tokens_of(events, 2) == {}
    assert tokens_of(events, 1) == {0: [5, 6, 7]}
    assert model.step_rows == [1, 1, 1]


@pytest.mark.parametrize("leaving", [[1], [1, 2], [1, 2, 3]])
def test_requests_are_cancelled_while_they_are_read(leaving: list[int]) -> None:
    model = CountingModel(pauses=3 * PIECES_PER_STEP)
    runner = make_runner(model)
    for request_id in (1, 2, 3):
        runner.submit(counting_request(request_id))
    runner.turn()
    assert runner.rows == 3
    runner.cancel(leaving)
    ends = ends_of(runner.turn().events)
    assert {number: end.reason for number, end in ends.items()} == dict.fromkeys(
        leaving, EndReason.CANCELLED
    )
    assert {end.first_token_seconds for end in ends.values()} == {None}
    assert runner.rows == 3 - len(leaving)
    runner.submit(counting_request(4))
    events = run_to_end(runner)
    for request_id in {1, 2, 3, 4} - set(leaving):
        assert tokens_of(events, request_id) == {0: [5, 6, 7]}
    assert ends_of(events).keys() == {1, 2, 3, 4} - set(leaving)


def test_what_nobody_waits_for_is_not_read_to_its_end() -> None:
    model = CountingModel(pauses=100)
    runner = make_runner(model)
    runner.submit(counting_request(1))
    runner.turn()
    runner.cancel([1])
    runner.turn()
    assert runner.is_idle
    read_before, model.pauses = model.pieces, 0
    runner.submit(counting_request(2, 1))
    run_to_end(runner)
    assert model.pieces == read_before + 1


def test_a_request_is_cancelled_while_it_runs() -> None:
    model = CountingModel()
    runner = make_runner(model)
    runner.submit(counting_request(1, 5, stream=True))
    runner.submit(counting_request(2, params=BEAM))
    runner.submit(counting_request(3, 5))
    runner.turn()
    runner.turn()
    runner.cancel([2, 1])
    turn = runner.turn()
    assert {number: end.reason for number, end in ends_of(turn.events).items()} == {
        1: EndReason.CANCELLED,
        2: EndReason.CANCELLED,
    }
    assert tokens_of(turn.events, 1) == {}
    assert runner.rows == 1
    assert tokens_of(run_to_end(runner), 3) == {0: [5, 6, 7, 8, 9]}
    assert model.step_rows[-3:] == [1, 1, 1]


def test_only_what_is_here_can_be_cancelled_and_only_once() -> None:
    runner = make_runner(CountingModel())
    runner.submit(counting_request(1, 1))
    runner.submit(counting_request(2, 9))
    events = list(runner.turn().events)
    runner.cancel([1, 2, 2, 77])
    runner.cancel([2])
    events += run_to_end(runner)
    assert {number: end.reason for number, end in ends_of(events).items()} == {
        1: EndReason.FINISHED,
        2: EndReason.CANCELLED,
    }


def test_a_request_expires_wherever_it_is() -> None:
    clock = ManualClock(50.0)
    model = CountingModel()
    runner = make_runner(model, row_budget=2, clock=clock)
    runner.submit(counting_request(1, 30, timeout_seconds=8.0))
    runner.turn()
    model.pauses = 100
    runner.submit(counting_request(2, 30, timeout_seconds=9.0))
    for _ in range(ADMISSION_INTERVAL_STEPS):
        runner.turn()
    runner.submit(counting_request(3, 30, timeout_seconds=7.0))
    seen = []
    for now in (56.9, 57.0, 57.9, 58.0, 58.9, 59.0):
        clock.now = now
        ends = ends_of(runner.turn().events)
        seen.append(({number: end.reason for number, end in ends.items()}, runner.rows))
    expired = EndReason.EXPIRED
    # The one that waits, the one that runs, and the one that is being read.
    assert seen == [
        ({}, 2),
        ({3: expired}, 2),
        ({}, 2),
        ({1: expired}, 1),
        ({}, 1),
        ({2: expired}, 0),
    ]
    assert runner.is_idle


def test_a_request_without_any_time_never_runs() -> None:
    model = CountingModel()
    runner = make_runner(model)
    runner.submit(counting_request(1, timeout_seconds=0.0))
    turn = runner.turn()
    assert ends_of(turn.events)[1].reason is EndReason.EXPIRED
    assert turn.started == []
    assert model.step_rows == []


# ---------------------------------------------------------------- what cannot be run


def test_what_cannot_be_run_fails_alone_with_a_reason() -> None:
    runner = make_runner(CountingModel(), row_budget=3)
    runner.submit(counting_request(1))
    runner.submit(DecodeRequest(2, "model", (), greedy(3)))
    runner.submit(counting_request(3, params=BEAM))
    assert not runner.is_idle
    events = run_to_end(runner)
    ends = ends_of(events)
    assert ends[1].reason is EndReason.FINISHED
    assert (ends[2].reason, ends[2].message) == (
        EndReason.FAILED,
        "a prompt needs at least one token",
    )
    assert (ends[3].reason, ends[3].message) == (
        EndReason.FAILED,
        "the request needs 4 rows, more than the 3 there are",
    )
    assert tokens_of(events, 1) == {0: [5, 6, 7]}


@pytest.mark.parametrize("where", ["step", "reading"])
def test_a_model_that_raises_fails_what_runs_and_goes_on(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = CountingModel()
    runner = make_runner(model, row_budget=3)
    for request_id in range(4):
        runner.submit(counting_request(request_id, 8, stream=True))
    runner.turn()
    if where == "step":
        model.failure = RuntimeError("boom")
    else:
        runner.cancel([2])
        model.reading_failure = RuntimeError("boom")
    events: list[Event] = []
    with caplog.at_level(logging.ERROR):
        while not any(isinstance(e, EndEvent) and e.reason is EndReason.FAILED for e in events):
            events += runner.turn().events
    assert "model model failed" in caplog.text
    assert "boom" in caplog.text
    events += run_to_end(runner)
    ends = ends_of(events)
    failed = {number for number, end in ends.items() if end.reason is EndReason.FAILED}
    assert {ends[number].message for number in failed} == {"RuntimeError: boom"}
    if where == "step":
        # Whose fault it was cannot be known.
        assert failed == {0, 1, 2}
        assert tokens_of(events, 3) == {0: list(range(5, 13))}
    else:
        # Those who run have nothing to do with it.
        assert failed == {3}
        assert {ends[number].reason for number in (0, 1)} == {EndReason.FINISHED}
    runner.submit(counting_request(9))
    assert tokens_of(run_to_end(runner), 9) == {0: [5, 6, 7]}
    assert runner.rows == 0


@pytest.mark.parametrize(
    "params",
    [
        greedy(4),
        DecodingParams(4, temperature=1.0),
        DecodingParams(4, temperature=1.0, top_k=3, top_p=0.5, num_outputs=2),
        DecodingParams(4, repetition_penalty=1.5),
        DecodingParams(4, beam_size=3),
    ],
    ids=["greedy", "sampled", "filtered", "penalised", "beam"],
)
def test_a_row_without_probabilities_fails_its_own_request_alone(params: DecodingParams) -> None:
    others = [
        counting_request(1, 6, stream=True),
        counting_request(2, params=SAMPLED),
        counting_request(3, params=BEAM),
    ]
    runner = make_runner(CountingModel())
    for request in (others[0], counting_request(4, first=BROKEN, params=params), *others[1:]):
        runner.submit(request)
    events = run_to_end(runner)
    end = ends_of(events)[4]
    assert end.reason is EndReason.FAILED
    assert end.message == "the model's probabilities are not numbers"
    assert end.first_token_seconds is None
    assert tokens_of(events, 4) == {}
    for request in others:
        alone = run_alone(request, CountingModel())
        assert only_tokens(events, request.request_id) == only_tokens(alone, request.request_id)
        assert ends_of(events)[request.request_id].reason is EndReason.FINISHED


def test_a_beam_with_one_row_without_probabilities_fails() -> None:
    """Its other hypotheses would have to do without one that might have won."""
    model = CountingModel()
    model.table[FIRST, BROKEN] = 10.0  # the second best
    runner = make_runner(model)
    runner.submit(counting_request(1, params=DecodingParams(5, beam_size=2)))
    runner.submit(counting_request(2, params=DecodingParams(5, beam_size=2), first=FIRST + 1))
    runner.submit(counting_request(3, 5))
    ends = ends_of(run_to_end(runner))
    assert {number: end.reason for number, end in ends.items()} == {
        1: EndReason.FAILED,
        2: EndReason.FINISHED,
        3: EndReason.FINISHED,
    }


def test_a_state_that_does_not_fit_fails_its_own_request_and_no_other() -> None:
    """The engine takes no state on trust: a wrong one would break the step of all rows."""
    model = random_language_model()
    runner = make_runner(model)
    good = DecodeRequest(1, "model", (BOS_ID, 5), DecodingParams(3))
    broken = SavedState(b"\0" * 8, (5,), 3)
    runner.submit(good)
    runner.submit(DecodeRequest(2, "model", (5,), DecodingParams(3), resume=broken))
    events = run_to_end(runner)
    ends = ends_of(events)
    assert ends[2].reason is EndReason.FAILED
    assert ends[2].message == "the state is that of another model"
    assert ends[1].reason is EndReason.FINISHED
    assert tokens_of(events, 1) == tokens_of(run_alone(good, model), 1)


def test_a_decoder_that_broke_reads_for_nobody_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned: list[list[int]] = []

    def abandon(decoder: BatchedDecoder) -> None:
        abandoned.append(decoder.keys)

    monkeypatch.setattr(BatchedDecoder, "abandon", abandon)
    model = CountingModel()
    runner = make_runner(model)
    runner.submit(counting_request(1, 9))
    runner.turn()
    model.failure = RuntimeError("boom")
    runner.turn()
    assert abandoned == [[1]]
