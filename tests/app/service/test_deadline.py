import asyncio

import pytest

from app.exceptions import DeadlineError
from app.service.deadline import Deadline


def test_a_deadline_runs_down_and_no_further() -> None:
    async def scenario() -> None:
        assert 59 < Deadline.after(60).remaining_seconds() <= 60
        over = Deadline.after(0)
        assert over.remaining_seconds() == 0
        assert str(Deadline.after(2.5).error()).endswith("deadline of 2.5 seconds")

    asyncio.run(scenario())


def test_work_is_waited_for_until_the_deadline() -> None:
    async def fails() -> None:
        raise TimeoutError("of its own")

    async def scenario() -> None:
        assert await Deadline.after(60).wait_for(asyncio.sleep(0, "done")) == "done"
        with pytest.raises(TimeoutError, match="of its own"):
            await Deadline.after(60).wait_for(fails())
        with pytest.raises(DeadlineError, match=r"deadline of 0\.01 seconds"):
            await Deadline.after(0.01).wait_for(asyncio.sleep(60))

    asyncio.run(scenario())
