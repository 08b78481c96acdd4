"""How much each API key may ask for: requests and tokens in a minute, counted by ``limits``.

Each minute begins with the key's first request in it (``limits``' *fixed window*), so that the
wait that a refusal names is exact. How many tokens a request takes is known only when it is over:
they are counted then, and what exceeds the limit keeps the next requests out until the minute ends.
The counts live in this process and are forgotten with it.
"""

import math
import time

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from app.exceptions import RateLimitError


class KeyLimits:
    """Counts what each key asked for.

    Args:
        requests_per_minute: of one key; None means no limit.
        tokens_per_minute: read and written for one key; None means no limit.
    """

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._requests = _per_minute(requests_per_minute)
        self._tokens = _per_minute(tokens_per_minute)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    async def admit(self, name: str) -> None:
        """Count a request.

        Args:
            name: of the key.

        Raises:
            RateLimitError: the key has had its requests, or its tokens, for this minute.
        """
        tokens, requests = self._tokens, self._requests
        if tokens is not None and not await self._limiter.test(tokens, "tokens", name):
            raise await self._exceeded(tokens, "tokens", name)
        if requests is not None and not await self._limiter.hit(requests, "requests", name):
            raise await self._exceeded(requests, "requests", name)

    async def charge(self, name: str, tokens: int) -> None:
        """Count the tokens of a request that is over."""
        if self._tokens is not None and tokens:
            await self._limiter.hit(self._tokens, "tokens", name, cost=tokens)

    async def _exceeded(self, limit: RateLimitItem, what: str, name: str) -> RateLimitError:
        stats = await self._limiter.get_window_stats(limit, what, name)
        seconds = max(1, math.ceil(stats.reset_time - time.time()))
        return RateLimitError(
            f"this key has had its {limit.amount} {what} for this minute; "
            f"try again in {seconds} seconds",
            seconds,
        )


def _per_minute(amount: int | None) -> RateLimitItem | None:
    return None if amount is None else RateLimitItemPerMinute(amount)
