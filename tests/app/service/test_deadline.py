import asyncio

from app.service.deadline import Deadline


def test_a_deadline_runs_down_and_no_further() -> None:
    async def scenario() -> None:
        assert 59 < Deadline.after(60).remaining_seconds() <= 60
        over = Deadline.after(0)
        assert over.remaining_seconds() == 0
        assert str(Deadline.after(2.5).error()).endswith("deadline of 2.5 seconds")

    asyncio.run(scenario())
