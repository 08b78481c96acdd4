"""The engine's client over both links, with a fake engine behind."""

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.engine.client import EngineClient, EventStream
from app.engine.host import EngineLoad
from app.engine.inline import InlineLink
from app.engine.messages import ModelRevision
from app.engine.process import ProcessLink
from app.engine.request import EndEvent, EndReason, TokensEvent
from app.engine.supervisor import Backoff, SupervisedEngine
from app.exceptions import (
    DrainingError,
    NotReadyError,
    QueueFullError,
    ReloadError,
    StartupError,
)
from tests.app.engine.fake_engine import (
    DIES,
    ENDLESS,
    FAILS,
    HANGS,
    RELEASED,
    ROW_BUDGET,
    books_add_up,
    collect,
    ends_of,
    load_broken,
    load_fake,
    load_if_there,
    load_killed,
    load_refused,
    load_slowly,
    make_request,
    until,
)

BothLinks = pytest.mark.parametrize("link", [InlineLink, ProcessLink])
LinkClass = Callable[..., Any]


def make_engine(
    open_link: Callable[..., Any], queue_capacity: int = 8, hang_seconds: float = 30
) -> SupervisedEngine:
    backoff = Backoff(first_pause_seconds=0.01, longest_pause_seconds=0.02, stable_after_seconds=60)
    return SupervisedEngine(
        open_link,
        queue_capacity=queue_capacity,
        row_budget=ROW_BUDGET,
        backoff=backoff,
        hang_seconds=hang_seconds,
    )


class Started:
    """An engine that is closed at the end of its test."""

    def __init__(self, link: LinkClass, load: EngineLoad = load_fake, **options: Any) -> None:
        heartbeat_seconds = options.pop("heartbeat_seconds", 0.05)
        open_link = partial(link, load, heartbeat_seconds=heartbeat_seconds)
        self.engine = make_engine(open_link, **options)

    async def __aenter__(self) -> SupervisedEngine:
        await self.engine.start()
        return self.engine

    async def __aexit__(self, *_: object) -> None:
        await self.engine.close()


@BothLinks
def test_tokens_arrive_in_order_and_every_request_ends(link: LinkClass) -> None:
    async def scenario() -> None:
        async with Started(link) as engine:
            client: EngineClient = engine
            events = await collect(
                client.submit([make_request(1, stream=True), make_request(2, tokens=4)])
            )
            pieces = [e for e in events if isinstance(e, TokensEvent)]
            assert [e.tokens for e in pieces if e.request_id == 1] == [(5,), (6,), (7,)]
            assert [e.tokens for e in pieces if e.request_id == 2] == [(5, 6, 7, 8)]
            assert all(len(e.tokens) == len(e.logprobs) for e in pieces)
            ends = [e for e in events if isinstance(e, EndEvent)]
            assert [e.reason for e in ends] == [EndReason.FINISHED] * 2
            assert all(e.queue_seconds >= 0 for e in ends)
            assert engine.stats().finished == 2
            assert books_add_up(engine)

    asyncio.run(scenario())


@BothLinks
def test_a_list_is_admitted_whole_or_not_at_all(link: LinkClass) -> None:
    async def scenario() -> None:
        async with Started(link, queue_capacity=3) as engine:
            wide = make_request(1, model="slow", rows=ROW_BUDGET, tokens=ENDLESS)
            running = engine.submit([wide])
            await until(lambda: engine.stats().running == 1)
            assert engine.stats().rows_running == {"count": 0, "slow": ROW_BUDGET}
            waiting = engine.submit([make_request(i, model="slow") for i in (2, 3)])
            with pytest.raises(QueueFullError) as caught:
                engine.submit([make_request(4), make_request(5)])
            assert 1 <= caught.value.retry_after_seconds <= 60
            assert engine.stats().waiting == 2
            one_more = engine.submit([make_request(6, model="slow")])
            engine.cancel([1])
            assert await ends_of(running) == {1: EndReason.CANCELLED}
            for stream in (waiting, one_more):
                assert set((await ends_of(stream)).values()) == {EndReason.FINISHED}
            assert engine.stats().accepted == 4
            assert books_add_up(engine)

    asyncio.run(scenario())


@BothLinks
def test_cancel_drops_running_and_waiting_requests(link: LinkClass) -> None:
    async def scenario() -> None:
        async with Started(link) as engine:
            wide = make_request(1, model="slow", rows=ROW_BUDGET, tokens=ENDLESS)
            running = engine.submit([wide])
            await until(lambda: engine.stats().running == 1)
            waiting = engine.submit([make_request(i, model="slow") for i in (2, 3)])
            engine.cancel([2, 99])
            await until(lambda: engine.stats().cancelled == 1)
            engine.cancel([1])
            engine.cancel([1])
            assert await ends_of(running) == {1: EndReason.CANCELLED}
            assert await ends_of(waiting) == {2: EndReason.CANCELLED, 3: EndReason.FINISHED}
            engine.cancel([1, 2, 3])
            assert engine.stats().cancelled == 2
            assert books_add_up(engine)

    asyncio.run(scenario())


@BothLinks
def test_time_limits_travel(link: LinkClass) -> None:
    async def scenario() -> None:
        async with Started(link) as engine:
            late = make_request(1, model="slow", tokens=ENDLESS, timeout_seconds=0.02)
            stream = engine.submit([late, make_request(2)])
            assert await ends_of(stream) == {1: EndReason.EXPIRED, 2: EndReason.FINISHED}
            assert engine.stats().cancelled == 1

    asyncio.run(scenario())


@BothLinks
def test_a_failing_request_ends_alone(link: LinkClass) -> None:
    async def scenario() -> None:
        async with Started(link) as engine:
            events = await collect(
                engine.submit([make_request(1, prompt=(FAILS,)), make_request(2)])
            )
            ends = {e.request_id: e for e in events if isinstance(e, EndEvent)}
            assert (ends[1].reason, ends[1].message) == (EndReason.FAILED, "told to fail")
            assert ends[2].reason is EndReason.FINISHED
            assert engine.stats().restarts == 0
            assert books_add_up(engine)

    asyncio.run(scenario())


@BothLinks
def test_an_engine_that_dies_fails_what_is_open_and_comes_back(link: LinkClass) -> None:
    async def scenario() -> None:
        async with Started(link) as engine:
            for death in (1, 2):
                stream = engine.submit(
                    [
                        make_request(10 * death, model="slow", tokens=ENDLESS),
                        make_request(10 * death + 1, prompt=(DIES,)),
                    ]
                )
                events = await collect(stream)
                ends = [e for e in events if isinstance(e, EndEvent)]
                assert [e.reason for e in ends] == [EndReason.FAILED] * 2
                assert {e.message for e in ends} == {"the engine process died"}
                assert engine.not_ready_because() is not None
                assert books_add_up(engine)
                await until(lambda: engine.not_ready_because() is None)
                assert engine.stats().restarts == death
                # It is another engine: nothing of the old one is left.
                assert await ends_of(engine.submit([make_request(5)])) == {5: EndReason.FINISHED}

    asyncio.run(scenario())


@BothLinks
def test_a_checkpoint_that_is_gone_when_it_comes_back(link: LinkClass, tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "checkpoint"
        file.touch()
        async with Started(link, partial(load_if_there, file)) as engine:
            file.unlink()
            await collect(engine.submit([make_request(1, prompt=(DIES,))]))
            await until(lambda: engine.stats().restarts >= 3)
            assert engine.not_ready_because() is not None
            file.touch()
            await until(lambda: engine.not_ready_because() is None)
            assert await ends_of(engine.submit([make_request(2)])) == {2: EndReason.FINISHED}

    asyncio.run(scenario())


@BothLinks
@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (load_refused, "^damaged checkpoint: a file is missing$"),
        (load_broken, "the log has the details"),
    ],
)
def test_models_that_cannot_be_loaded(link: LinkClass, load: EngineLoad, reason: str) -> None:
    async def scenario() -> None:
        engine = make_engine(partial(link, load))
        with pytest.raises(StartupError, match=reason) as caught:
            await engine.start()
        assert "secret" not in str(caught.value)
        with pytest.raises(NotReadyError):
            engine.submit([make_request(1)])
        assert engine.stats().restarts == 0
        await engine.close()

    asyncio.run(scenario())


def test_a_process_that_is_killed_while_it_loads() -> None:
    async def scenario() -> None:
        engine = make_engine(partial(ProcessLink, load_killed))
        with pytest.raises(StartupError, match="ended by SIGKILL while it loaded the models"):
            await engine.start()

    asyncio.run(scenario())


def test_closing_does_not_wait_for_a_process_that_loads() -> None:
    async def scenario() -> None:
        engine = make_engine(partial(ProcessLink, load_slowly))
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(0.5)
        async with asyncio.timeout(20):
            await engine.close()
            with pytest.raises(DrainingError):
                await starting

    asyncio.run(scenario())


@BothLinks
def test_an_idle_engine_keeps_stepping(link: LinkClass) -> None:
    async def scenario() -> None:
        async with Started(link, heartbeat_seconds=0.02) as engine:

            def stepped_at() -> float:
                return time.monotonic() - engine.stats().last_step_age_seconds

            def has_stepped_since(last: float) -> bool:
                return stepped_at() > last + 0.01

            for _ in range(10):
                await until(partial(has_stepped_since, stepped_at()))
            assert engine.stats().accepted == 0

    asyncio.run(scenario())


@BothLinks
def test_closing_cancels_what_runs(link: LinkClass) -> None:
    async def scenario() -> None:
        async with Started(link) as engine:
            stream = engine.submit([make_request(i, model="slow", tokens=ENDLESS) for i in (1, 2)])
            await until(lambda: engine.stats().running == 2)
            await engine.close()
            assert await ends_of(stream) == {1: EndReason.CANCELLED, 2: EndReason.CANCELLED}
            assert books_add_up(engine)

    asyncio.run(scenario())


def test_closing_ends_a_process_that_hangs() -> None:
    async def scenario() -> None:
        async with Started(partial(ProcessLink, seconds_to_leave=0.2)) as engine:
            stream = engine.submit([make_request(1, prompt=(HANGS,))])
            await asyncio.sleep(0.2)
            async with asyncio.timeout(20):
                await engine.close()
            assert await ends_of(stream) == {1: EndReason.CANCELLED}

    asyncio.run(scenario())


@BothLinks
def test_an_engine_that_hangs_is_replaced(link: LinkClass, caplog: Any) -> None:
    async def scenario() -> None:
        RELEASED.clear()
        async with Started(link, hang_seconds=1.5) as engine:
            ends = await ends_of(
                engine.submit([make_request(1, prompt=(HANGS,)), make_request(2, tokens=ENDLESS)])
            )
            assert ends == {1: EndReason.FAILED, 2: EndReason.FAILED}
            await until(lambda: engine.not_ready_because() is None)
            assert engine.stats().restarts == 1
            # The one that was left behind on its thread goes on, and is not heard any more.
            RELEASED.set()
            assert await ends_of(engine.submit([make_request(3)])) == {3: EndReason.FINISHED}
            await asyncio.sleep(2)
            assert engine.stats().restarts == 1, "an engine that beats does not hang"
            assert books_add_up(engine)

    asyncio.run(scenario())
    assert "the engine took no step for 1.5 seconds" in caplog.text


@BothLinks
def test_another_revision_of_a_model_is_loaded_beside_it(link: LinkClass) -> None:
    async def scenario() -> None:
        async with Started(link) as engine:
            running = engine.submit([make_request(1, model="slow", tokens=300)])
            slow, quick = (
                ModelRevision("count", n, path, "") for n, path in ((1, "slow"), (2, ""))
            )
            loaded = await asyncio.gather(engine.load_model(slow), engine.load_model(quick))
            assert [message.model for message in loaded] == [slow, quick]
            assert loaded[0].load_seconds > 0.2
            engine.retire_model(slow)
            for path, complaint in (("refused", "a file is missing"), ("broken", "the log has")):
                with pytest.raises(ReloadError, match=complaint) as caught:
                    await engine.load_model(ModelRevision("count", 3, path, ""))
                assert "secret" not in str(caught.value)
            assert await ends_of(running) == {1: EndReason.FINISHED}
            assert engine.stats().restarts == 0

    asyncio.run(scenario())


@BothLinks
def test_a_load_ends_with_the_engine(link: LinkClass) -> None:
    async def scenario() -> None:
        # It is not over before the engine is, however late that is.
        RELEASED.clear()
        async with Started(link) as engine:
            slow = ModelRevision("count", 1, "held", "")
            loading = asyncio.create_task(engine.load_model(slow))
            await asyncio.sleep(0.05)
            with pytest.raises(ReloadError, match="count is being loaded already"):
                await engine.load_model(slow)
            await ends_of(engine.submit([make_request(1, prompt=(DIES,))]))
            with pytest.raises(NotReadyError, match="died while it loaded"):
                await loading
            with pytest.raises(NotReadyError):
                await engine.load_model(slow)
            await until(lambda: engine.not_ready_because() is None)
            loading = asyncio.create_task(engine.load_model(slow))
            await asyncio.sleep(0.05)
            await engine.close()
            with pytest.raises(DrainingError):
                await loading
            with pytest.raises(DrainingError):
                await engine.load_model(slow)

    try:
        asyncio.run(scenario())
    finally:
        RELEASED.set()


@BothLinks
def test_an_unknown_model_is_a_bug_of_the_caller(link: LinkClass) -> None:
    async def scenario() -> None:
        async with Started(link) as engine:
            with pytest.raises(ValueError, match="no model 'nope'"):
                engine.submit([make_request(1, model="nope")])
            assert engine.stats().accepted == 0

    asyncio.run(scenario())


@BothLinks
def test_the_books_balance_under_random_traffic_with_deaths(link: LinkClass) -> None:
    async def scenario() -> None:
        choose = random.Random(1)
        unbalanced = 0
        async with Started(link, queue_capacity=20) as engine:
            streams: list[EventStream] = []
            next_id = 0
            for turn in range(300):
                requests = [
                    make_request(
                        next_id + i,
                        model=choose.choice(["count", "slow"]),
                        prompt=(DIES if turn in (100, 200) else choose.choice([5, FAILS]),),
                        tokens=choose.randrange(1, 40),
                        rows=choose.randrange(1, 9),
                        timeout_seconds=choose.choice([0.005, float("inf")]),
                        stream=choose.random() < 0.5,
                    )
                    for i in range(choose.randrange(1, 5))
                ]
                next_id += len(requests)
                if turn in (100, 200):
                    await until(lambda: engine.not_ready_because() is None)
                    await until(lambda: engine.stats().waiting < 10)
                try:
                    streams.append(engine.submit(requests))
                except (QueueFullError, NotReadyError):
                    await asyncio.sleep(0.002)
                engine.cancel(choose.choices(range(next_id), k=2))
                await asyncio.sleep(choose.choice([0, 0.001]))
                unbalanced += not books_add_up(engine)
            ended = 0
            for stream in streams:
                ended += len(await ends_of(stream))
            stats = engine.stats()
            assert unbalanced == 0
            assert stats.accepted == ended == stats.finished + stats.failed + stats.cancelled
            assert min(stats.finished, stats.failed, stats.cancelled) > 0
            assert stats.restarts == 2

    asyncio.run(scenario())
