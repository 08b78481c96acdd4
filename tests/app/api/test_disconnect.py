"""Work goes on as long as somebody waits for it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from app.api.disconnect import ClientGoneError, while_connected
from app.api.scope import WATCH_SCOPE_KEY


def test_work_that_ends_gives_its_result_or_error() -> None:
    async def scenario() -> None:
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        async def work() -> int:
            return 3

        async def fail() -> int:
            raise LookupError

        assert await while_connected({}, messages.get, work()) == 3
        with pytest.raises(LookupError):
            await while_connected({}, messages.get, fail())

    asyncio.run(scenario())


def test_a_client_that_goes_away_cancels_the_work_and_waits_for_its_clean_up() -> None:
    async def scenario() -> None:
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        cleaned_up = False

        async def work() -> None:
            nonlocal cleaned_up
            try:
                messages.put_nowait({"type": "http.disconnect"})
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.01)
                cleaned_up = True

        with pytest.raises(ClientGoneError):
            await while_connected({}, messages.get, work())
        assert cleaned_up

    asyncio.run(scenario())


def test_cancelling_the_request_cancels_the_work() -> None:
    async def scenario() -> None:
        cancelled = False

        async def work() -> None:
            nonlocal cancelled
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled = True
                raise

        task = asyncio.create_task(while_connected({}, asyncio.Queue().get, work()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cancelled

    asyncio.run(scenario())


def test_work_may_go_on_when_its_client_does_not() -> None:
    """Whoever gives up a client that is gone can be cancelled again, and awaited."""

    async def scenario() -> None:
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        messages.put_nowait({"type": "http.request"})
        messages.put_nowait({"type": "http.disconnect"})
        with pytest.raises(ClientGoneError):
            await while_connected({}, messages.get, asyncio.sleep(60))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {task}

    asyncio.run(scenario())


def test_who_cancels_the_request_comes_before_its_client() -> None:
    async def scenario() -> None:
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        task = asyncio.create_task(while_connected({}, messages.get, asyncio.sleep(60)))
        await asyncio.sleep(0.01)
        messages.put_nowait({"type": "http.disconnect"})
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_a_server_that_tells_of_it_needs_no_task() -> None:
    async def scenario() -> None:
        waiting: list[Callable[[], None]] = []

        def watch(tell: Callable[[], None]) -> Callable[[], None]:
            waiting.append(tell)
            return lambda: waiting.remove(tell)

        async def never() -> dict[str, Any]:
            raise AssertionError

        async def work() -> int:
            assert len(asyncio.all_tasks()) == 1
            assert len(waiting) == 1
            return 3

        scope = {WATCH_SCOPE_KEY: watch}
        assert await while_connected(scope, never, work()) == 3
        assert not waiting

        def go_away() -> None:
            waiting[0]()

        asyncio.get_running_loop().call_later(0.01, go_away)
        with pytest.raises(ClientGoneError):
            await while_connected(scope, never, asyncio.sleep(60))
        assert not waiting

    asyncio.run(scenario())


def test_only_a_disconnect_ends_the_work() -> None:
    async def scenario() -> None:
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})

        async def work() -> int:
            await asyncio.sleep(0.02)
            return 3

        assert await while_connected({}, messages.get, work()) == 3

    asyncio.run(scenario())
