"""The threads that share out what kernels do: as many as asked for, awake while there is work."""

import threading
import time
from collections.abc import Callable

from models.kernels.team import BOARD, MAX_THREADS, enlist
from models.team import LIGHT_ROWS, Team


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert is_so()


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("team-")]


def test_one_thread_needs_no_others() -> None:
    before = len(names())
    team = Team()
    team.resize(1)
    assert (team.threads, len(names())) == (1, before)


def test_threads_are_begun_once() -> None:
    before = len(names())
    team = Team()
    for count in (3, 1, 2, 3):
        team.resize(count)
        assert team.threads == count
    team.resize(1)
    assert len(names()) == before + 2


def test_there_are_bounds() -> None:
    team = Team()
    team.resize(0)
    assert team.threads == 1
    team.resize(MAX_THREADS + 5)
    assert team.threads == MAX_THREADS
    team.resize(1)


def test_a_few_rows_have_more_threads() -> None:
    team = Team()
    team.resize(1, 2)
    for rows, threads in ((0, 2), (LIGHT_ROWS, 2), (LIGHT_ROWS + 1, 1), (64, 1), (1, 2)):
        team.suit(rows)
        assert team.threads == threads
    team.resize(1)
    team.suit(1)
    assert team.threads == 1


def test_threads_sleep_when_nothing_comes_and_wake_when_something_will() -> None:
    team = Team()
    team.resize(3)
    wait_until(lambda: sorted(team.asleep) == [1, 2])
    team.rouse()
    assert not team.asleep
    wait_until(lambda: sorted(team.asleep) == [1, 2])
    team.resize(2)
    team.rouse()
    assert list(team.asleep) == [2], "it is one too many"
    team.resize(1)
    assert enlist(BOARD.address, 10**9) == 1
