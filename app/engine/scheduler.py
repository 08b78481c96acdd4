"""Who gets rows next: the waiting requests of one model, and the policy of admission.

It knows requests, numbers of rows and times, and no tensors.

The policy:

* Requests are admitted in the order in which they came, each with all of its rows or not at all.
* When the first one needs more rows than are free, those behind it that fit may pass it, in
  their order, but no more rows in all than it leaves of the budget. Then nobody passes.
* While rows run, some steps lie between two admissions (:data:`ADMISSION_INTERVAL_STEPS`):
  requests that come in between are read together, which costs little more than reading one.
  When nothing runs, requests are admitted at once.
* A request whose time is up leaves, wherever it is.

So nobody starves. Those that passed the first one can never be what it waits for, since it has
room beside all of them: it gets its rows at the latest at the first admission
after the last of those has left that ran when it became the first. A request with n before it
is admitted within n + 1 such spans, however wide they are.
"""

import heapq
from dataclasses import dataclass

from app.engine.request import DecodeRequest

ADMISSION_INTERVAL_STEPS = 12
"""Reading a handful of prompts costs as much as several steps, and each admission ends steps that
are made at once. With 6 one core kept up with a tenth fewer requests; 20 gained nothing."""
_SPARE_DEADLINES = 1_000


@dataclass(slots=True, eq=False)
class Entry:
    """A request in the engine.

    Attributes:
        request: what was asked for.
        submitted_at_seconds: when it came, on the engine's clock.
        started_at_seconds: when it got its rows, or None while it waits.
        first_token_at_seconds: when its first token was chosen.
        rows_passed: rows of later requests that were admitted while it was the first to wait.
    """

    request: DecodeRequest
    submitted_at_seconds: float
    started_at_seconds: float | None = None
    first_token_at_seconds: float | None = None
    rows_passed: int = 0

    @property
    def deadline_seconds(self) -> float:
        """When its time is up, on the engine's clock."""
        return self.submitted_at_seconds + self.request.timeout_seconds


class Scheduler:
    """The queue of one model.

    Args:
        row_budget: rows that may run at once.

    Raises:
        ValueError: there is no budget.
    """

    def __init__(self, row_budget: int) -> None:
        if row_budget < 1:
            raise ValueError(f"row_budget must be at least 1, not {row_budget}")
        self.row_budget = row_budget
        self._waiting: dict[int, Entry] = {}  # in the order in which they came
        self._running: dict[int, Entry] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._steps_since_admission = ADMISSION_INTERVAL_STEPS

    @property
    def waiting(self) -> int:
        """Requests without rows."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests with rows."""
        return len(self._running)

    def add(self, entry: Entry) -> None:
        """Put a request at the end of the queue.

        Raises:
            ValueError: it needs more rows than there will ever be.
        """
        request = entry.request
        if request.rows > self.row_budget:
            raise ValueError(
                f"the request needs {request.rows} rows, more than the {self.row_budget} there are"
            )
        self._waiting[request.request_id] = entry
        if entry.deadline_seconds < float("inf"):
            heapq.heappush(self._deadlines, (entry.deadline_seconds, request.request_id))
            self._forget_old_deadlines()

    @property
    def steps_to_admission(self) -> int:
        """After how many steps the next admission is due, 1 at least."""
        return max(ADMISSION_INTERVAL_STEPS - self._steps_since_admission, 1)

    def admit(self, rows_in_use: int, now_seconds: float, steps: int = 1) -> list[Entry]:
        """Requests that begin to run with the next step. To be called before it.

        Args:
            rows_in_use: rows that the running requests have or may still come to have.
            now_seconds: the engine's clock.
            steps: how many were made since the last call.
        """
        self._steps_since_admission += steps
        if not self._waiting:
            return []
        if self._running and self._steps_since_admission < ADMISSION_INTERVAL_STEPS:
            return []
        self._steps_since_admission = 0
        admitted = self._choose(self.row_budget - rows_in_use)
        for entry in admitted:
            request_id = entry.request.request_id
            entry.started_at_seconds = now_seconds
            self._running[request_id] = self._waiting.pop(request_id)
        return admitted

    def _choose(self, room: int) -> list[Entry]:
        chosen: list[Entry] = []
        blocked: Entry | None = None
        for entry in self._waiting.values():
            if room == 0:
                break
            rows = entry.request.rows
            if rows > room:
                if blocked is None:  # the first: those behind it may have what it leaves
                    blocked = entry
                    room = min(room, self.row_budget - rows - entry.rows_passed)
                continue
            chosen.append(entry)
            room -= rows
            if blocked is not None:
                blocked.rows_passed += rows
        return chosen

    def get(self, request_id: int) -> Entry | None:
        """A request that waits or runs."""
        return self._running.get(request_id) or self._waiting.get(request_id)

    def remove(self, request_id: int) -> Entry | None:
        """Take a request out, wherever it is; None where there is no such request."""
        return self._running.pop(request_id, None) or self._waiting.pop(request_id, None)

    def expired(self, now_seconds: float) -> list[Entry]:
        """The requests whose time is up; they stay until they are removed."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now_seconds:
            _, request_id = heapq.heappop(self._deadlines)
            entry = self.get(request_id)
            if entry is not None:
                found.append(entry)
        return found

    def _forget_old_deadlines(self) -> None:
        """Requests mostly leave long before their time: keep no more of them than are here."""
        if len(self._deadlines) > 2 * (self.waiting + self.running) + _SPARE_DEADLINES:
            self._deadlines = [pair for pair in self._deadlines if self.get(pair[1]) is not None]
            heapq.heapify(self._deadlines)

    def running_ids(self) -> list[int]:
        """Ids of the requests with rows."""
        return list(self._running)
