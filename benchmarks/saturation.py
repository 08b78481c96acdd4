"""Where a server's limits are: what a measurement says, and at which rates to measure next.

Nothing here sends a request: :func:`sweep` and :func:`highest_rate` are given a function that
measures at one rate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

KEEPS_UP = 0.95
"""A server keeps up with a load if it answers so much of it while the load lasts."""
GROWTH = 1.15
"""Factor between the first rates of the sweep."""
RESOLUTION = 1.08
"""The sweep ends when the limit lies between two rates that differ by such a factor."""
MAX_SWEEP_MEASUREMENTS = 8
HOPELESS_MS = 4_000.0
"""A 97th percentile above this says that the queue only grows."""


@dataclass(frozen=True)
class Measurement:
    """One load and how it was answered.

    Attributes:
        rate: requests/s that were due.
        goodput: answers/s with status 200 while the load lasted, in steady state.
        requests: how many were due.
        failed: how many of them got no answer with status 200.
        p50_ms: median latency from the moment a request was due; a failure counts as infinite.
        p97_ms: 97th percentile, likewise.
        p99_ms: 99th percentile, likewise.
    """

    rate: float
    goodput: float
    requests: int
    failed: int
    p50_ms: float
    p97_ms: float
    p99_ms: float

    @property
    def keeps_up(self) -> bool:
        """Whether the server could go on like this for ever."""
        return self.goodput >= KEEPS_UP * self.rate and self.p97_ms <= HOPELESS_MS


Measure = Callable[[float], Measurement]


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The smallest value with at least this share of all values at or below it.

    Args:
        sorted_values: ascending; NaN comes out where there are none.
        share: above 0 and at most 1.
    """
    if not sorted_values:
        return math.nan
    return sorted_values[math.ceil(share * len(sorted_values)) - 1]


def summarise(
    rate: float, latencies_ms: Sequence[float], failed: int, answered: int, seconds: float
) -> Measurement:
    """A measurement from its raw figures.

    Args:
        rate: requests/s that were due.
        latencies_ms: of the requests that were due in the measurement and answered.
        failed: how many were not.
        answered: answers that came in the measurement, whenever they were due.
        seconds: its length.
    """
    ordered = sorted(latencies_ms) + [math.inf] * failed
    p50, p97, p99 = (percentile(ordered, share) for share in (0.5, 0.97, 0.99))
    return Measurement(rate, answered / seconds, len(ordered), failed, p50, p97, p99)


def sweep(measure: Measure, estimate: float) -> list[Measurement]:
    """Raise the rate until the server falls behind, then look closer in between.

    Args:
        measure: measures at a rate.
        estimate: a guess of the limit in requests/s.

    Returns:
        All measurements, in the order in which they were taken: at least one in which the
        server kept up and one in which it did not, unless too many would have been needed.
    """
    taken: list[Measurement] = []
    rate = 0.85 * estimate
    while len(taken) < MAX_SWEEP_MEASUREMENTS:
        taken.append(measure(rate))
        good = [m.rate for m in taken if m.keeps_up]
        bad = [m.rate for m in taken if not m.keeps_up]
        if good and bad:
            if min(bad) <= RESOLUTION * max(good):
                break
            rate = math.sqrt(max(good) * min(bad))
        else:
            # Larger and larger steps, as the estimate was the worse.
            rate *= GROWTH ** (len(good) - 2 * len(bad))
    return taken


def saturation(measurements: Sequence[Measurement]) -> float:
    """The most that the server answered, in requests/s, however late."""
    return max(m.goodput for m in measurements)


def highest_rate(
    measure: Measure, known: Sequence[Measurement], limit_ms: float, steps: int
) -> Measurement | None:
    """The highest rate at which the 97th percentile keeps within a limit.

    Args:
        measure: measures at a rate.
        known: measurements that were taken already, at least one.
        limit_ms: of the 97th percentile.
        steps: how many more measurements to take.

    Returns:
        The measurement at that rate, or None if none kept within the limit.
    """
    taken = list(known)
    for _ in range(steps):
        broken = min((m.rate for m in taken if not m.p97_ms <= limit_ms), default=math.inf)
        # Luck above a rate that broke the limit does not count.
        kept = max((m.rate for m in taken if m.p97_ms <= limit_ms and m.rate < broken), default=0)
        if math.isinf(broken):
            taken.append(measure(kept * GROWTH))
        else:
            taken.append(measure(math.sqrt(kept * broken) if kept else 0.7 * broken))
    broken = min((m.rate for m in taken if not m.p97_ms <= limit_ms), default=math.inf)
    within = [m for m in taken if m.p97_ms <= limit_ms and m.rate < broken]
    return max(within, key=lambda m: m.rate, default=None)
