"""The fluid model: a fleet of any size through a day, in steps of seconds.

It counts no requests. In each step every replica is taken to be in the steady state of its share
of the rate, which the discrete simulation of one replica found before. A full replica is empty
again after 0.6 s (384 texts at 615 a second), so a second's steady state is near; only close to its
saturation a replica takes seconds to fill, and here none. What the model cannot see is chance:
requests that happen to meet at one replica are in its latencies, but the autoscaler sees means.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.fleet.curve import Service
from benchmarks.fleet.replicas import Balancing, Fleet
from benchmarks.fleet.scaling import Autoscaler, Policy

SHARES = (
    *(0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    *(0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2),
)
"""Of the saturation; at more, what is above it is shed."""
BINS_MS = np.geomspace(1, 10_000, 400)
TABLE_REPLICAS = 4
"""Simulated at once for the table, so that "two choices" have something to choose from."""
WARM_UP_SECONDS = 2.0


@dataclass(frozen=True)
class Table:
    """The steady states of a replica.

    Attributes:
        rates: requests/s, ascending, [states].
        rows: mean rows in use, [states].
        queue: mean texts that wait, [states].
        shed: share of the requests that is refused, [states].
        latencies: share of the answers in each of ``BINS_MS``, [states, bins].
    """

    rates: NDArray[np.float64]
    rows: NDArray[np.float64]
    queue: NDArray[np.float64]
    shed: NDArray[np.float64]
    latencies: NDArray[np.float64]

    def percentile_ms(self, histogram: NDArray[np.float64], share: float) -> float:
        """A percentile of answers that are counted by bin; NaN where there are none."""
        total = histogram.sum()
        if not total:
            return float("nan")
        return float(BINS_MS[np.searchsorted(np.cumsum(histogram), share * total)])


@dataclass
class Day:
    """What a fleet did in a day, by step.

    Attributes:
        rates: requests/s offered.
        replicas: ready ones.
        paid: ready or starting ones.
        shed: requests/s refused.
        p50_ms: median of the whole day.
        p99_ms: 99th percentile of the whole day's answers.
        step_seconds: length of a step.
    """

    rates: NDArray[np.float64]
    replicas: NDArray[np.float64]
    paid: NDArray[np.float64]
    shed: NDArray[np.float64]
    p50_ms: float
    p99_ms: float
    step_seconds: float

    @property
    def shed_share(self) -> float:
        """Share of the day's requests that was refused."""
        return float(self.shed.sum() / self.rates.sum())

    @property
    def replica_hours(self) -> float:
        """Hours of replicas that were there, ready or not."""
        return float(self.paid.sum() * self.step_seconds / 3600)


def steady_states(
    service: Service, seconds: float, seed: int, balancing: Balancing = "random"
) -> Table:
    """Find the steady states by simulating each.

    Args:
        service: the replica.
        seconds: of each simulation, after :data:`WARM_UP_SECONDS` that do not count.
        seed: of the simulations.
        balancing: how a request finds its replica.
    """
    rates, rows, queue, shed, latencies = [0.0], [0.0], [0.0], [0.0], [np.zeros(len(BINS_MS) + 1)]
    for number, share in enumerate(SHARES):
        rate = share * service.saturation
        fleet = Fleet(service, TABLE_REPLICAS, seed + number, balancing)
        whole_rate = rate * TABLE_REPLICAS
        books = fleet.run([whole_rate] * round(seconds + WARM_UP_SECONDS), 1.0, WARM_UP_SECONDS)
        whole = TABLE_REPLICAS * round(seconds)
        rates.append(rate)
        rows.append(books.row_seconds / whole)
        queue.append(books.queue_seconds / whole)
        shed.append(books.shed_share)
        bins = np.searchsorted(BINS_MS, books.latencies_ms)
        found = np.bincount(bins, minlength=len(BINS_MS) + 1)
        latencies.append(found / found.sum())
    latencies[0] = latencies[1]
    return Table(
        rates=np.array(rates),
        rows=np.array(rows),
        queue=np.array(queue),
        shed=np.array(shed),
        latencies=np.array(latencies),
    )


def live(
    table: Table,
    rates: Sequence[float] | NDArray[np.float64],
    replicas: int,
    policy: Policy | None = None,
    step_seconds: float = 1.0,
) -> Day:
    """Send a fleet these rates.

    Args:
        table: the replica's steady states.
        rates: requests/s, one for each step.
        replicas: ready at the beginning.
        policy: of the autoscaler, which decides every few steps; None: they stay.
        step_seconds: length of a step.
    """
    offered = np.asarray(rates, dtype=np.float64)
    ready, paid = np.empty(len(offered)), np.empty(len(offered))
    scaler = None if policy is None else Autoscaler(policy)
    there, starting, now = replicas, list[tuple[float, int]](), 0.0
    for step, rate in enumerate(offered):
        now += step_seconds
        starting = [(at, count) for at, count in starting if at > now]
        ready[step] = there - sum(count for _, count in starting)
        paid[step] = there
        if scaler is None or now % scaler.policy.sync_seconds >= step_seconds:
            continue
        each = rate / ready[step]
        waiting = float(np.interp(each, table.rates, table.queue)) * ready[step]
        running = float(np.interp(each, table.rates, table.rows)) * ready[step]
        wanted = scaler.decide(now, there, waiting, running)
        if wanted > there:
            starting.append((now + scaler.policy.start_seconds, wanted - there))
            there = wanted
        else:
            there -= min(there - wanted, int(ready[step]) - 1)
    return _day(table, offered, ready, paid, step_seconds)


def _day(
    table: Table,
    offered: NDArray[np.float64],
    ready: NDArray[np.float64],
    paid: NDArray[np.float64],
    step_seconds: float,
) -> Day:
    each = offered / ready
    top = table.rates[-1]
    share = np.interp(each, table.rates, table.shed)
    # Beyond the table a replica goes on answering what it answers at its end.
    answered = np.minimum(each, top) * (1 - share)
    shed = (np.minimum(each, top) * share + np.maximum(each - top, 0)) * ready
    # Answers between two states count for both.
    above = np.clip(np.searchsorted(table.rates, each), 1, len(table.rates) - 1)
    low, high = table.rates[above - 1], table.rates[above]
    part = np.clip((each - low) / (high - low), 0, 1)
    weights = np.bincount(above, part * answered * ready, len(table.rates))
    weights += np.bincount(above - 1, (1 - part) * answered * ready, len(table.rates))
    histogram = weights @ table.latencies
    p50, p99 = (table.percentile_ms(histogram, q) for q in (0.5, 0.99))
    return Day(offered, ready, paid, shed, p50, p99, step_seconds)
