"""The threads that share out the work of kernels: see :mod:`models.kernels.team`."""

import threading

from models.kernels.team import BOARD, MAX_THREADS, work_along

LIGHT_ROWS = 4
"""Up to so many rows a step is light: others have little to do, and leave a core."""


class Team:
    """Threads beside the one that calls a kernel, as many as there are to be.

    They watch for work as long as some comes, and sleep else.
    """

    def __init__(self) -> None:
        self._threads = self._usual = self._light = 1
        self._started = 1
        self._asleep: dict[int, threading.Lock] = {}

    @property
    def threads(self) -> int:
        """How many share out a piece of work now, its caller among them."""
        return self._threads

    @property
    def asleep(self) -> list[int]:
        """Numbers of the threads that sleep."""
        return list(self._asleep)

    def resize(self, threads: int, light_threads: int | None = None) -> None:
        """Have so many threads share out a piece of work, at most :data:`MAX_THREADS`.

        Args:
            threads: as a rule.
            light_threads: while few rows run; None: no others.
        """
        self._usual = min(max(threads, 1), MAX_THREADS)
        self._light = self._usual
        if light_threads is not None:
            self._light = min(max(light_threads, threads), MAX_THREADS)
        if self._light > 1:
            work_along(BOARD.address, 0)  # compiles it, where it is not
        for number in range(self._started, self._light):
            name = f"team-{number}"
            threading.Thread(target=self._work, args=[number], name=name, daemon=True).start()
        self._started = max(self._started, self._light)
        self._set_threads(self._usual)

    def suit(self, rows: int) -> None:
        """Be as many as so many rows are for."""
        threads = self._light if rows <= LIGHT_ROWS else self._usual
        if threads != self._threads:
            self._set_threads(threads)

    def rouse(self) -> None:
        """Wake those that sleep: there will be work in a moment."""
        if self._asleep:
            for number in range(1, self._threads):
                lock = self._asleep.pop(number, None)
                if lock is not None:
                    lock.release()

    def _set_threads(self, count: int) -> None:
        self._threads = count
        BOARD.set_threads(count)

    def _work(self, number: int) -> None:
        lock = threading.Lock()
        lock.acquire()
        while True:
            work_along(BOARD.address, number)
            self._asleep[number] = lock
            lock.acquire()


TEAM = Team()
"""Of this process."""
