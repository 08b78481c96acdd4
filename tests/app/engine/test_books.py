"""The books balance whatever happens."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.books import Books
from app.engine.request import EndEvent, EndReason, TokensEvent
from app.exceptions import QueueFullError
from tests.app.engine.fake_engine import collect, make_request

CAPACITY = 6


def check(books: Books) -> None:
    ended = books.finished + books.failed + books.cancelled
    assert books.accepted == ended + books.running + books.waiting
    assert books.running >= 0
    assert 0 <= books.waiting <= CAPACITY


@given(st.integers(0, 2**32 - 1))
def test_they_balance_under_any_order_of_events(seed: int) -> None:
    # Events come for unknown, ended and never started requests, too.
    choose = random.Random(seed)
    books = Books(CAPACITY)
    next_id = 0
    for _ in range(60):
        any_id = choose.randrange(next_id + 3)
        action = choose.randrange(4)
        if action == 0:
            requests = [make_request(next_id + i) for i in range(choose.randrange(1, 5))]
            before = books.waiting
            fits = before + len(requests) <= CAPACITY
            try:
                books.accept(requests)
                assert fits
                next_id += len(requests)
            except QueueFullError:
                assert not fits
                assert books.waiting == before
        elif action == 1:
            books.start([any_id, any_id])
        elif action == 2:
            books.deliver(TokensEvent(any_id, 0, (1,), (-1.0,), None))
        else:
            reason = choose.choice(list(EndReason))
            books.end(EndEvent(any_id, reason, 0.0))
        check(books)
    left = books.running + books.waiting
    assert books.end_all(EndReason.FAILED) == left
    check(books)
    assert books.running + books.waiting == 0


def test_running_requests_take_no_place_in_the_queue() -> None:
    books = Books(2)
    books.accept([make_request(1), make_request(2)])
    with pytest.raises(QueueFullError, match="no room for 1 more: 2 of 2 places are taken"):
        books.accept([make_request(3)])
    books.start([1])
    books.accept([make_request(3)])
    assert (books.waiting, books.running) == (2, 1)


def test_expired_requests_count_as_cancelled() -> None:
    books = Books(2)
    books.accept([make_request(1), make_request(2)])
    books.end(EndEvent(1, EndReason.EXPIRED, 0.0))
    books.end(EndEvent(2, EndReason.CANCELLED, 0.0))
    assert books.cancelled == 2


def test_whoever_waits_is_told_of_an_end_without_the_engine() -> None:
    async def scenario() -> None:
        books = Books(2)
        stream = books.accept([make_request(1), make_request(2)])
        books.start([2])
        assert books.end_all(EndReason.FAILED, "why") == 2
        events = await collect(stream)
        assert [type(event) for event in events] == [EndEvent, EndEvent]
        for event in events:
            assert isinstance(event, EndEvent)
            assert (event.reason, event.message) == (EndReason.FAILED, "why")
            assert event.queue_seconds >= 0

    asyncio.run(scenario())


def test_an_id_in_use_is_a_bug_of_the_caller() -> None:
    books = Books(8)
    books.accept([make_request(1)])
    for requests in ([make_request(1)], [make_request(2), make_request(2)]):
        with pytest.raises(ValueError, match="already in use"):
            books.accept(requests)
    assert books.accepted == 1


@pytest.mark.parametrize(("running", "waiting"), [(1, 4), (4, 4), (0, 4), (1, 4_000)])
def test_retry_after_grows_with_the_queue_and_shrinks_with_what_runs(
    running: int, waiting: int
) -> None:
    now = 100.0
    books = Books(waiting, clock=lambda: now)
    # Requests that took 2 seconds each: the mean comes close to that.
    for request_id in range(100):
        books.accept([make_request(request_id)])
        books.start([request_id])
        now += 2
        books.end(EndEvent(request_id, EndReason.FINISHED, 0.0))
    for request_id in range(1_000, 1_000 + running):
        books.accept([make_request(request_id)])
        books.start([request_id])
    books.accept([make_request(request_id) for request_id in range(2_000, 2_000 + waiting)])
    with pytest.raises(QueueFullError) as caught:
        books.accept([make_request(9_999)])
    expected = min(60, max(1, round(2 * waiting / max(1, running))))
    assert caught.value.retry_after_seconds == expected


def test_what_could_not_be_begun_in_time_is_refused_at_once() -> None:
    """Under overload, a queue of requests whose time is up before their turn serves nobody."""
    now = 0.0
    books = Books(100, clock=lambda: now)
    hurried, patient = 2.0 + 1.0, 600.0

    def finish(count: int, first: int) -> None:
        nonlocal now
        for request_id in range(first, first + count):
            books.accept([make_request(request_id, timeout_seconds=hurried)])
            books.start([request_id])
            now += 0.5
            books.end(EndEvent(request_id, EndReason.FINISHED, 0.0))

    # Nothing is known yet: all that fit are accepted.
    books.accept([make_request(i, timeout_seconds=hurried) for i in range(1_000, 1_050)])
    books.end_all(EndReason.CANCELLED)
    finish(60, first=0)
    # One at a time, each half a second.
    books.accept([make_request(2_000)])
    books.start([2_000])
    books.accept([make_request(2_001, timeout_seconds=hurried)])  # nobody waits
    for _ in range(40):
        books.accept([make_request(3_000 + books.accepted, timeout_seconds=patient)])
    with pytest.raises(
        QueueFullError, match=r"seconds long, too long for the 2\.0 seconds"
    ) as caught:
        books.accept([make_request(9_000, timeout_seconds=hurried)])
    assert 15 <= caught.value.retry_after_seconds <= 25
    books.accept([make_request(9_001, timeout_seconds=patient)])
    books.accept([make_request(9_002)])
    books.end_all(EndReason.CANCELLED)
    # When nobody waits any more, nothing of that is left.
    books.accept([make_request(9_003, timeout_seconds=1.1)])
    assert books.accepted == books.finished + books.cancelled + books.waiting


def test_only_finished_requests_tell_how_long_one_takes() -> None:
    now = 0.0
    books = Books(40, clock=lambda: now)
    for request_id, reason in enumerate((EndReason.FINISHED, EndReason.CANCELLED) * 100):
        books.accept([make_request(request_id)])
        books.start([request_id])
        now += 2 if reason is EndReason.FINISHED else 0.01
        books.end(EndEvent(request_id, reason, 0.0))
    books.accept([make_request(request_id) for request_id in range(1_000, 1_040)])
    refusal = books.refusal()
    assert refusal is not None
    assert refusal.retry_after_seconds == 60  # of 80 expected


def test_a_burst_is_expected_to_run_as_many_together_as_those_before() -> None:
    now = 0.0
    books = Books(40, clock=lambda: now)
    for first in range(0, 400, 4):
        ids = range(first, first + 4)
        books.accept([make_request(request_id) for request_id in ids])
        books.start(ids)
        now += 2
        # Each as the next one begins, so that four run at every end.
        for request_id in ids:
            books.accept([make_request(10_000 + request_id)])
            books.end(EndEvent(request_id, EndReason.FINISHED, 0.0))
            books.start([10_000 + request_id])
        books.end_all(EndReason.CANCELLED)
    books.accept([make_request(request_id) for request_id in range(20_000, 20_040)])
    refusal = books.refusal()
    assert refusal is not None
    assert refusal.retry_after_seconds == 20


def test_a_request_is_judged_by_few_others_never() -> None:
    now = 0.0
    books = Books(100, clock=lambda: now)

    def finish(request_id: int) -> None:
        nonlocal now
        books.accept([make_request(request_id)])
        books.start([request_id])
        now += 10
        books.end(EndEvent(request_id, EndReason.FINISHED, 0.0))

    for request_id in range(19):
        finish(request_id)
    books.accept([make_request(1_000)])
    books.accept([make_request(1_001, timeout_seconds=3.0)])
    books.end_all(EndReason.CANCELLED)
    finish(19)
    books.accept([make_request(1_002)])
    with pytest.raises(QueueFullError, match=r"too long for the 2\.0 seconds"):
        books.accept([make_request(1_003, timeout_seconds=3.0)])


def test_a_request_needs_time_to_run_too_and_the_most_hurried_text_counts() -> None:
    now = 0.0
    books = Books(100, clock=lambda: now)
    for request_id in range(100):
        books.accept([make_request(request_id)])
        books.start([request_id])
        now += 4
        books.end(EndEvent(request_id, EndReason.FINISHED, 0.0))
    books.accept([make_request(1_000)])
    # Four seconds until its turn, and four for itself: more than 0.7 times eleven, not twelve.
    hurried, patient = (make_request(1_000 + s, timeout_seconds=s + 1.0) for s in (11, 12))
    with pytest.raises(QueueFullError, match="too long"):
        books.accept([hurried])
    with pytest.raises(QueueFullError, match="too long"):
        books.accept([patient, hurried])
    books.accept([patient])


def test_an_end_without_the_engine_tells_how_long_the_request_waited() -> None:
    async def scenario() -> None:
        now = 10.0
        books = Books(2, clock=lambda: now)
        stream = books.accept([make_request(1), make_request(2)])
        now = 13.0
        books.start([1])
        now = 20.0
        books.end_all(EndReason.FAILED)
        ends = {event.request_id: event for event in await collect(stream)}
        waited = {key: end.queue_seconds for key, end in ends.items() if isinstance(end, EndEvent)}
        assert waited == {1: 3.0, 2: 10.0}

    asyncio.run(scenario())
