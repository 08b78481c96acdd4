"""Stopping a run between two steps when a person or the machine asks for it."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

Handler = Callable[[int, FrameType | None], object] | int | None

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRunError(Exception):
    """A run was asked to stop and has saved its state.

    Attributes:
        signal: what asked it.
    """

    def __init__(self, step: int, number: signal.Signals) -> None:
        super().__init__(f"{number.name}: stopped at step {step}; give the same command to go on")
        self.signal = number


class StopRequests:
    """A context that notes SIGINT (Ctrl-C) and SIGTERM instead of dying of them in mid-step.

    Only the first is held back: a second one does at once what it would have done without
    this. A signal that the process ignores (under ``nohup``, say) stays ignored, and outside
    the main thread, where Python allows no handlers, nothing is held back.

    Attributes:
        received: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the signals back."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.__exit__()
