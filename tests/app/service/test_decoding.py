"""Deadlines, cancellation and failures, over an engine that does as a test tells it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing

import pytest

from app.engine.request import (
    DecodeRequest,
    DecodingParams,
    EndEvent,
    EndReason,
    EngineStats,
    Event,
    FinishReason,
    GeneratedToken,
    TokenEvent,
)
from app.exceptions import DeadlineError, DrainingError, EngineFailedError
from app.metrics import Metrics
from app.service.deadline import Deadline
from app.service.decoding import Decoder

Script = Callable[[DecodeRequest], AsyncIterator[Event]]


class ScriptedEngine:
    """Runs the same script for every request, one after another."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.cancelled: list[int] = []

    async def _events(self, requests: Sequence[DecodeRequest]) -> AsyncIterator[Event]:
        for request in requests:
            async for event in self._script(request):
                yield event

    def submit(self, requests: Sequence[DecodeRequest]) -> AsyncIterator[Event]:
        return self._events(requests)

    def cancel(self, request_ids: Iterable[int]) -> None:
        self.cancelled.extend(request_ids)

    def stats(self) -> EngineStats:
        return EngineStats(0, 0, 0, 1, 0, 0, 0, 0, 0.0)

    async def drain(self, timeout_seconds: float) -> None:
        pass


def token(request: DecodeRequest, last: bool = False) -> TokenEvent:
    reason = FinishReason.END if last else None
    return TokenEvent(request.request_id, 0, GeneratedToken(7, -0.5), reason)


def end(request: DecodeRequest, reason: EndReason = EndReason.FINISHED) -> EndEvent:
    return EndEvent(request.request_id, reason, 0.25, "secret detail")


async def run(
    script: Script, *, requests: int = 1, timeout_seconds: float = 5.0, release: bool = False
) -> tuple[list[TokenEvent], ScriptedEngine, Metrics]:
    engine, metrics = ScriptedEngine(script), Metrics()
    decoder = Decoder(engine, metrics)
    params = DecodingParams(max_new_tokens=4)
    texts = [decoder.request("m", [1, 2], params) for _ in range(requests)]
    decoding = decoder.start("m", texts, Deadline.after(timeout_seconds))
    seen = []
    try:
        async with aclosing(decoding.tokens()) as tokens:
            async for event in tokens:
                seen.append(event)
                if release:
                    decoding.release(event.request_id)
    except Exception as error:
        error.add_note(str(engine.cancelled))
        raise
    assert decoding.timings().total_seconds >= decoding.timings().first_token_seconds >= 0
    assert decoding.timings().queue_seconds == 0.25
    return seen, engine, metrics


def test_tokens_pass_through_and_are_counted() -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield token(request)
        yield token(request, last=True)
        yield end(request)

    seen, engine, metrics = asyncio.run(run(script, requests=2))
    assert len(seen) == 4
    assert engine.cancelled == []

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"model": "m"})

    assert value("gatehouse_input_tokens_total") == 4
    assert value("gatehouse_queue_seconds_count") == 2
    assert value("gatehouse_first_token_seconds_count") == 1
    assert value("gatehouse_token_interval_seconds_count") == 2


def test_deadline_cancels_the_rest() -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield token(request)
        await asyncio.sleep(60)

    with pytest.raises(DeadlineError, match=r"deadline of 0.05 seconds") as caught:
        asyncio.run(run(script, requests=2, timeout_seconds=0.05))
    assert caught.value.__notes__ == ["[1, 2]"]


def test_engine_failure_cancels_the_rest_and_tells_no_details() -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield end(request, EndReason.FAILED)

    with pytest.raises(EngineFailedError) as caught:
        asyncio.run(run(script, requests=2))
    assert "secret" not in str(caught.value)
    assert caught.value.__notes__ == ["[2]"]


def test_engine_that_shuts_down_is_not_mistaken_for_an_answer() -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield token(request)
        yield end(request, EndReason.CANCELLED)

    with pytest.raises(DrainingError):
        asyncio.run(run(script))


def test_released_requests_send_no_more_tokens() -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield token(request)
        yield token(request)
        yield end(request, EndReason.CANCELLED)

    seen, engine, _ = asyncio.run(run(script, requests=2, release=True))
    assert len(seen) == 2
    assert engine.cancelled == [1, 2]


def test_cancelling_the_caller_cancels_the_engines_work() -> None:
    async def scenario() -> None:
        async def script(request: DecodeRequest) -> AsyncIterator[Event]:
            yield token(request)
            await asyncio.sleep(60)

        engine = ScriptedEngine(script)
        decoder = Decoder(engine, Metrics())
        request = decoder.request("m", [1], DecodingParams(4))
        decoding = decoder.start("m", [request], Deadline.after(60))

        async def work() -> None:
            async with aclosing(decoding.tokens()) as tokens:
                async for _ in tokens:
                    pass

        task = asyncio.create_task(work())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.cancelled == [1]

    asyncio.run(scenario())


def test_beams_have_no_time_between_tokens() -> None:
    async def scenario() -> None:
        async def script(request: DecodeRequest) -> AsyncIterator[Event]:
            yield token(request)
            yield token(request, last=True)
            yield end(request)

        metrics = Metrics()
        decoder = Decoder(ScriptedEngine(script), metrics)
        request = decoder.request("m", [1], DecodingParams(max_new_tokens=4, beam_size=2))
        decoding = decoder.start("m", [request], Deadline.after(60))
        async with aclosing(decoding.tokens()) as tokens:
            assert len([event async for event in tokens]) == 2
        name = "gatehouse_token_interval_seconds_count"
        assert metrics.registry.get_sample_value(name, {"model": "m"}) is None

    asyncio.run(scenario())
