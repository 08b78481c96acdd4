"""Notices that an engine has stopped without having ended."""

import asyncio
from collections.abc import Callable

_LOOKS = 10
"""How often it looks within the time that it allows."""


class Watchdog:
    """Calls for help when no sign of life comes for a while.

    It counts its own looks, not seconds: when this process was stopped itself, or its event loop
    was busy, signs of life wait to be read, and the clock alone would say that there were none.

    Args:
        hang_seconds: how long there may be none.
        on_hang: called once when it was longer.
    """

    def __init__(self, hang_seconds: float, on_hang: Callable[[], None]) -> None:
        self._pause_seconds = hang_seconds / _LOOKS
        self._on_hang = on_hang
        self._looks_left = _LOOKS
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch from now on; to be called on the event loop."""
        self.stop()
        self._looks_left = _LOOKS
        self._timer = asyncio.get_running_loop().call_later(self._pause_seconds, self._look)

    def feed(self) -> None:
        """There was a sign of life."""
        self._looks_left = _LOOKS

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._looks_left -= 1
        if self._looks_left <= 0:
            self._timer = None
            self._on_hang()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._pause_seconds, self._look)
