"""Teams of threads for tests, which share out work however small it is."""

from collections.abc import Iterator
from contextlib import contextmanager

from models.kernels.team import BOARD, LEAST_NANOSECONDS
from models.team import TEAM


@contextmanager
def team_of(count: int) -> Iterator[None]:
    """Have so many threads share out what kernels do."""
    TEAM.resize(count)
    BOARD.set_least(0)
    try:
        yield
    finally:
        BOARD.set_least(LEAST_NANOSECONDS)
        TEAM.resize(1)
