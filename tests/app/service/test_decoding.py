"""Deadlines, cancellation and failures, over an engine that does as a test tells it."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from app.engine.request import (
    DecodeRequest,
    DecodingParams,
    EndReason,
    Event,
    FinishReason,
    TokensEvent,
)
from app.exceptions import DeadlineError, DrainingError, EngineFailedError
from app.logs import gathered_facts
from app.metrics import Metrics
from app.service.deadline import Deadline
from app.service.decoding import Decoder
from tests.app.service.scripted_engine import Script, ScriptedEngine, end, token


async def run(
    script: Script,
    *,
    requests: int = 1,
    timeout_seconds: float = 5.0,
    release: bool = False,
    stream: bool = True,
    obeys: bool = True,
    metrics: Metrics | None = None,
) -> tuple[list[TokensEvent], ScriptedEngine, Metrics]:
    engine, metrics = ScriptedEngine(script, obeys=obeys), metrics or Metrics()
    decoder, deadline = Decoder(engine, metrics), Deadline.after(timeout_seconds)
    params = DecodingParams(max_new_tokens=4)
    texts = [decoder.request("m", [1, 2], params, deadline, stream=stream) for _ in range(requests)]
    seen = []
    try:
        with decoder.start("m", texts, deadline) as decoding:
            async for event in decoding:
                seen.append(event)
                if release:
                    decoding.release(event.request_id)
    except Exception as error:
        error.add_note(str(engine.cancelled))
        raise
    timings = decoding.timings()
    assert timings.total_seconds >= 0
    assert (timings.queue_seconds, timings.first_token_seconds) == (0.25, 0.5)
    return seen, engine, metrics


def value(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"model": "m"})


async def two_tokens(request: DecodeRequest) -> AsyncIterator[Event]:
    yield token(request)
    yield token(request, reason=FinishReason.END)
    yield end(request)


def test_tokens_pass_through_and_are_counted() -> None:
    seen, engine, metrics = asyncio.run(run(two_tokens, requests=2))
    assert len(seen) == 4
    assert engine.cancelled == []
    assert value(metrics, "gatehouse_input_tokens_total") == 4
    assert value(metrics, "gatehouse_queue_seconds_count") == 2
    assert value(metrics, "gatehouse_first_token_seconds_count") == 1
    assert value(metrics, "gatehouse_first_token_seconds_sum") == 0.5
    assert value(metrics, "gatehouse_token_interval_seconds_count") == 2


def test_outputs_that_come_whole_have_no_time_between_tokens() -> None:
    _, _, metrics = asyncio.run(run(two_tokens, stream=False))
    assert value(metrics, "gatehouse_token_interval_seconds_count") == 0


def test_each_token_is_timed_from_the_one_before() -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        for _ in range(6):
            await asyncio.sleep(0.01)
            yield token(request)
        yield end(request)

    started_at = time.monotonic()
    _, _, metrics = asyncio.run(run(script))
    assert value(metrics, "gatehouse_token_interval_seconds_count") == 5
    seconds = value(metrics, "gatehouse_token_interval_seconds_sum")
    assert seconds is not None
    assert 0.05 <= seconds <= time.monotonic() - started_at


def test_the_times_of_an_answer_are_those_of_its_first_text() -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield token(request)
        ended = end(request)
        yield (
            ended
            if request.request_id == 2
            else replace(ended, queue_seconds=0.75, first_token_seconds=1.5)
        )

    _, _, metrics = asyncio.run(run(script, requests=3))  # run() looks at the timings
    assert value(metrics, "gatehouse_queue_seconds_sum") == 0.25 + 0.75 + 0.75
    assert value(metrics, "gatehouse_first_token_seconds_count") == 1
    assert value(metrics, "gatehouse_first_token_seconds_sum") == 0.5


def test_an_answer_without_tokens_took_all_of_its_time_for_the_first() -> None:
    async def scenario() -> None:
        decoder = Decoder(ScriptedEngine(two_tokens), Metrics())
        with decoder.start("m", [], Deadline.after(5)) as decoding:
            assert [event async for event in decoding] == []
        timings = decoding.timings()
        assert timings.queue_seconds == 0
        assert timings.first_token_seconds == timings.total_seconds > 0

    asyncio.run(scenario())


def test_tokens_are_noted_as_they_come_for_a_client_that_goes_away() -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield TokensEvent(request.request_id, 0, (7, 8, 9), (-1.0,) * 3, FinishReason.LENGTH)
        yield end(request, EndReason.FAILED)

    with gathered_facts() as facts, pytest.raises(EngineFailedError):
        asyncio.run(run(script, stream=False))
    assert facts["output_tokens"] == 3


def test_requests_are_submitted_before_anything_is_awaited() -> None:
    async def scenario() -> None:
        engine = ScriptedEngine(two_tokens)
        decoder, deadline = Decoder(engine, Metrics()), Deadline.after(5)
        request = decoder.request("m", [1], DecodingParams(4), deadline, stream=True)
        with decoder.start("m", [request], deadline):
            assert engine.submitted == [request]
        # Nobody walked over the tokens, so nobody wants them.
        assert engine.cancelled == [request.request_id]

    asyncio.run(scenario())


def test_the_engine_has_a_little_longer_than_the_client_is_told() -> None:
    _, engine, _ = asyncio.run(run(two_tokens, timeout_seconds=3))
    assert 3 < engine.submitted[0].timeout_seconds <= 4


@pytest.mark.parametrize(
    ("pause_seconds", "timeout_seconds", "cancelled"),
    # The engine need not be told of those that it has dropped itself.
    [(60, 0.05, "[1, 2]"), (0, 60, "[2]")],
)
def test_deadline_cancels_the_rest(
    pause_seconds: float, timeout_seconds: float, cancelled: str
) -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield token(request)
        await asyncio.sleep(pause_seconds)
        yield end(request, EndReason.EXPIRED)

    with pytest.raises(DeadlineError, match=f"deadline of {timeout_seconds} seconds") as caught:
        asyncio.run(run(script, requests=2, timeout_seconds=timeout_seconds))
    assert caught.value.__notes__ == [cancelled]


def test_engine_failure_cancels_the_rest_and_tells_no_details() -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield end(request, EndReason.FAILED)

    with pytest.raises(EngineFailedError) as caught:
        asyncio.run(run(script, requests=2))
    assert "secret" not in str(caught.value)
    assert caught.value.__notes__ == ["[2]"]


@pytest.mark.parametrize("reason", [EndReason.FAILED, EndReason.EXPIRED, EndReason.CANCELLED])
def test_a_request_without_an_answer_tells_no_time(reason: EndReason) -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield end(request, reason)

    metrics = Metrics()
    with pytest.raises((EngineFailedError, DeadlineError, DrainingError)):
        asyncio.run(run(script, metrics=metrics))
    assert not value(metrics, "gatehouse_queue_seconds_count")
    assert not value(metrics, "gatehouse_first_token_seconds_count")


def test_engine_that_shuts_down_is_not_mistaken_for_an_answer() -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield token(request)
        yield end(request, EndReason.CANCELLED)

    with pytest.raises(DrainingError):
        asyncio.run(run(script))


@pytest.mark.parametrize("reason", EndReason)
def test_released_requests_send_no_more_tokens(reason: EndReason) -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield token(request)
        yield token(request)
        yield end(request, reason)

    seen, engine, _ = asyncio.run(run(script, requests=2, release=True, obeys=False))
    assert len(seen) == 2
    assert engine.cancelled == [1, 2]


def test_cancelling_the_caller_cancels_the_engines_work() -> None:
    async def scenario() -> None:
        async def script(request: DecodeRequest) -> AsyncIterator[Event]:
            yield token(request)
            await asyncio.sleep(60)

        engine = ScriptedEngine(script)
        decoder, deadline = Decoder(engine, Metrics()), Deadline.after(60)
        request = decoder.request("m", [1], DecodingParams(4), deadline, stream=True)

        async def work() -> None:
            with decoder.start("m", [request], deadline) as decoding:
                async for _ in decoding:
                    pass

        task = asyncio.create_task(work())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.cancelled == [1]

    asyncio.run(scenario())
