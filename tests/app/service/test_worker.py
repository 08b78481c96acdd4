"""Work on a thread of its own: in turn, within deadlines, and not behind a shutdown."""

import asyncio
import threading

import pytest

from app.exceptions import DeadlineError, DrainingError
from app.service.deadline import Deadline
from app.service.worker import Worker
from tests.app.conftest import TIMEOUT_SECONDS


def test_the_event_loop_goes_on() -> None:
    async def scenario() -> None:
        turn = threading.Event()

        def work() -> str:
            assert turn.wait(TIMEOUT_SECONDS)
            return threading.current_thread().name

        doing = asyncio.create_task(Worker("some-name").run(work, Deadline.after(60)))
        await asyncio.sleep(0.01)
        assert not doing.done()
        turn.set()  # by the event loop, which would wait for ever if it did the work
        assert (await doing).startswith("some-name")

    asyncio.run(scenario())


def test_an_error_of_the_work_is_its_own() -> None:
    async def scenario() -> None:
        def fail() -> None:
            raise LookupError

        with pytest.raises(LookupError):
            await Worker("some-name").run(fail, Deadline.after(60))

    asyncio.run(scenario())


def test_what_nobody_waits_for_any_more_is_not_begun() -> None:
    async def scenario() -> None:
        worker, turn, begun = Worker("some-name"), threading.Event(), list[str]()
        first = asyncio.create_task(worker.run(turn.wait, Deadline.after(60)))
        await asyncio.sleep(0.01)
        with pytest.raises(DeadlineError):
            await worker.run(lambda: begun.append("late"), Deadline.after(0.01))
        left = asyncio.create_task(worker.run(lambda: begun.append("left"), Deadline.after(60)))
        await asyncio.sleep(0.01)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        turn.set()
        assert await first
        await worker.run(lambda: begun.append("last"), Deadline.after(60))
        assert begun == ["last"]

    asyncio.run(scenario())


def test_nothing_is_begun_behind_a_shutdown() -> None:
    async def scenario() -> None:
        worker, turn = Worker("some-name"), threading.Event()
        first = asyncio.create_task(worker.run(turn.wait, Deadline.after(60)))
        waiting = asyncio.create_task(worker.run(int, Deadline.after(60)))
        await asyncio.sleep(0.01)
        worker.close()
        turn.set()
        assert await first
        for late in (waiting, worker.run(int, Deadline.after(60))):
            with pytest.raises(DrainingError):
                await late

    asyncio.run(scenario())
