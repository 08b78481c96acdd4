"""The discrete simulation: every request of a fleet, in SimPy.

Requests come at random moments, each to a replica that is drawn (``random``) or to the emptier of
two that are drawn (``two choices``). A replica is :class:`benchmarks.fleet.curve.Service`.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from benchmarks.fleet.curve import Service
from benchmarks.fleet.scaling import Autoscaler, Policy
from benchmarks.saturation import percentile

if TYPE_CHECKING:
    import simpy

Balancing = Literal["random", "two choices"]


@dataclass
class Books:
    """What became of the requests.

    Attributes:
        offered: requests that came.
        shed: refused with 429, because the queue was full.
        latencies_ms: of those that were answered, in the order of their answers.
        row_seconds: rows in use, summed over time.
        queue_seconds: texts waiting, summed over time.
        replica_seconds: of replicas that were there, ready or not.
        inside: requests that were not answered when the simulation ended.
    """

    offered: int = 0
    shed: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    row_seconds: float = 0.0
    queue_seconds: float = 0.0
    replica_seconds: float = 0.0
    inside: int = 0

    def clear(self, inside: int) -> None:
        """Begin again; requests that are inside count as offered."""
        self.offered, self.shed, self.inside = inside, 0, 0
        self.latencies_ms.clear()
        self.row_seconds = self.queue_seconds = self.replica_seconds = 0.0

    @property
    def shed_share(self) -> float:
        """Share of the requests that was refused."""
        return self.shed / self.offered if self.offered else 0.0

    def latency_ms(self, share: float) -> float:
        """A percentile of the latencies; NaN where there are none."""
        return percentile(sorted(self.latencies_ms), share)


class Replica:
    """One replica with its rows and its queue.

    Time is kept in *work done by each running text* as well: a text that begins when that is v
    and has the size w ends when it is v + w, so that nothing has to be updated in between.
    """

    def __init__(self, env: "simpy.Environment", service: Service, books: Books) -> None:
        self._env = env
        self._service = service
        self._books = books
        self._running: list[tuple[float, float]] = []
        self._waiting: deque[tuple[float, float]] = deque()
        self._done = 0.0
        self._at = env.now
        self._plan_number = 0

    @property
    def running(self) -> int:
        """Texts in rows."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        return len(self._waiting)

    def offer(self, size: float) -> bool:
        """Take a request, of a size with the mean 1, or refuse it."""
        if len(self._running) >= self._service.rows:
            if len(self._waiting) >= self._service.queue:
                return False
            self.settle()
            self._waiting.append((self._env.now, size))
            return True
        self.settle()
        heapq.heappush(self._running, (self._done + size, self._env.now))
        self._plan()
        return True

    def settle(self) -> None:
        """Do the work that is due until now, and write down what was in use."""
        running, now = len(self._running), self._env.now
        passed = now - self._at
        if running:
            self._done += passed * self._service.throughput[running] / running
            self._books.row_seconds += passed * running
            self._books.queue_seconds += passed * len(self._waiting)
        self._at = now

    def _plan(self) -> None:
        """Wake up when the next text ends; what was planned before is void."""
        self._plan_number += 1
        running = len(self._running)
        if not running:
            return
        left = max(0.0, self._running[0][0] - self._done)
        delay = left * running / self._service.throughput[running]
        event = self._env.timeout(delay, self._plan_number)
        assert event.callbacks is not None
        event.callbacks.append(self._end_of_text)

    def _end_of_text(self, event: "simpy.Event") -> None:
        if event.value != self._plan_number:
            return
        self.settle()
        _, came = heapq.heappop(self._running)
        self._books.latencies_ms.append((self._env.now - came) * 1e3)
        if self._waiting:
            came, size = self._waiting.popleft()
            heapq.heappush(self._running, (self._done + size, came))
        self._plan()


class Fleet:
    """Replicas, who sends them requests, and who makes more of them.

    Args:
        service: of each replica.
        replicas: ready at the beginning.
        seed: of moments, sizes and choices.
        balancing: how a request finds its replica.
        policy: of the autoscaler; None: the replicas stay as they are.
    """

    def __init__(
        self,
        service: Service,
        replicas: int,
        seed: int,
        balancing: Balancing = "random",
        policy: Policy | None = None,
    ) -> None:
        import simpy

        self.env = simpy.Environment()
        self.books = Books()
        self._service = service
        self._random = random.Random(seed)
        self._balancing = balancing
        self._ready = [self._replica() for _ in range(replicas)]
        self._gone: list[Replica] = []
        self._starting: list[float] = []
        self._policy = policy
        self._since = 0.0

    def run(
        self, rates: Sequence[float], step_seconds: float = 1.0, warm_up_seconds: float = 0.0
    ) -> Books:
        """Send requests, and stop.

        Args:
            rates: requests/s, one for each step.
            step_seconds: length of a step.
            warm_up_seconds: at the beginning, which the books leave out.
        """
        self.env.process(self._send(rates, step_seconds))
        if warm_up_seconds:
            self.env.process(self._forget(warm_up_seconds))
        if self._policy is not None:
            self.env.process(self._scale(Autoscaler(self._policy)))
        self.env.run(until=len(rates) * step_seconds)
        self._count_replicas()
        self.books.inside = self._settle()
        return self.books

    def _settle(self) -> int:
        """Bring all replicas up to now, and count the texts in them."""
        for replica in (*self._ready, *self._gone):
            replica.settle()
        return sum(one.running + one.waiting for one in (*self._ready, *self._gone))

    def _forget(self, seconds: float) -> "Generator[simpy.Event, None, None]":
        yield self.env.timeout(seconds)
        self._count_replicas()
        self.books.clear(self._settle())

    def _replica(self) -> Replica:
        return Replica(self.env, self._service, self.books)

    def _send(
        self, rates: Sequence[float], step_seconds: float
    ) -> "Generator[simpy.Event, None, None]":
        """Poisson arrivals; a rate that changes draws the gap anew, which such gaps allow."""
        sigma = self._service.sigma
        mu = -(sigma**2) / 2  # a mean size of 1
        draw = self._random
        for number, rate in enumerate(rates):
            end = (number + 1) * step_seconds
            while True:
                gap = draw.expovariate(rate) if rate > 0 else math.inf
                if self.env.now + gap >= end:
                    break
                yield self.env.timeout(gap)
                self.books.offered += 1
                size = draw.lognormvariate(mu, sigma)
                self.books.shed += not self._choose().offer(size)
            yield self.env.timeout(max(0.0, end - self.env.now))

    def _choose(self) -> Replica:
        ready = self._ready
        one = ready[int(self._random.random() * len(ready))]
        if self._balancing == "random":
            return one
        other = ready[int(self._random.random() * len(ready))]
        busier = one.running + one.waiting > other.running + other.waiting
        return other if busier else one

    def _scale(self, scaler: Autoscaler) -> "Generator[simpy.Event, None, None]":
        policy = scaler.policy
        while True:
            yield self.env.timeout(policy.sync_seconds)
            self._count_replicas()
            self._starting = [at for at in self._starting if at > self.env.now]
            ready, there = len(self._ready), len(self._ready) + len(self._starting)
            waiting = sum(replica.waiting for replica in self._ready)
            running = sum(replica.running for replica in self._ready)
            wanted = scaler.decide(self.env.now, there, waiting, running)
            for _ in range(wanted - there):
                self.env.process(self._start(policy.start_seconds))
            for _ in range(min(there - wanted, ready - 1)):
                # It gets no more requests, and ends what it has.
                self._gone.append(self._ready.pop())

    def _start(self, seconds: float) -> "Generator[simpy.Event, None, None]":
        self._starting.append(self.env.now + seconds)
        yield self.env.timeout(seconds)
        self._count_replicas()
        self._starting = [at for at in self._starting if at > self.env.now]
        self._ready.append(self._replica())

    def _count_replicas(self) -> None:
        there = len(self._ready) + len(self._starting)
        self.books.replica_seconds += there * (self.env.now - self._since)
        self._since = self.env.now
