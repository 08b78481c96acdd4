"""On paper: what fleets of 1 to 10,000 replicas do in a day, simulated from one replica's curve.

First the simulation of one replica is held against what was measured. Then fleets go through a
day with bursts, by the fluid model, and the steepest minutes of each day also by the discrete one,
in a slice: a few replicas with their share of the requests, which is all that a replica knows of
its fleet when requests are spread at random.
"""

import argparse
import math
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.fleet.curve import MEASURED, Service, calibrate
from benchmarks.fleet.fluid import Day, Table, live, steady_states
from benchmarks.fleet.limits import PRICE_PER_REPLICA_HOUR, needs
from benchmarks.fleet.plots import draw_curve, draw_day, draw_trade, save
from benchmarks.fleet.replicas import Balancing, Fleet
from benchmarks.fleet.scaling import Policy
from benchmarks.fleet.traffic import day, steepest
from benchmarks.report import finish, markdown_table

PEAKS = (100, 10_000, 1_000_000)
"""Requests/s at the busiest hour, before bursts."""
SHOWN = 10_000
"""Of them, the one whose day is drawn."""
DRAWN = ("queue alone", "queue and rows", "fixed")
USED = 0.8
"""Of the saturation, by a fixed fleet at its highest second."""
SLICE_REPLICAS = 16
FLEETS = (1, 10, 100, 1_000, 10_000)
"""Simulated request by request: the first three whole, the others in a slice."""
WHOLE_REPLICAS = 100
"""The largest fleet that is simulated whole, and the slice of larger ones."""
NODE_SECONDS = 120.0
"""More until a replica is ready, where a machine has to be started for it."""


@dataclass(frozen=True)
class Way:
    """A way to have replicas through a day.

    Attributes:
        name: for tables.
        policy: for a fleet that takes a number of replicas when it is fixed; None: it is.
    """

    name: str
    policy: Policy | None


def ways(fixed: int) -> list[Way]:
    """The ways that are compared, for a fleet that takes so many replicas when it is fixed."""
    both = Policy(least=2, most=2 * max(fixed, 2))
    slow = replace(both, start_seconds=both.start_seconds + NODE_SECONDS)
    return [
        Way("fixed", None),
        Way("queue and rows", both),
        Way("queue alone", replace(both, rows_target=None)),
        Way("queue and rows, new machines", slow),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmark's options."""
    parser.add_argument("--seconds", type=float, default=30.0, help="of each steady state (30)")
    parser.add_argument("--slice-seconds", type=int, default=300, help="simulated twice (300)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pictures", action="store_true", help="draw docs/charts anew")


def run(arguments: argparse.Namespace) -> int:
    """Simulate, and print the tables.

    Returns:
        The exit status.
    """
    service = calibrate()
    print(f"From {MEASURED.source}\n")
    validation = validate(service, arguments.seconds, arguments.seed)
    balancing = balance(service, arguments.seed)
    table = steady_states(service, arguments.seconds, arguments.seed)
    days = {peak: through_a_day(table, peak, arguments.seed) for peak in PEAKS}
    figures = {"days": report_days(days), "needs": report_needs(days)}
    slices = check_slices(service, table, arguments.slice_seconds, arguments.seed)
    trade = targets(table, arguments.seed)
    if arguments.pictures:
        charts = {
            "capacity-curve": draw_curve(MEASURED, validation),
            "capacity-day": draw_day({name: days[SHOWN][name] for name in DRAWN}, 1),
            "capacity-targets": draw_trade(trade),
        }
        save(charts)
    figures |= {"validation": validation, "balancing": balancing, "slices": slices}
    finish("capacity", figures | {"targets": trade})
    return 0


def validate(
    service: Service, seconds: float, seed: int
) -> list[tuple[float, float, float, float]]:
    """Simulate one replica at many loads, and print those that were measured beside them.

    Returns:
        Share of the saturation, p50, p97 and p99 in milliseconds, for each load.
    """
    limit = MEASURED.limit_rate / MEASURED.saturation
    measured = {load.share: (load.p50_ms, load.p97_ms, load.p99_ms) for load in MEASURED.loads}
    shares = sorted({0.02, 0.1, 0.4, 0.6, 0.7, 0.85, 0.9, 0.95, 1.0, limit, *measured})
    simulated = [(share, *_latencies(service, share, 4 * seconds, seed)) for share in shares]
    rows = []
    for share, *found in simulated:
        if share in measured:
            beside = " / ".join(f"{value:.0f}" for value in measured[share])
        elif share == limit:
            beside = f"- / {MEASURED.limit_ms:.0f} / -"
        else:
            continue
        rate = f"{share * service.saturation:.0f}"
        rows.append([rate, f"{share:.0%}", beside, " / ".join(f"{one:.0f}" for one in found)])
    header = ["requests/s", "of saturation", "measured p50 / p97 / p99, ms", "simulated, ms"]
    print(markdown_table(header, rows), end="\n\n")
    return simulated


def balance(service: Service, seed: int) -> list[dict[str, float]]:
    """What fleets of all sizes do at the same load, by how requests find their replica."""
    found: list[dict[str, float]] = []
    ways_to: tuple[Balancing, ...] = ("random", "two choices")
    for replicas in FLEETS:
        few = min(replicas, WHOLE_REPLICAS)
        rate = USED * service.saturation
        seconds = max(6, 128 // few)
        record: dict[str, float] = {"replicas": replicas, "simulated": few}
        record["requests/s"] = rate * replicas
        for way in ways_to:
            fleet = Fleet(service, few, seed + replicas, way)
            books = fleet.run([few * rate] * (seconds + 2), warm_up_seconds=2.0)
            record |= {f"p50, {way}": books.latency_ms(0.5), f"p99, {way}": books.latency_ms(0.99)}
        found.append(record)
    rows = [[f"{value:,.0f}" for value in one.values()] for one in found]
    print(markdown_table(list(found[0]), rows), end="\n\n")
    return found


def through_a_day(table: Table, peak: float, seed: int) -> dict[str, Day]:
    """A day with bursts, in each way to have replicas."""
    rates = day(peak, seed)
    fixed = fixed_fleet(rates)
    return {way.name: live(table, rates, fixed, way.policy) for way in ways(fixed)}


def fixed_fleet(rates: NDArray[np.float64]) -> int:
    """Replicas for the highest minute, and never fewer than two, for one may die."""
    highest = float(rates.reshape(-1, 60).mean(axis=1).max())
    return max(2, math.ceil(highest / (USED * MEASURED.saturation)))


def report_days(days: dict[int, dict[str, Day]]) -> list[dict[str, float | str]]:
    """Print replicas, cost, latency and what was shed."""
    records: list[dict[str, float | str]] = []
    rows = []
    for peak, by_way in days.items():
        for name, one in by_way.items():
            dollars = one.replica_hours * PRICE_PER_REPLICA_HOUR
            million = dollars / one.rates.sum() / one.step_seconds * 1e6
            mean, most = one.replicas.mean(), one.replicas.max()
            rows.append([
                f"{peak:,}", name, f"{mean:,.0f}", f"{most:,.0f}", f"{dollars:,.0f}",
                f"{million:.3f}", f"{one.p50_ms:.0f}", f"{one.p99_ms:.0f}",
                f"{100 * one.shed_share:.3f}",
            ])  # fmt: skip
            record: dict[str, float | str] = {"peak": peak, "way": name, "mean": float(mean)}
            record |= {"most": float(most), "dollars": dollars, "p99_ms": one.p99_ms}
            records.append(record | {"shed": one.shed_share})
    header = ["requests/s", "replicas are", "mean", "most", "$ a day", "$ a million", "p50, ms",
              "p99, ms", "% shed"]  # fmt: skip
    print(markdown_table(header, rows), end="\n\n")
    return records


def report_needs(days: dict[int, dict[str, Day]]) -> list[dict[str, float]]:
    """Print what else each size takes."""
    start = Policy(1, 1).start_seconds
    found = []
    for peak, by_way in days.items():
        one = by_way["fixed"]
        highest = float(one.rates.max())
        needed = needs(highest, float(one.rates.mean()), int(one.replicas.max()), start)
        found.append({"peak": float(peak), "highest": highest} | asdict(needed))
    names = [name for name in found[0] if name != "peak"]
    rows = [[name.replace("_", " "), *(f"{one[name]:,.3g}" if one[name] < 100
             else f"{one[name]:,.0f}" for one in found)] for name in names]  # fmt: skip
    print(markdown_table(["", *(f"{peak:,}/s" for peak in days)], rows), end="\n\n")
    return found


def check_slices(
    service: Service, table: Table, seconds: int, seed: int
) -> list[dict[str, float | str]]:
    """The steepest minutes of each day, by both models."""
    found: list[dict[str, float | str]] = []
    for peak in PEAKS:
        rates = day(peak, seed)
        at = steepest(rates, seconds)
        window = rates[at : at + seconds]
        fleet = max(2, math.ceil(window[0] / (0.5 * service.saturation)))
        few = min(fleet, SLICE_REPLICAS)
        window = window * few / fleet
        for name, policy in (("fixed", None), ("queue and rows", Policy(few, 4 * few))):
            books = Fleet(service, few, seed, policy=policy).run(list(window))
            fluid = live(table, window, few, policy)
            record: dict[str, float | str] = {"peak": float(peak), "way": name, "slice": few}
            record |= {"requests": books.offered, "replicas": books.replica_seconds / seconds}
            record |= {"fluid replicas": float(fluid.paid.mean())}
            record |= {"p99": books.latency_ms(0.99), "fluid p99": fluid.p99_ms}
            record |= {"shed %": 100 * books.shed_share, "fluid shed %": 100 * fluid.shed_share}
            found.append(record)
    rows = [[f"{one:,.4g}" if isinstance(one, float) and one < 1e4 else str(one) if
             isinstance(one, str) else f"{one:,.0f}" for one in record.values()]
            for record in found]  # fmt: skip
    print(markdown_table(list(found[0]), rows), end="\n\n")
    return found


def targets(table: Table, seed: int) -> dict[str, list[tuple[float, float, str]]]:
    """What the autoscaler's targets cost and shed, on the day of :data:`SHOWN`."""
    rates = day(SHOWN, seed)
    fixed = fixed_fleet(rates)
    hours = 24 * fixed
    policy = Policy(2, 2 * fixed)
    found: dict[str, list[tuple[float, float, str]]] = {}
    for name, more in (
        ("ready after 50 s", 0.0),
        ("after 170 s, with a new machine", NODE_SECONDS),
    ):
        line = []
        for rows in (16, 24, 32, 48, 64, None):
            start = policy.start_seconds + more
            asked = replace(policy, rows_target=rows, start_seconds=start)
            one = live(table, rates, fixed, asked)
            label = "queue alone" if rows is None else f"{rows} rows"
            line.append((one.replica_hours / hours, 100 * one.shed_share, label))
        found[name] = line
    for name, line in found.items():
        print(name, *(f"{label}: {x:.0%}, {y:.4f} %" for x, y, label in line), sep="; ")
    print()
    return found


def _latencies(
    service: Service, share: float, seconds: float, seed: int
) -> tuple[float, float, float]:
    books = Fleet(service, 1, seed).run(
        [share * service.saturation] * round(seconds + 2), warm_up_seconds=2.0
    )
    return books.latency_ms(0.5), books.latency_ms(0.97), books.latency_ms(0.99)
