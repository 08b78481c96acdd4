"""Limits of each key, at a clock that a test sets."""

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from app.exceptions import RateLimitError
from app.key_limits import KeyLimits


class Clock:
    """The time, as :mod:`limits` and we read it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        time = SimpleNamespace(time=lambda: self.now)
        for module in ("app.key_limits", "limits.aio.storage.memory"):
            monkeypatch.setattr(f"{module}.time", time)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_requests_are_counted_for_each_key_and_minute(clock: Clock) -> None:
    async def work() -> None:
        limits = KeyLimits(3, None)
        for _ in range(3):
            await limits.admit("alice")
        clock.now += 20.5
        with pytest.raises(RateLimitError, match="its 3 requests for this minute") as refused:
            await limits.admit("alice")
        assert refused.value.retry_after_seconds == 40
        await limits.admit("bob")
        # What it asks for while it is refused does not keep it out for longer.
        for _ in range(10):
            with pytest.raises(RateLimitError):
                await limits.admit("alice")
        clock.now += 40
        await limits.admit("alice")

    run(work())


def test_whoever_waits_as_told_is_let_in(clock: Clock) -> None:
    async def work() -> None:
        limits = KeyLimits(1, 10)
        for _ in range(5):
            await limits.admit("alice")
            await limits.charge("alice", 25)
            with pytest.raises(RateLimitError) as refused:
                await limits.admit("alice")
            clock.now += refused.value.retry_after_seconds

    run(work())


def test_tokens_keep_the_next_request_out_once_they_are_used_up(clock: Clock) -> None:
    async def work() -> None:
        limits = KeyLimits(None, 100)
        await limits.admit("alice")
        await limits.charge("alice", 99)
        await limits.admit("alice")
        await limits.charge("alice", 500)
        with pytest.raises(RateLimitError, match="its 100 tokens for this minute"):
            await limits.admit("alice")
        await limits.admit("bob")
        clock.now += 60
        await limits.admit("alice")

    run(work())


def test_without_limits_nothing_is_refused(clock: Clock) -> None:
    async def work() -> None:
        limits = KeyLimits(None, None)
        for _ in range(1_000):
            await limits.admit("alice")
            await limits.charge("alice", 10**9)

    run(work())
