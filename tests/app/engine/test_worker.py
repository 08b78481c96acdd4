"""The worker thread, with decoding loops made for the purpose instead of models."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from app.engine.client import EngineClient
from app.engine.request import (
    DecodeRequest,
    DecodingParams,
    EndEvent,
    EndReason,
    Event,
    TokenEvent,
)
from app.engine.worker import WorkerEngine, WorkerModel
from app.exceptions import DrainingError, NotReadyError, QueueFullError
from models.decoding.params import Emission, FinishReason, GeneratedToken

PARAMS = DecodingParams(max_new_tokens=3)
ENDLESS = DecodingParams(max_new_tokens=10**9)


def count(prompt: Sequence[int], params: DecodingParams) -> Iterator[list[Emission]]:
    """Generates 0, 1, 2, ..., slowly when endless, with an empty step before each token."""
    for i in range(params.max_new_tokens):
        yield []
        last = i == params.max_new_tokens - 1
        yield [Emission(0, GeneratedToken(i, -1.0), FinishReason.LENGTH if last else None)]
        if params is ENDLESS:
            time.sleep(0.001)


def fail(prompt: Sequence[int], params: DecodingParams) -> Iterator[list[Emission]]:
    yield []
    if prompt != (1,):
        raise ValueError("broken weights")


def die(prompt: Sequence[int], params: DecodingParams) -> Iterator[list[Emission]]:
    yield []
    if prompt != (1,):
        raise SystemExit


class Engine:
    """A worker that is drained at the end of its test."""

    def __init__(self, queue_capacity: int = 8) -> None:
        models = {"count": WorkerModel(count, (1,)), "fail": WorkerModel(fail, (1,))}
        models["die"] = WorkerModel(die, (1,))
        self.worker = WorkerEngine(models, queue_capacity=queue_capacity, heartbeat_seconds=0.02)
        self.client: EngineClient = self.worker

    async def __aenter__(self) -> WorkerEngine:
        self.worker.start()
        return self.worker

    async def __aexit__(self, *_: object) -> None:
        await self.worker.drain(0)


def request(
    request_id: int, model: str = "count", params: DecodingParams = PARAMS
) -> DecodeRequest:
    return DecodeRequest(request_id, model, (1, 5), params)


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    async with asyncio.timeout(5):
        return [event async for event in events]


def books_add_up(worker: WorkerEngine) -> bool:
    s = worker.stats()
    return s.accepted == s.finished + s.failed + s.cancelled + s.running + s.waiting


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_tokens_arrive_in_order_and_every_request_ends() -> None:
    async def scenario() -> None:
        async with Engine() as worker:
            events = await collect(worker.submit([request(1), request(2)]))
            for request_id in (1, 2):
                own = [event for event in events if event.request_id == request_id]
                tokens = [e.token.token for e in own if isinstance(e, TokenEvent)]
                assert tokens == [0, 1, 2]
                assert isinstance(own[-1], EndEvent)
                assert own[-1].reason is EndReason.FINISHED
                assert own[-1].queue_seconds >= 0
            assert worker.stats().finished == 2
            assert books_add_up(worker)

    asyncio.run(scenario())


def test_a_list_is_admitted_whole_or_not_at_all() -> None:
    async def scenario() -> None:
        async with Engine(queue_capacity=3) as worker:
            running = worker.submit([request(1, params=ENDLESS)])
            await until(lambda: worker.stats().running == 1)
            waiting = worker.submit([request(2), request(3)])
            with pytest.raises(QueueFullError) as caught:
                worker.submit([request(4), request(5)])
            assert 1 <= caught.value.retry_after_seconds <= 60
            assert worker.stats().waiting == 2
            one_more = worker.submit([request(6)])
            worker.cancel([1])
            for stream in (running, waiting, one_more):
                await collect(stream)
            assert worker.stats().accepted == 4
            assert books_add_up(worker)

    asyncio.run(scenario())


def test_cancel_drops_running_and_waiting_requests() -> None:
    async def scenario() -> None:
        async with Engine() as worker:
            running = worker.submit([request(1, params=ENDLESS)])
            await until(lambda: worker.stats().running == 1)
            waiting = worker.submit([request(2), request(3)])
            worker.cancel([2, 99])
            worker.cancel([1])
            worker.cancel([1])
            last = (await collect(running))[-1]
            assert isinstance(last, EndEvent)
            assert last.reason is EndReason.CANCELLED
            ends = {
                e.request_id: e.reason for e in await collect(waiting) if isinstance(e, EndEvent)
            }
            assert ends == {2: EndReason.CANCELLED, 3: EndReason.FINISHED}
            worker.cancel([1, 2, 3])
            assert worker.stats().cancelled == 2
            assert books_add_up(worker)

    asyncio.run(scenario())


def test_a_failing_request_ends_alone() -> None:
    async def scenario() -> None:
        async with Engine() as worker:
            events = await collect(worker.submit([request(1, "fail"), request(2)]))
            ends = {e.request_id: e for e in events if isinstance(e, EndEvent)}
            assert ends[1].reason is EndReason.FAILED
            assert ends[1].message == "ValueError: broken weights"
            assert ends[2].reason is EndReason.FINISHED
            assert books_add_up(worker)

    asyncio.run(scenario())


def test_when_the_thread_dies_everything_ends_and_nothing_more_is_taken() -> None:
    async def scenario() -> None:
        async with Engine() as worker:
            events = await collect(worker.submit([request(1, "die"), request(2)]))
            assert [e.reason for e in events if isinstance(e, EndEvent)] == [EndReason.FAILED] * 2
            with pytest.raises(NotReadyError):
                worker.submit([request(3)])
            assert books_add_up(worker)

    asyncio.run(scenario())


def test_not_started_engine_takes_nothing() -> None:
    async def scenario() -> None:
        worker = Engine().worker
        with pytest.raises(NotReadyError):
            worker.submit([request(1)])
        await worker.drain(0)

    asyncio.run(scenario())


def test_idle_engine_keeps_stepping() -> None:
    async def scenario() -> None:
        async with Engine() as worker:
            await asyncio.sleep(0.3)
            assert worker.stats().last_step_age_seconds < 0.2

    asyncio.run(scenario())


def test_failing_heartbeat_is_seen_in_the_age_and_requests_are_still_answered() -> None:
    async def scenario() -> None:
        worker = WorkerEngine(
            {"fail": WorkerModel(fail, (2,)), "count": WorkerModel(count, (1,))},
            queue_capacity=2,
            heartbeat_seconds=0.02,
        )
        worker.start()
        await asyncio.sleep(0.2)
        assert worker.stats().last_step_age_seconds > 0.15
        events = await collect(worker.submit([request(1)]))
        assert len(events) == 4
        await worker.drain(1)

    asyncio.run(scenario())


def test_drain_finishes_what_was_accepted() -> None:
    async def scenario() -> None:
        async with Engine() as worker:
            stream = worker.submit([request(1), request(2)])
            await worker.drain(5)
            events = await collect(stream)
            ends = [e.reason for e in events if isinstance(e, EndEvent)]
            assert ends == [EndReason.FINISHED] * 2
            with pytest.raises(DrainingError):
                worker.submit([request(3)])

    asyncio.run(scenario())


def test_drain_cancels_what_takes_too_long_and_ends_the_thread() -> None:
    before = threading.active_count()

    async def scenario() -> None:
        worker = Engine().worker
        worker.start()
        stream = worker.submit([request(1, params=ENDLESS), request(2)])
        await worker.drain(0.05)
        ends = [e.reason for e in await collect(stream) if isinstance(e, EndEvent)]
        assert ends == [EndReason.CANCELLED] * 2
        assert books_add_up(worker)

    asyncio.run(scenario())
    assert threading.active_count() == before


def test_events_for_a_closed_loop_do_no_harm() -> None:
    worker = Engine().worker
    worker.start()

    async def leave() -> None:
        worker.submit([request(1, params=ENDLESS)])

    asyncio.run(leave())

    async def later() -> None:
        worker.cancel([1])
        assert len(await collect(worker.submit([request(2)]))) == 4
        await worker.drain(1)

    asyncio.run(later())


def test_unknown_model_is_a_bug_of_the_caller() -> None:
    async def scenario() -> None:
        async with Engine() as worker:
            with pytest.raises(ValueError, match="no model"):
                worker.submit([request(1, "nope")])
            assert worker.stats().accepted == 0

    asyncio.run(scenario())
