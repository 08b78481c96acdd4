"""Gives up the work for a client that went away."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive, Scope

from app.api.scope import WATCH_SCOPE_KEY

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """The client closed its connection before the answer was complete: nobody will read it."""


async def while_connected(
    scope: Scope, receive: Receive, work: Coroutine[Any, Any, Result]
) -> Result:
    """Do some work, and cancel it when the client goes away.

    The work goes on in the task that awaits this. Where the server does not tell of the
    disconnect by itself, a second task waits for it.

    Args:
        scope: of the client's request.
        receive: of the request, whose body was read to its end.
        work: what takes long.

    Raises:
        ClientGoneError: the client went away first.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    def give_up() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    watch = scope.get(WATCH_SCOPE_KEY)
    end_watch = watch(give_up) if watch else _watch_by_task(receive, give_up)
    try:
        return await work
    except asyncio.CancelledError:
        # Whoever else wants the task to end at the same time comes first.
        if gone and task.cancelling() == 1:
            raise ClientGoneError from None
        raise
    finally:
        end_watch()
        if gone:
            task.uncancel()


def _watch_by_task(receive: Receive, give_up: Callable[[], None]) -> Callable[[], object]:
    """As :data:`WATCH_SCOPE_KEY` has it, over what every server can do."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        give_up()

    return asyncio.ensure_future(watch()).cancel
