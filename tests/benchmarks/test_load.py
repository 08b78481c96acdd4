"""The load generator: its schedule, and what it counts, against a server in the same loop."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.load import Generator, Outcome, Plan, poisson_schedule

Answer = Callable[[int], tuple[float, bytes]]
"""The number of a request to the delay and the bytes of its answer."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}"


def make_plan(**values: Any) -> Plan:
    defaults: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "path": "/translate",
        "bodies": ['{"text": "Yes."}', '{"text": "No."}'],
        "seconds": 0.3,
        "lead_in_seconds": 0.0,
    }
    return Plan(**{**defaults, **values})


def test_the_schedule_is_poisson_with_a_known_number() -> None:
    times = poisson_schedule(make_plan(rate=500.0, seconds=4.0, lead_in_seconds=1.0))
    assert times == sorted(times)
    assert len(times) == 2500
    assert sum(time < 1 for time in times) == 500
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # Exponential gaps: the share of those above the mean is 1 / e.
    assert sum(gap > 1 / 500 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)


def test_the_seed_decides_the_schedule() -> None:
    first, again, other = (poisson_schedule(make_plan(rate=50.0, seed=seed)) for seed in (3, 3, 4))
    assert first == again != other


def run_against(answer: Answer, *, later: bytes = b"", **values: Any) -> Outcome:
    """Run a plan against a server that answers the requests of each connection in turn.

    What comes ``later`` follows each answer after 10 ms.
    """
    count = 0
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while head := await reader.read(65_536):
                assert head.startswith(b"POST /translate HTTP/1.1\r\n")
                delay, content = answer(count)
                count += 1
                await asyncio.sleep(delay)
                if not content:
                    break
                writer.write(content)
                if later:
                    await asyncio.sleep(0.01)
                    writer.write(later)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(serve(reader, writer)))

    async def run() -> Outcome:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        outcome = await Generator(make_plan(port=port, **values)).run()
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0.01)  # for the transports to close
        return outcome

    return asyncio.run(run())


def test_every_request_of_the_measurement_is_counted_once() -> None:
    outcome = run_against(lambda _: (0.0, OK), rate=60.0, seconds=1.0, lead_in_seconds=0.1)
    assert outcome.sent == 66
    assert len(outcome.latencies_ms) == 60
    assert outcome.failures == {}
    assert 0 < outcome.answered <= 66


def test_an_answer_begins_before_it_ends() -> None:
    piece = b"4\r\nabcd\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    outcome = run_against(lambda _: (0.0, head + piece), later=piece + b"0\r\n\r\n", rate=20.0)
    assert len(outcome.begun_after_ms) == len(outcome.latencies_ms) > 0
    assert outcome.failures == {}
    pairs = zip(outcome.begun_after_ms, outcome.answered_after_ms, strict=True)
    assert all(0 < begun < answered - 5 for begun, answered in pairs), "10 ms lie between"


def test_waiting_for_a_connection_counts() -> None:
    # One connection and 20 ms for each answer: 50 answers/s, but 100 requests/s are due.
    outcome = run_against(lambda _: (0.02, OK), rate=100.0, connections=1)
    assert len(outcome.latencies_ms) == 30
    assert max(outcome.latencies_ms) > 200


def test_other_statuses_are_failures_by_name() -> None:
    outcome = run_against(lambda number: (0.0, REFUSED if number % 3 == 0 else OK), rate=100.0)
    assert outcome.failures == {"429": 10}
    assert len(outcome.latencies_ms) == 20


def test_a_connection_that_breaks_fails_its_request_and_is_replaced() -> None:
    outcome = run_against(
        lambda number: (0.0, b"" if number == 0 else OK), rate=50.0, connections=1
    )
    assert outcome.failures == {"connection lost": 1}
    assert len(outcome.latencies_ms) == 14


def test_what_waits_for_a_connection_that_breaks_gets_another_one() -> None:
    # All of them are due before the first is lost.
    outcome = run_against(
        lambda number: (0.2, b"") if number == 0 else (0.0, OK),
        rate=1_500.0,
        seconds=0.01,
        connections=1,
    )
    assert outcome.failures == {"connection lost": 1}
    assert len(outcome.latencies_ms) == 14


def test_an_idle_connection_that_the_server_closes_costs_no_request() -> None:
    # Closed just as its second request arrives: the request is sent again.
    outcome = run_against(
        lambda number: (0.0, b"" if number == 1 else OK), rate=50.0, connections=1
    )
    assert outcome.failures == {}
    assert len(outcome.latencies_ms) == 15


def test_requests_that_are_never_sent_or_answered_are_failures() -> None:
    outcome = run_against(
        lambda _: (60.0, OK), rate=20.0, connections=2, drain_seconds=0.5, timeout_seconds=0.05
    )
    assert outcome.failures == {"not sent in time": 4, "timeout": 2}
    assert outcome.latencies_ms == []


def test_nobody_listening_is_a_failure() -> None:
    async def run() -> Outcome:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        return await Generator(make_plan(port=port, rate=20.0)).run()

    assert asyncio.run(run()).failures == {"connection refused": 6}


def test_a_closed_loop_keeps_its_connections_busy() -> None:
    outcome = run_against(lambda _: (0.02, OK), connections=4, seconds=1.0)
    # Each client has its answer after 20 ms, and asks again at once.
    assert 20 <= outcome.answered <= 200
    assert outcome.failures == {}
    assert min(outcome.latencies_ms) >= 20
