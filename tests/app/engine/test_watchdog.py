import asyncio
import time

from app.engine.watchdog import Watchdog
from tests.app.engine.fake_engine import until


def test_it_calls_once_and_only_when_no_sign_of_life_comes() -> None:
    async def scenario() -> None:
        calls: list[float] = []
        watchdog = Watchdog(0.2, lambda: calls.append(time.monotonic()))
        started_at = time.monotonic()
        watchdog.start()
        while time.monotonic() - started_at < 0.5:
            watchdog.feed()
            await asyncio.sleep(0.01)
        assert not calls
        fed_at = time.monotonic()
        await until(lambda: bool(calls))
        await asyncio.sleep(0.6)
        (called_at,) = calls
        assert called_at - fed_at >= 0.15

    asyncio.run(scenario())


def test_a_process_that_was_stopped_itself_takes_no_one_for_dead() -> None:
    async def scenario() -> None:
        calls: list[bool] = []
        watchdog = Watchdog(0.3, lambda: calls.append(True))
        watchdog.start()
        await asyncio.sleep(0.05)
        time.sleep(1)  # the event loop sees nothing meanwhile
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not calls
        watchdog.feed()
        await asyncio.sleep(0.1)
        assert not calls
        watchdog.stop()
        await asyncio.sleep(0.5)
        assert not calls

    asyncio.run(scenario())


def test_after_a_call_it_allows_all_of_the_time_again() -> None:
    async def scenario() -> None:
        calls: list[bool] = []
        watchdog = Watchdog(0.3, lambda: calls.append(True))
        watchdog.start()
        await until(lambda: bool(calls))
        calls.clear()
        started_at = time.monotonic()
        watchdog.start()
        await until(lambda: bool(calls))
        assert time.monotonic() - started_at >= 0.25

    asyncio.run(scenario())
