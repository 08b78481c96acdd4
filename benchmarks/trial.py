"""One server under measurement: loads are sent to it, and what they cost is read beside it."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.contestants import PATH, Contestant
from benchmarks.load import MAX_CONNECTIONS, Outcome, Plan, send_load
from benchmarks.processes import HOST, ServerProcess, busy_seconds
from benchmarks.saturation import (
    Measurement,
    highest_rate,
    percentile,
    saturation,
    summarise,
    sweep,
)

SHARES = (0.25, 0.5, 0.8)
"""Loads to report latencies at, as shares of the saturation."""
ESTIMATE_CONNECTIONS = 128
WARM_UP = ((128, 2.0), (16, 1.0), (1, 1.0))
"""Connections and seconds of the loads before the first measurement."""
DISTURBED_CORES = 0.15
"""Others on the machine may use so much of the cores before a measurement is taken again."""
MAX_REPETITIONS = 2
MIN_RATE = 0.5
"""Requests/s of the lightest open loop, for servers that answer next to nothing."""
WANTED_REQUESTS = 100
"""A slow server's measurement takes up to twice as long, so that it has so many requests."""


@dataclass(frozen=True)
class Options:
    """How long and how closely to look.

    Attributes:
        seconds: of one measurement, at least.
        limit_ms: for the highest rate with the 97th percentile within it.
        steps: measurements for that rate.
        cores: of servers and load generator.
        seed: of the load.
        patience_seconds: time for each server to wait for others on the machine to end, and to
            take measurements again that they disturbed.
    """

    seconds: float
    limit_ms: float
    steps: int
    cores: Sequence[int]
    seed: int
    patience_seconds: float


@dataclass(frozen=True)
class Clocks:
    """Clocks that were read at one moment, in seconds.

    Attributes:
        now: time.
        server_seconds: processor time of the server.
        busy_seconds: of all cores together, whoever used them.
    """

    now: float
    server_seconds: float
    busy_seconds: float

    def elsewhere_since(self, before: "Clocks", generator_seconds: float = 0.0) -> float:
        """Cores that neither the server nor the load generator has used since then."""
        busy = self.busy_seconds - before.busy_seconds
        own = self.server_seconds - before.server_seconds + generator_seconds
        return (busy - own) / (self.now - before.now)


@dataclass(frozen=True)
class Costs:
    """What one load cost.

    Attributes:
        server_ms_per_request: processor time of all the server's processes.
        generator_us_per_request: processor time of the load generator.
        generator_lag_p97_ms: how late it looked at requests that were due.
        elsewhere_cores: what others used of the cores meanwhile.
    """

    server_ms_per_request: float
    generator_us_per_request: float
    generator_lag_p97_ms: float
    elsewhere_cores: float


@dataclass
class Figures:
    """What was found out about one server.

    Attributes:
        saturation: requests/s, the most that it answered under any load.
        at_shares: measurements at :data:`SHARES` of it.
        within_limit: the measurement at the highest rate with the 97th percentile in the limit.
        one_connection_p50_ms: median latency when a single client waits for each answer.
        server_ms_per_request: processor time at the largest of the shares.
        peak_memory_bytes: of all its processes.
        generator_us_per_request: processor time of the load generator at the highest rate.
        generator_lag_p97_ms: how late it looked at requests that were due, at that rate.
        elsewhere_cores: most that others used of the cores during a measurement.
        measurements: everything measured in an open loop.
    """

    saturation: float = 0.0
    at_shares: dict[float, Measurement] = field(default_factory=dict)
    within_limit: Measurement | None = None
    one_connection_p50_ms: float = 0.0
    server_ms_per_request: float = 0.0
    peak_memory_bytes: int = 0
    generator_us_per_request: float = 0.0
    generator_lag_p97_ms: float = 0.0
    elsewhere_cores: float = 0.0
    measurements: list[Measurement] = field(default_factory=list)


class Trial:
    """Measurements of one running server.

    Args:
        server: up and answering.
        contestant: what it is.
        sentences: to draw from.
        options: how to measure.
        generator_cores: cores of the load generator; empty for those of the server.
    """

    def __init__(
        self,
        server: ServerProcess,
        contestant: Contestant,
        sentences: Sequence[str],
        options: Options,
        generator_cores: Sequence[int] = (),
    ) -> None:
        self._server = server
        self._bodies = [json.dumps(contestant.body(sentence)) for sentence in sentences]
        self._options = options
        self._generator_cores = generator_cores or options.cores
        self._patience_seconds = options.patience_seconds
        self.figures = Figures()

    def warm_up(self) -> None:
        """Batches of many sizes, so that nothing is done for the first time later."""
        for connections, seconds in WARM_UP:
            self._send(self._plan(connections=connections, seconds=seconds, lead_in_seconds=0.0))

    def probe(self) -> float:
        """Answers/s to many clients at once: enough to choose between two arrangements."""
        self.warm_up()
        return self.closed_loop(ESTIMATE_CONNECTIONS).goodput

    def run(self) -> Figures:
        """All measurements, in the order in which each needs those before it."""
        self.warm_up()
        figures = self.figures
        figures.one_connection_p50_ms = self.closed_loop(1).p50_ms
        estimate = self.closed_loop(ESTIMATE_CONNECTIONS)
        sweep(self.open_loop, estimate.goodput)
        figures.saturation = saturation([estimate, *figures.measurements])
        for share in SHARES:
            measurement, costs = self._open_loop(share * figures.saturation)
            figures.at_shares[share] = measurement
            figures.server_ms_per_request = costs.server_ms_per_request
        self.find_limit()
        figures.peak_memory_bytes = self._server.peak_memory_bytes()
        return figures

    def run_limit_only(self) -> Figures:
        """Only the saturation and, more closely, the highest rate within the limit."""
        self.warm_up()
        estimate = self.closed_loop(ESTIMATE_CONNECTIONS)
        sweep(self.open_loop, estimate.goodput)
        self.figures.saturation = saturation([estimate, *self.figures.measurements])
        self.find_limit(extra_steps=2)
        return self.figures

    def find_limit(self, extra_steps: int = 0) -> None:
        """Look for the highest rate with the 97th percentile within the limit."""
        self.figures.within_limit = highest_rate(
            self.open_loop,
            self.figures.measurements,
            self._options.limit_ms,
            self._options.steps + extra_steps,
        )

    def closed_loop(self, connections: int) -> Measurement:
        """So many clients of which each waits for its answer before it asks again."""
        outcome, _ = self._undisturbed(self._plan(connections=connections))
        return self._summary(outcome.answered / outcome.seconds, outcome)

    def open_loop(self, rate: float) -> Measurement:
        """Requests that come whether or not others have been answered."""
        return self._open_loop(rate)[0]

    def _open_loop(self, rate: float) -> tuple[Measurement, Costs]:
        rate = max(rate, MIN_RATE)
        shortest = self._options.seconds
        seconds = min(max(shortest, WANTED_REQUESTS / rate), 2 * shortest)
        outcome, costs = self._undisturbed(self._plan(rate=rate, seconds=seconds))
        measurement = self._summary(rate, outcome)
        figures = self.figures
        figures.measurements.append(measurement)
        if rate == max(known.rate for known in figures.measurements):
            figures.generator_us_per_request = costs.generator_us_per_request
            figures.generator_lag_p97_ms = costs.generator_lag_p97_ms
        return measurement, costs

    def _summary(self, rate: float, outcome: Outcome) -> Measurement:
        failed = sum(outcome.failures.values())
        return summarise(rate, outcome.latencies_ms, failed, outcome.answered, outcome.seconds)

    def _plan(
        self,
        *,
        rate: float = 0.0,
        connections: int = MAX_CONNECTIONS,
        seconds: float | None = None,
        lead_in_seconds: float = 1.0,
    ) -> Plan:
        return Plan(
            host=HOST,
            port=self._server.port,
            path=PATH,
            bodies=self._bodies,
            seconds=self._options.seconds if seconds is None else seconds,
            rate=rate,
            connections=connections,
            lead_in_seconds=lead_in_seconds,
            seed=self._options.seed,
            cores=self._generator_cores,
        )

    def _undisturbed(self, plan: Plan) -> tuple[Outcome, Costs]:
        """Send a load, again if others used the machine meanwhile."""
        outcome, costs = self._send(plan)
        for _ in range(MAX_REPETITIONS):
            if costs.elsewhere_cores <= DISTURBED_CORES or not self._wait_for_quiet():
                break
            started_at = time.monotonic()
            outcome, costs = self._send(plan)
            self._patience_seconds -= time.monotonic() - started_at
        self.figures.elsewhere_cores = max(self.figures.elsewhere_cores, costs.elsewhere_cores)
        return outcome, costs

    def _wait_for_quiet(self) -> bool:
        """Wait for others to end, while there is patience; whether they did."""
        while self._patience_seconds > 0:
            before = self._read_clocks()
            time.sleep(1)
            after = self._read_clocks()
            self._patience_seconds -= after.now - before.now
            if after.elsewhere_since(before) <= DISTURBED_CORES:
                return True
        return False

    def _read_clocks(self) -> Clocks:
        return Clocks(
            time.monotonic(), self._server.cpu_seconds(), busy_seconds(self._options.cores)
        )

    def _send(self, plan: Plan) -> tuple[Outcome, Costs]:
        """Have the generator send a load, and note what that cost."""
        before = self._read_clocks()
        outcome = send_load(plan)
        after = self._read_clocks()
        sent = max(outcome.sent, 1)
        lag = percentile(sorted(outcome.lags_ms), 0.97) if outcome.lags_ms else 0.0
        costs = Costs(
            server_ms_per_request=1e3 * (after.server_seconds - before.server_seconds) / sent,
            generator_us_per_request=1e6 * outcome.cpu_seconds / sent,
            generator_lag_p97_ms=lag,
            elsewhere_cores=after.elsewhere_since(before, outcome.process_seconds),
        )
        return outcome, costs
