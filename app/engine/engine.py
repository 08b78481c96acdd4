"""The engine: a step schedules, runs, chooses and tells, for every model in turn.

It has neither threads nor sockets of its own: :mod:`app.engine.host` keeps it going on either.
"""

from collections.abc import Collection, Sequence

from app.engine.request import DecodeRequest, EndEvent, EndReason, Event, Progress
from app.engine.runner import Runner


class Engine:
    """All models of one device.

    Models take turns: each that has work makes one step in every turn of the engine, whatever
    the others have to do. Only one that is alone may make several.

    Args:
        runners: one for each model.
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners = {(runner.name, runner.revision): runner for runner in runners}
        self._retired: set[tuple[str, int]] = set()
        self._refused: list[Event] = []

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, runs, or is yet to be told."""
        return not self._refused and all(runner.is_idle for runner in self._runners.values())

    def add(self, runner: Runner) -> None:
        """Serve one more model, or another revision of one beside the old one."""
        self._runners[runner.name, runner.revision] = runner

    def retire(self, name: str, revision: int) -> None:
        """Drop a revision of a model as soon as the requests that it has are over."""
        if (name, revision) in self._runners:
            self._retired.add((name, revision))
            self._drop_retired()

    def submit(self, requests: Sequence[DecodeRequest]) -> None:
        """Queue requests; how many may wait is for the client to decide."""
        for request in requests:
            runner = self._runners.get((request.model, request.revision))
            if runner is not None:
                runner.submit(request)
                continue
            message = f"the engine has no model {request.model!r} (revision {request.revision})"
            self._refused.append(EndEvent(request.request_id, EndReason.FAILED, 0.0, None, message))

    def cancel(self, request_ids: Collection[int]) -> None:
        """Drop requests that wait or run; unknown ones are ignored."""
        for runner in self._runners.values():
            runner.cancel(request_ids)

    def step(self) -> Progress:
        """One turn of every model that has work."""
        busy = [runner for runner in self._runners.values() if not runner.is_idle]
        turns = [runner.turn(is_alone=len(busy) == 1) for runner in busy]
        events = self._refused + [event for turn in turns for event in turn.events]
        self._refused = []
        rows_running = dict.fromkeys((name for name, _ in self._runners), 0)
        for (name, _), runner in self._runners.items():
            rows_running[name] += runner.rows
        self._drop_retired()
        return Progress(
            started=tuple(number for turn in turns for number in turn.started),
            events=tuple(events),
            steps=tuple(report for turn in turns for report in turn.reports),
            rows_running=rows_running,
        )

    def beat(self) -> None:
        """One real step of every model outside any request: the proof that they work.

        Raises:
            Exception: whatever a model stumbles over.
        """
        for runner in self._runners.values():
            runner.beat()

    def _drop_retired(self) -> None:
        for key in [key for key in self._retired if self._runners[key].is_idle]:
            self._retired.remove(key)
            del self._runners[key]
