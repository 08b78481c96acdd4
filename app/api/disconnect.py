"""Gives up the work for a client that went away."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """The client closed its connection before the answer was complete: nobody will read it."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Do some work, and cancel it when the client goes away.

    The work goes on in the task that awaits this; a second task waits for the disconnect.

    Args:
        receive: of the client's request, whose body was read to its end.
        work: what takes long.

    Raises:
        ClientGoneError: the client went away first.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        return await work
    except asyncio.CancelledError:
        # Whoever else wants the task to end at the same time comes first.
        if gone and task.cancelling() == 1:
            raise ClientGoneError from None
        raise
    finally:
        watcher.cancel()
        if gone:
            task.uncancel()
