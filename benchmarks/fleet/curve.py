"""What one replica was measured to do, and the throughput by rows that explains it.

A replica is taken for a processor that its running texts share: with n rows running it finishes
``throughput(n)`` requests of the mean size a second, and each text advances by an nth of that.
Whatever comes beyond the rows waits in order; whatever comes beyond the queue is shed.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CALIBRATIONS = 60
"""Rounds of the fit; it moves by less than a thousandth in the last ones."""


@dataclass(frozen=True)
class Load:
    """A measured load.

    Attributes:
        share: of the saturation.
        p50_ms: median latency.
        p97_ms: 97th percentile.
        p99_ms: 99th percentile.
    """

    share: float
    p50_ms: float
    p97_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Curve:
    """Latency by load of one replica.

    Attributes:
        source: where the figures are from.
        saturation: most requests/s that it kept up with.
        idle_ms: latency of one connection, which is a request that has the replica for itself.
        loads: at shares of the saturation, ascending.
        limit_ms: for which the highest rate was searched.
        limit_rate: most requests/s with the 97th percentile within ``limit_ms``.
        rows: texts that run at once (``GATEHOUSE_ROW_BUDGET``).
        queue: texts that may wait (``GATEHOUSE_QUEUE_CAPACITY``).
        sigma: standard deviation of the logarithm of a request's size; set by hand, with the
            measured ratios of the percentiles in view.
    """

    source: str
    saturation: float
    idle_ms: float
    loads: tuple[Load, ...]
    limit_ms: float
    limit_rate: float
    rows: int = 128
    queue: int = 256
    sigma: float = 0.43


MEASURED = Curve(
    source="docs/benchmarks.md, Serving: gatehouse int8 at commit f67f31d, two cores of an EPYC",
    saturation=615,
    idle_ms=11.6,
    loads=(Load(0.25, 31, 74, 100), Load(0.5, 60, 159, 177), Load(0.8, 122, 303, 391)),
    limit_ms=250,
    limit_rate=471,
)
"""The one place to renew after a measurement; a test holds it against the page."""


@dataclass(frozen=True)
class Service:
    """One replica, as it is simulated.

    Attributes:
        throughput: requests/s of the mean size by how many run, from 0 to the rows.
        queue: texts that may wait.
        sigma: of the logarithm of a request's size.
    """

    throughput: tuple[float, ...]
    queue: int
    sigma: float

    @property
    def rows(self) -> int:
        """Texts that run at once."""
        return len(self.throughput) - 1

    @property
    def saturation(self) -> float:
        """Requests/s with all rows running."""
        return self.throughput[-1]


def calibrate(curve: Curve = MEASURED) -> Service:
    """The service whose median latencies are the measured ones.

    Throughput is interpolated, on logarithms, between one row (the idle latency), the rows that
    run at each measured load, and all rows (the saturation). How many run at a measured load is
    what is fitted. The higher percentiles are not, but for what ``sigma`` says of all of them.
    """
    rates = np.array([load.share for load in curve.loads]) * curve.saturation
    mean_s = np.array([load.p50_ms for load in curve.loads]) / 1e3 * math.exp(curve.sigma**2 / 2)
    wanted = rates * mean_s  # Little's law
    knots = wanted.copy()
    service = _service(curve, knots)
    for _ in range(CALIBRATIONS):
        found = np.array([texts_inside(service, rate) for rate in rates])
        knots = np.clip(knots * np.sqrt(wanted / found), 1.01, curve.rows - 1)
        service = _service(curve, knots)
    return service


def probabilities(service: Service, rate: float) -> NDArray[np.float64]:
    """How probable each number of texts inside is when requests come at random.

    Exact for a shared processor, whatever the sizes; with a queue, for exponential ones.

    Args:
        service: the replica.
        rate: requests/s.

    Returns:
        Probabilities, [rows + queue + 1].
    """
    places = np.array(service.throughput[1:] + (service.saturation,) * service.queue)
    logs = np.concatenate([[0.0], np.cumsum(np.log(rate / places))])
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def texts_inside(service: Service, rate: float) -> float:
    """Mean texts that run or wait at a rate in requests/s."""
    chances = probabilities(service, rate)
    return float(chances @ np.arange(len(chances)))


def _service(curve: Curve, knots: NDArray[np.float64]) -> Service:
    rates = [load.share * curve.saturation for load in curve.loads]
    at = np.log([1.0, *knots, curve.rows])
    level = np.log([1e3 / curve.idle_ms, *rates, curve.saturation])
    through = np.exp(np.interp(np.log(np.arange(1, curve.rows + 1)), at, level))
    return Service((0.0, *map(float, through)), curve.queue, curve.sigma)
