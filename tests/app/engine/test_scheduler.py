"""The policy of admission, on the scheduler alone: no torch, no tensors, steps for seconds."""

import itertools
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.request import DecodeRequest, DecodingParams
from app.engine.scheduler import ADMISSION_INTERVAL_STEPS, Entry, Scheduler

LONGEST = 12
"""Steps for which a simulated request has rows at most."""
FOREVER = float("inf")


def make_request(request_id: int, rows: int, timeout_seconds: float = FOREVER) -> DecodeRequest:
    """Beams and sampled outputs in turn: a row is a row."""
    if request_id % 2:
        params = DecodingParams(max_new_tokens=LONGEST, beam_size=rows)
    else:
        params = DecodingParams(max_new_tokens=LONGEST, temperature=1.0, num_outputs=rows)
    return DecodeRequest(request_id, "model", (1,), params, timeout_seconds)


@dataclass(frozen=True)
class Arrival:
    """A request to come, in the words of the simulation.

    Attributes:
        gap: steps since the arrival before it.
        row_ends: for how many steps each of its rows runs.
        timeout: in steps since its arrival.
        cancelled_after: steps after its arrival, or None.
    """

    gap: int
    row_ends: tuple[int, ...]
    timeout: float = FOREVER
    cancelled_after: int | None = None

    @property
    def rows(self) -> int:
        return len(self.row_ends)


@dataclass
class Simulation:
    """Runs arrivals to their ends, one step a second, and keeps books of its own."""

    row_budget: int
    arrivals: Sequence[Arrival]
    came_at: dict[int, int] = field(default_factory=dict)
    before: dict[int, int] = field(default_factory=dict)
    first_since: dict[int, int] = field(default_factory=dict)
    admitted: dict[int, int] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    waiting: list[int] = field(default_factory=list)
    running: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.row_budget)
        self.admission_steps: list[int] = []

    def run(self) -> None:
        coming = list(enumerate(self.arrivals))
        due = list(itertools.accumulate(arrival.gap for arrival in self.arrivals))
        step = 0
        while coming or self.waiting or self.running:
            while coming and due[coming[0][0]] <= step:
                number, arrival = coming.pop(0)
                self._arrive(number, arrival, step)
            self._drop(step)
            self._admit(step)
            self._advance(step)
            assert self.scheduler.waiting == len(self.waiting)
            assert self.scheduler.running == len(self.running)
            assert len(self.came_at) == len(self.waiting) + len(self.running) + len(self.left)
            step += 1
            assert step < 10_000, "the simulation does not come to an end"

    def rows_in_use(self, step: int) -> int:
        return sum(
            sum(step - since < end for end in self.arrivals[number].row_ends)
            for number, since in self.running.items()
        )

    def _arrive(self, number: int, arrival: Arrival, step: int) -> None:
        self.came_at[number], self.before[number] = step, len(self.waiting)
        self.scheduler.add(Entry(make_request(number, arrival.rows, arrival.timeout), step))
        self.waiting.append(number)

    def _drop(self, step: int) -> None:
        late = {entry.request.request_id for entry in self.scheduler.expired(step)}
        open_now = {*self.waiting, *self.running}
        assert late == {n for n in open_now if step >= self.came_at[n] + self.arrivals[n].timeout}
        cancelled = {
            number
            for number in open_now
            if (after := self.arrivals[number].cancelled_after) is not None
            and step >= self.came_at[number] + after
        }
        for number in late | cancelled:
            self._leave(number)

    def _admit(self, step: int) -> None:
        in_use, any_running = self.rows_in_use(step), bool(self.running)
        admitted = self.scheduler.admit(in_use, step)
        assert in_use + sum(e.request.rows for e in admitted) <= self.row_budget
        if not any_running and self.waiting:
            assert admitted, "rows are idle while requests wait"
        if admitted and any_running:
            assert step - self.admission_steps[-1] >= ADMISSION_INTERVAL_STEPS
        if admitted:
            self.admission_steps.append(step)
        for entry in admitted:
            number = entry.request.request_id
            self.waiting.remove(number)  # raises if it was not waiting
            self.running[number] = self.admitted[number] = step
            assert entry.started_at_seconds == step
        if self.waiting:
            self.first_since.setdefault(self.waiting[0], step)

    def _advance(self, step: int) -> None:
        for number in [n for n, s in self.running.items() if step + 1 - s >= self._length(n)]:
            self._leave(number)

    def _length(self, number: int) -> int:
        return max(self.arrivals[number].row_ends)

    def _leave(self, number: int) -> None:
        entry = self.scheduler.remove(number)
        assert entry is not None
        assert entry.request.request_id == number
        assert self.scheduler.get(number) is None
        assert self.scheduler.remove(number) is None
        self.left.add(number)
        self.running.pop(number, None)
        if number in self.waiting:
            self.waiting.remove(number)


row_ends = st.one_of(
    st.integers(1, LONGEST).map(lambda steps: (steps,)),  # most requests have one row
    st.lists(st.integers(1, LONGEST), min_size=1, max_size=16).map(tuple),
    st.integers(1, LONGEST).map(lambda steps: (steps,) * 16),
)
patient = st.builds(Arrival, gap=st.sampled_from([0, 0, 1, 2, 5]), row_ends=row_ends)
impatient = st.builds(
    Arrival,
    gap=st.sampled_from([0, 0, 1, 2, 5]),
    row_ends=row_ends,
    timeout=st.just(FOREVER) | st.integers(0, 20),
    cancelled_after=st.none() | st.integers(0, 20),
)
budgets = st.integers(16, 40)


@settings(max_examples=150)
@given(row_budget=budgets, arrivals=st.lists(patient | impatient, max_size=40))
def test_rows_books_and_fates_hold_at_every_step(row_budget: int, arrivals: list[Arrival]) -> None:
    simulation = Simulation(row_budget, arrivals)
    simulation.run()
    assert simulation.left == set(range(len(arrivals)))
    for number, arrival in enumerate(arrivals):
        if arrival.timeout == 0 or arrival.cancelled_after == 0:
            assert number not in simulation.admitted
        elif arrival.timeout == FOREVER and arrival.cancelled_after is None:
            assert number in simulation.admitted


@settings(max_examples=300)
@given(row_budget=budgets, arrivals=st.lists(patient | impatient, max_size=60))
def test_nobody_starves(row_budget: int, arrivals: list[Arrival]) -> None:
    """The bounds of the policy, for wide requests and for narrow ones behind them alike.

    When a request becomes the first to wait, those that run leave within ``LONGEST`` steps.
    Those that pass it take no more than it leaves of the budget, so that it then fits, at the
    next admission.
    """
    simulation = Simulation(row_budget, arrivals)
    simulation.run()
    span = LONGEST + ADMISSION_INTERVAL_STEPS
    for number, admitted_at in simulation.admitted.items():
        if number in simulation.first_since:
            assert admitted_at - simulation.first_since[number] <= span
        turns = simulation.before[number] + 1
        assert admitted_at - simulation.came_at[number] <= turns * span


@settings(max_examples=100)
@given(row_budget=budgets, arrivals=st.lists(patient | impatient, max_size=40))
def test_requests_of_one_width_are_admitted_in_their_order(
    row_budget: int, arrivals: list[Arrival]
) -> None:
    simulation = Simulation(row_budget, arrivals)
    simulation.run()
    for rows in {arrival.rows for arrival in arrivals}:
        admitted = [n for n in simulation.admitted if arrivals[n].rows == rows]
        assert admitted == sorted(admitted)


def add(scheduler: Scheduler, request_id: int, rows: int) -> None:
    scheduler.add(Entry(make_request(request_id, rows), 0.0))


def admit(scheduler: Scheduler, rows_in_use: int) -> list[int]:
    """The next admission, some steps later."""
    for _ in range(ADMISSION_INTERVAL_STEPS):
        if admitted := scheduler.admit(rows_in_use, 0.0):
            return [entry.request.request_id for entry in admitted]
    return []


def test_a_wide_request_lets_pass_only_what_it_leaves_of_the_budget() -> None:
    scheduler = Scheduler(20)
    add(scheduler, 0, 12)
    assert admit(scheduler, 0) == [0]
    add(scheduler, 1, 16)
    add(scheduler, 9, 10)  # does not fit either, and must not draw attention from the first
    for request_id in range(2, 9):
        add(scheduler, request_id, 1)
    # Eight rows are free, and the wide request leaves four: those may pass, and no more.
    assert admit(scheduler, 12) == [2, 3, 4, 5]
    for request_id in (2, 3, 4, 5):
        scheduler.remove(request_id)
    assert admit(scheduler, 12) == []
    scheduler.remove(0)
    assert admit(scheduler, 0) == [1, 6, 7, 8]


def test_nobody_passes_a_request_that_needs_all_rows() -> None:
    scheduler = Scheduler(16)
    add(scheduler, 0, 1)
    assert admit(scheduler, 0) == [0]
    add(scheduler, 1, 16)
    add(scheduler, 2, 1)
    assert admit(scheduler, 1) == []
    scheduler.remove(0)
    assert admit(scheduler, 0) == [1]


def test_what_passed_one_request_does_not_count_against_the_next() -> None:
    scheduler = Scheduler(20)
    add(scheduler, 0, 12)
    assert admit(scheduler, 0) == [0]
    add(scheduler, 1, 16)
    add(scheduler, 2, 4)
    assert admit(scheduler, 12) == [2]
    add(scheduler, 3, 16)
    add(scheduler, 4, 4)
    assert admit(scheduler, 16) == []
    scheduler.remove(1)
    assert admit(scheduler, 16) == [4]


def test_while_rows_run_arrivals_are_admitted_together() -> None:
    scheduler = Scheduler(1 + 2 * ADMISSION_INTERVAL_STEPS)
    add(scheduler, 0, 1)
    assert [e.request.request_id for e in scheduler.admit(0, 0.0)] == [0]
    admitted = {}
    for step in range(1, 2 * ADMISSION_INTERVAL_STEPS + 1):
        add(scheduler, step, 1)
        if entries := scheduler.admit(scheduler.running, 0.0):
            admitted[step] = [entry.request.request_id for entry in entries]
    interval = ADMISSION_INTERVAL_STEPS
    assert admitted == {
        interval: list(range(1, interval + 1)),
        2 * interval: list(range(interval + 1, 2 * interval + 1)),
    }


def test_an_arrival_after_a_quiet_time_does_not_wait_for_the_interval() -> None:
    scheduler = Scheduler(16)
    add(scheduler, 0, 1)
    assert admit(scheduler, 0) == [0]
    for _ in range(ADMISSION_INTERVAL_STEPS):
        assert scheduler.admit(1, 0.0) == []
    add(scheduler, 1, 1)
    assert len(scheduler.admit(1, 0.0)) == 1


def test_a_request_wider_than_the_budget_is_refused() -> None:
    scheduler = Scheduler(8)
    with pytest.raises(ValueError, match="needs 9 rows, more than the 8 there are"):
        add(scheduler, 0, 9)
    assert scheduler.waiting == 0
    with pytest.raises(ValueError, match="row_budget must be at least 1, not 0"):
        Scheduler(0)


def test_deadlines_of_requests_that_left_are_forgotten() -> None:
    scheduler = Scheduler(1)
    for request_id in range(5_000):
        scheduler.add(Entry(make_request(request_id, 1, timeout_seconds=86_400), 0.0))
        scheduler.remove(request_id)
    # Not by tracemalloc: a process of CPython 3.11 with a hundred threads died of stopping it.
    before = sys.getallocatedblocks()
    for request_id in range(5_000, 25_000):
        scheduler.add(Entry(make_request(request_id, 1, timeout_seconds=86_400), 0.0))
        scheduler.remove(request_id)
    assert sys.getallocatedblocks() - before < 5_000  # a tuple for each would be 20,000
    scheduler.add(Entry(make_request(25_000, 1, timeout_seconds=1), 0.0))
    assert [entry.request.request_id for entry in scheduler.expired(1.0)] == [25_000]
    assert scheduler.expired(100_000.0) == []


def test_the_others_deadlines_keep_their_order_when_some_are_forgotten() -> None:
    scheduler = Scheduler(1)
    for request_id in range(4_000):
        timeout_seconds = 1 + request_id * 7919 % 4_000
        request = make_request(request_id, 1, timeout_seconds=timeout_seconds)
        scheduler.add(Entry(request, 0.0))
        if request_id % 8:
            scheduler.remove(request_id)
    for now in range(1, 4_001):
        for entry in scheduler.expired(now):
            assert entry.deadline_seconds == now
            scheduler.remove(entry.request.request_id)
    assert scheduler.waiting == 0


def test_the_scheduler_runs_without_torch() -> None:
    script = "import sys, app.engine.scheduler; print('torch' in sys.modules)"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
