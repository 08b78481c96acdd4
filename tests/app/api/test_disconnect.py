import asyncio
from typing import Any

import pytest
from fastapi import Request

from app.api.disconnect import ClientGoneError, while_connected


def request_of(messages: "asyncio.Queue[dict[str, Any]]") -> Request:
    return Request({"type": "http", "method": "POST", "headers": []}, messages.get)


def test_work_that_ends_gives_its_result_or_error() -> None:
    async def scenario() -> None:
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        async def work() -> int:
            return 3

        async def fail() -> int:
            raise LookupError

        assert await while_connected(request_of(messages), work()) == 3
        with pytest.raises(LookupError):
            await while_connected(request_of(messages), fail())

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
            await while_connected(request_of(messages), work())
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

        task = asyncio.create_task(while_connected(request_of(asyncio.Queue()), work()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cancelled

    asyncio.run(scenario())
