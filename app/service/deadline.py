"""When a request must be answered."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from app.exceptions import DeadlineError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment by which one client's request must be answered, whatever it goes through.

    Attributes:
        timeout_seconds: the whole time that the request has.
        at_seconds: the moment, on the event loop's clock.
    """

    timeout_seconds: float
    at_seconds: float

    @classmethod
    def after(cls, timeout_seconds: float) -> "Deadline":
        """A deadline that begins to run now."""
        return cls(timeout_seconds, asyncio.get_running_loop().time() + timeout_seconds)

    def remaining_seconds(self) -> float:
        """Time that is left, not less than 0."""
        return max(0.0, self.at_seconds - asyncio.get_running_loop().time())

    async def wait_for(self, work: Awaitable[Result]) -> Result:
        """The result of some work.

        Raises:
            DeadlineError: it was not there in time, and the work was cancelled.
        """
        try:
            async with asyncio.timeout_at(self.at_seconds) as timeout:
                return await work
        except TimeoutError:
            if timeout.expired():
                raise self.error() from None
            raise

    def error(self) -> DeadlineError:
        """What to raise when it has passed."""
        return DeadlineError(
            f"the request took longer than its deadline of {self.timeout_seconds:g} seconds"
        )
