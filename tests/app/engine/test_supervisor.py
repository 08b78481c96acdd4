"""The engine's client over a link that a test works by hand."""

import asyncio
import logging
import time
from typing import Any, ClassVar

import pytest

from app.engine.link import LinkFactory, LinkListener
from app.engine.messages import Loaded, ModelRevision, Orders, Turn
from app.engine.request import EndEvent, EndReason, StepReport, TokensEvent
from app.engine.supervisor import Backoff, SupervisedEngine
from app.exceptions import DrainingError, NotReadyError, QueueFullError, ReloadError, StartupError
from tests.app.engine.fake_engine import (
    DEVICE,
    GUARD_SECONDS,
    LOAD_SECONDS,
    PRECISION,
    ROW_BUDGET,
    books_add_up,
    collect,
    ends_of,
    make_request,
    until,
)

LOADED = Loaded(DEVICE, PRECISION, LOAD_SECONDS)
QUICK = {"first_pause_seconds": 0.01, "longest_pause_seconds": 0.02, "stable_after_seconds": 60.0}


class HandLink:
    """A link without an engine."""

    def __init__(self, listener: LinkListener) -> None:
        self.listener = listener
        self.sent: list[Orders] = []
        self.is_closed = False

    def start(self) -> None:
        """Nothing to start."""

    def send(self, orders: Orders) -> None:
        self.sent.append(orders)

    def kill(self, reason: str) -> None:
        self.listener.lost(reason)

    async def close(self) -> None:
        self.is_closed = True


class HandLinks:
    """Makes links, and keeps them."""

    def __init__(self) -> None:
        self.made: list[HandLink] = []

    def __call__(self, listener: LinkListener) -> HandLink:
        self.made.append(HandLink(listener))
        return self.made[-1]


class NoRoom(HandLink):
    def start(self) -> None:
        raise OSError("no more processes")


def make_engine(
    open_link: LinkFactory, queue_capacity: int = 8, **options: Any
) -> SupervisedEngine:
    options.setdefault("backoff", Backoff(**QUICK))
    return SupervisedEngine(
        open_link, queue_capacity=queue_capacity, row_budget=ROW_BUDGET, **options
    )


async def start_by_hand(links: HandLinks, **options: Any) -> SupervisedEngine:
    engine = make_engine(links, **options)
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    engine.received(LOADED)
    assert await starting is LOADED
    return engine


def test_what_one_turn_of_the_event_loop_brings_goes_out_as_one_message() -> None:
    async def scenario() -> None:
        links = HandLinks()
        engine = await start_by_hand(links)
        engine.submit([make_request(1), make_request(2)])
        engine.submit([make_request(3)])
        engine.cancel([2, 77])
        assert links.made[0].sent == []
        await asyncio.sleep(0)
        requests = tuple(make_request(i) for i in (1, 2, 3))
        assert links.made[0].sent == [Orders(requests, (2,))]
        engine.cancel([3])
        await asyncio.sleep(0)
        assert links.made[0].sent[1:] == [Orders((), (3,))]
        engine.cancel([99])
        await asyncio.sleep(0)
        assert len(links.made[0].sent) == 2

    asyncio.run(scenario())


def test_whether_the_queue_is_full_is_known_before_anything_is_submitted() -> None:
    async def scenario() -> None:
        engine = make_engine(links := HandLinks(), queue_capacity=2)
        assert engine.queue_full() is None
        engine = await start_by_hand(links, queue_capacity=2)
        engine.submit([make_request(1)])
        assert engine.queue_full() is None
        engine.submit([make_request(2)])
        told = engine.queue_full()
        with pytest.raises(QueueFullError) as caught:
            engine.submit([make_request(3)])
        assert str(told) == str(caught.value)
        engine.received(Turn(started=(1,)))
        assert engine.queue_full() is None
        engine.submit([make_request(3)])
        assert engine.queue_full() is not None
        # What is wrong then is not that there is no room.
        engine.lost("died")
        assert engine.queue_full() is None
        await engine.close()
        assert engine.queue_full() is None

    asyncio.run(scenario())


def test_what_is_for_an_engine_that_died_meanwhile_is_not_for_the_next() -> None:
    async def scenario() -> None:
        links = HandLinks()
        engine = await start_by_hand(links)
        stream = engine.submit([make_request(1)])
        engine.lost("died")
        assert await ends_of(stream) == {1: EndReason.FAILED}
        await until(lambda: len(links.made) == 2)
        engine.received(LOADED)
        await asyncio.sleep(0.01)
        assert [link.sent for link in links.made] == [[], []]

    asyncio.run(scenario())


def test_a_model_that_left_while_an_engine_starts_is_dropped_by_it() -> None:
    async def scenario() -> None:
        links, name = HandLinks(), make_request(1).model
        engine = await start_by_hand(links)
        links.made[0].listener.lost("it died")
        await until(lambda: len(links.made) == 2)
        # It began with the models that there were then.
        gone = ModelRevision(name, 0, "path", "fingerprint")
        engine.retire_model(gone, name_too=True)
        await asyncio.sleep(0)
        assert links.made[1].sent == []
        engine.received(Loaded(DEVICE, PRECISION, dict(LOAD_SECONDS)))
        await asyncio.sleep(0)
        assert links.made[1].sent == [Orders((), (), (), (gone,))]
        assert name not in engine.stats().rows_running
        with pytest.raises(ValueError, match="no model"):
            engine.submit([make_request(1)])
        await engine.close()

    asyncio.run(scenario())


def test_turns_fill_the_books_and_reach_their_readers() -> None:
    async def scenario() -> None:
        links, watched = HandLinks(), list[StepReport]()
        engine = await start_by_hand(links, on_steps=watched.extend)
        stream = engine.submit([make_request(1), make_request(2)])
        assert engine.stats().rows_running == {"count": 0, "slow": 0}
        steps = (StepReport("count", 1, 0.5, 3, 1),)
        token = TokensEvent(1, 0, (7,), (-1.0,), None)
        engine.received(Turn((1,), (token,), (), steps, {"count": 1}, stepped=True))
        stats = engine.stats()
        assert (stats.waiting, stats.running) == (1, 1)
        assert stats.rows_running == {"count": 1, "slow": 0}
        assert stats.row_budget == ROW_BUDGET
        assert watched == list(steps)
        end = EndEvent(1, EndReason.FINISHED, 0.0)
        engine.received(Turn(ends=(end, EndEvent(2, EndReason.EXPIRED, 0.0))))
        assert [type(event) for event in await collect(stream)] == [TokensEvent, EndEvent, EndEvent]
        stats = engine.stats()
        assert (stats.accepted, stats.finished, stats.cancelled) == (2, 1, 1)
        # An event that comes late harms nobody.
        engine.received(Turn((1,), (token,), (end,)))
        assert books_add_up(engine)

    asyncio.run(scenario())


def test_only_real_steps_are_marks_of_life() -> None:
    async def scenario() -> None:
        engine = await start_by_hand(HandLinks())
        await asyncio.sleep(0.05)
        engine.received(Turn(stepped=False))
        assert engine.stats().last_step_age_seconds >= 0.05
        stepped_at = time.monotonic()
        engine.received(Turn(stepped=True))
        assert engine.stats().last_step_age_seconds <= time.monotonic() - stepped_at

    asyncio.run(scenario())


def test_an_engine_that_starts_again_has_all_of_its_time_to_load() -> None:
    async def scenario() -> None:
        links = HandLinks()
        engine = await start_by_hand(links, hang_seconds=0.05)
        engine.lost("died")
        await until(lambda: len(links.made) == 2)
        await asyncio.sleep(0.2)
        assert len(links.made) == 2
        await engine.close()

    asyncio.run(scenario())


def test_who_waits_for_a_model_is_told_that_the_engine_died_or_is_closed() -> None:
    async def scenario() -> None:
        links, model = HandLinks(), ModelRevision("new", 0, "path", "fingerprint")
        engine = await start_by_hand(links)
        loading = asyncio.create_task(engine.load_model(model))
        await asyncio.sleep(0)
        with pytest.raises(ReloadError, match="new is being loaded already"):
            await engine.load_model(model)
        engine.lost("died")
        with pytest.raises(NotReadyError, match="died while it loaded the model"):
            await asyncio.wait_for(loading, 10)
        await until(lambda: len(links.made) == 2)
        engine.received(LOADED)
        loading = asyncio.create_task(engine.load_model(model))
        await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(DrainingError):
            await asyncio.wait_for(loading, 10)

    asyncio.run(scenario())


def test_pauses_grow_when_it_dies_soon_and_not_otherwise() -> None:
    backoff = Backoff(first_pause_seconds=1, longest_pause_seconds=5, stable_after_seconds=30)
    assert [backoff.pause_seconds(lived) for lived in (0, 1, 29, 2, 0, 0)] == [0, 1, 2, 4, 5, 5]
    assert [backoff.pause_seconds(lived) for lived in (30, 0, 31)] == [0, 1, 0]


def test_an_engines_life_is_counted_from_where_it_could_serve() -> None:
    class Watching(Backoff):
        lives: ClassVar[list[float]] = []

        def pause_seconds(self, lived_seconds: float) -> float:
            self.lives.append(lived_seconds)
            return 0.0

    async def scenario() -> None:
        links = HandLinks()
        engine = await start_by_hand(links, backoff=Watching())
        await asyncio.sleep(0.05)
        engine.lost("died")
        await until(lambda: len(links.made) == 2)
        engine.lost("died while it loaded")
        await until(lambda: len(links.made) == 3)
        lived, loading = Watching.lives
        assert 0.05 <= lived < GUARD_SECONDS
        assert loading == 0
        # Nor does the time before count as one without a step.
        loaded_at = time.monotonic()
        engine.received(LOADED)
        assert engine.stats().last_step_age_seconds <= time.monotonic() - loaded_at
        await engine.close()

    asyncio.run(scenario())


def test_the_truth_while_it_is_away(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        links = HandLinks()
        engine = make_engine(links)
        assert engine.not_ready_because() == "no engine is running"
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(0)
        assert engine.not_ready_because() == "the models are being loaded"
        engine.received(LOADED)
        await starting
        assert engine.not_ready_because() is None
        engine.received(Turn(rows_running={"count": 3}))
        engine.lost("the engine's process was ended by SIGKILL")
        assert sum(engine.stats().rows_running.values()) == 0
        away = "the engine died and is being started again"
        assert engine.not_ready_because() == away
        with pytest.raises(NotReadyError, match=away):
            engine.submit([make_request(1)])
        await until(lambda: len(links.made) == 2)
        assert engine.not_ready_because() == away
        engine.received(LOADED)
        assert engine.not_ready_because() is None
        assert engine.stats().restarts == 1
        engine.submit([make_request(1)])
        await engine.close()
        assert engine.not_ready_because() == "the service is shutting down"

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert "ended by SIGKILL; 0 texts failed with it; it is started again" in caplog.text


def test_a_machine_without_room_is_tried_again() -> None:
    async def scenario() -> None:
        links = HandLinks()
        full = True

        def open_link(listener: LinkListener) -> HandLink:
            return NoRoom(listener) if full else links(listener)

        with pytest.raises(StartupError, match="no more processes"):
            await make_engine(open_link).start()
        full = False
        engine = make_engine(open_link)
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(0)
        engine.received(LOADED)
        await starting
        full = True
        engine.lost("died")
        await until(lambda: engine.stats().restarts >= 2)
        full = False
        await until(lambda: len(links.made) == 2)
        engine.received(LOADED)
        assert engine.not_ready_because() is None

    asyncio.run(scenario())


def test_closed_while_it_is_away_it_starts_nothing_more() -> None:
    async def scenario() -> None:
        links = HandLinks()
        engine = await start_by_hand(links)
        engine.lost("died")
        await engine.close()
        await asyncio.sleep(0.05)
        assert len(links.made) == 1
        with pytest.raises(DrainingError):
            engine.submit([make_request(1)])

    asyncio.run(scenario())


def test_closing_an_engine_that_answers_nothing_tells_everyone() -> None:
    async def scenario() -> None:
        links = HandLinks()
        engine = await start_by_hand(links)
        stream = engine.submit([make_request(1), make_request(2)])
        engine.received(Turn(started=(1,)))
        await engine.close()
        assert await ends_of(stream) == {1: EndReason.CANCELLED, 2: EndReason.CANCELLED}
        assert links.made[0].is_closed
        assert books_add_up(engine)

    asyncio.run(scenario())


def test_an_engine_that_dies_while_it_closes_is_not_started_again() -> None:
    async def scenario() -> None:
        links = HandLinks()
        engine = await start_by_hand(links)
        stream = engine.submit([make_request(1)])
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        engine.lost("died")
        assert await ends_of(stream) == {1: EndReason.CANCELLED}
        await closing
        await asyncio.sleep(0.02)
        assert len(links.made) == 1

    asyncio.run(scenario())


def test_an_engine_that_was_never_started() -> None:
    async def scenario() -> None:
        engine = make_engine(HandLinks())
        with pytest.raises(NotReadyError):
            engine.submit([make_request(1)])
        engine.cancel([1])
        await engine.close()

    asyncio.run(scenario())
