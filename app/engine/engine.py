"""The engine: a step schedules, runs, chooses and tells, for every model in turn.

It has neither threads nor sockets of its own: :mod:`app.engine.host` keeps it going on either.
"""

from collections.abc import Collection, Sequence

from app.engine.request import DecodeRequest, EndEvent, EndReason, Event, Progress
from app.engine.runner import Runner


class Engine:
    """All models of one device.

    Models take turns: each that has work makes one step in every turn of the engine, whatever
    the others have to do.

    Args:
        runners: one for each model.
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners = {runner.name: runner for runner in runners}
        self._refused: list[Event] = []

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, runs, or is yet to be told."""
        return not self._refused and all(runner.is_idle for runner in self._runners.values())

    def submit(self, requests: Sequence[DecodeRequest]) -> None:
        """Queue requests; how many may wait is for the client to decide."""
        for request in requests:
            runner = self._runners.get(request.model)
            if runner is not None:
                runner.submit(request)
                continue
            message = f"the engine has no model {request.model!r}"
            self._refused.append(EndEvent(request.request_id, EndReason.FAILED, 0.0, None, message))

    def cancel(self, request_ids: Collection[int]) -> None:
        """Drop requests that wait or run; unknown ones are ignored."""
        for runner in self._runners.values():
            runner.cancel(request_ids)

    def step(self) -> Progress:
        """One turn of every model that has work."""
        turns = [runner.turn() for runner in self._runners.values() if not runner.is_idle]
        events = self._refused + [event for turn in turns for event in turn.events]
        self._refused = []
        return Progress(
            started=tuple(number for turn in turns for number in turn.started),
            events=tuple(events),
            steps=tuple(turn.report for turn in turns if turn.report is not None),
            rows_running={name: runner.rows for name, runner in self._runners.items()},
        )

    def beat(self) -> None:
        """One real step of every model outside any request: the proof that they work.

        Raises:
            Exception: whatever a model stumbles over.
        """
        for runner in self._runners.values():
            runner.beat()
