"""A thread for work that would hold up the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from app.exceptions import DrainingError
from app.service.deadline import Deadline

Result = TypeVar("Result")


class Worker:
    """Does one piece of work after another, on a thread of its own.

    One thread: the work is Python's, and several would only take turns with each other, and leave
    the event loop a smaller share.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._is_closed = False

    async def run(self, work: Callable[[], Result], deadline: Deadline) -> Result:
        """Do some work while the event loop goes on.

        When nobody waits any more, work that waits for its turn is dropped; what is being done
        goes on to its end, so that each piece must have one.

        Args:
            work: touches nothing that another thread changes.
            deadline: of the client's request.

        Raises:
            DeadlineError: it took too long, or its turn did not come in time.
            DrainingError: the service shuts down, and it was not begun.
        """

        def begin() -> Result:
            if self._is_closed:
                raise DrainingError("the service is shutting down and takes no more requests")
            return work()

        doing = asyncio.get_running_loop().run_in_executor(self._executor, begin)
        return await deadline.wait_for(doing)

    def close(self) -> None:
        """Begin nothing more, neither what waits for its turn nor what comes."""
        self._is_closed = True
