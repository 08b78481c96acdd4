"""Gives up the work for a client that went away."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """The client closed its connection before the answer was ready: nobody will read one."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Run some work, and cancel it when the client goes away.

    Args:
        request: whose body was read to its end.
        work: what takes long.

    Raises:
        ClientGoneError: the client went away first.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for each in (task, watcher):
            each.cancel()
        # The work's own clean-up belongs to this request: wait for it.
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
