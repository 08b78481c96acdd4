"""The stream of events that a submission gives."""

import asyncio

import pytest

from app.engine.client import EventStream
from app.engine.request import EndEvent, EndReason, Event, TokensEvent

TOKENS = TokensEvent(1, 0, (7,), (-1.0,), None)


def end(request_id: int) -> EndEvent:
    return EndEvent(request_id, EndReason.FINISHED, 0.0)


def test_events_come_in_order_and_stop_after_the_last_end() -> None:
    async def scenario() -> None:
        stream = EventStream(2)
        given: list[Event] = [TOKENS, end(1), TOKENS, end(2)]

        async def deliver() -> None:
            for event in given:
                stream.deliver(event)
                await asyncio.sleep(0)

        writer = asyncio.create_task(deliver())
        assert [event async for event in stream] == given
        await writer
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(scenario())


def test_what_came_before_it_was_read_is_kept() -> None:
    async def scenario() -> None:
        stream = EventStream(1)
        stream.deliver(TOKENS)
        stream.deliver(end(1))
        assert [event async for event in stream] == [TOKENS, end(1)]

    asyncio.run(scenario())


def test_a_reader_waits_no_longer_than_it_may() -> None:
    async def scenario() -> None:
        stream = EventStream(1, asyncio.get_running_loop().time() + 0.01)
        stream.deliver(TOKENS)
        assert await anext(stream) == TOKENS
        with pytest.raises(TimeoutError):
            await anext(stream)
        # What is there is given, however late it is asked for.
        stream.deliver(end(1))
        assert await anext(stream) == end(1)

    asyncio.run(scenario())


def test_a_reader_that_gave_up_does_no_harm_to_the_next() -> None:
    async def scenario() -> None:
        stream = EventStream(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(stream)
        stream.deliver(TOKENS)
        assert await anext(stream) == TOKENS
        reader = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        reader.cancel()
        stream.deliver(end(1))
        await asyncio.sleep(0)
        assert await anext(stream) == end(1)

    asyncio.run(scenario())
