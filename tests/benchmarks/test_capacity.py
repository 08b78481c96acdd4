"""Fleets on paper: what must hold in any simulation, and that its figures are the project's."""

import math
import re
from dataclasses import fields, replace

import numpy as np
import pytest

from app.settings import PROJECT_DIR, Settings
from benchmarks.fleet.curve import MEASURED, Service, calibrate, probabilities, texts_inside
from benchmarks.fleet.fluid import Table, live, steady_states
from benchmarks.fleet.limits import needs
from benchmarks.fleet.replicas import Balancing, Books, Fleet
from benchmarks.fleet.scaling import Autoscaler, Policy
from benchmarks.fleet.traffic import BURSTS, DAY_SECONDS, day, steepest
from tests.deploy.kustomizing import load

SEED = 7
SERVICE = calibrate()
SMALL = Service((0.0, 80.0, 120.0, 140.0, 150.0), queue=8, sigma=0.4)
"""Four rows and eight places: full after a moment."""


@pytest.fixture(scope="module")
def table() -> Table:
    return steady_states(SERVICE, 4.0, SEED)


# ---------------------------------------------------------------- what must hold


@pytest.mark.parametrize("balancing", ["random", "two choices"])
@pytest.mark.parametrize("rate", [50, 300, 2000])
def test_no_request_is_lost_or_made_up(rate: float, balancing: Balancing) -> None:
    books = Fleet(SMALL, 3, SEED, balancing).run([rate] * 5)
    assert books.offered == len(books.latencies_ms) + books.shed + books.inside
    assert 0.8 * 5 * rate < books.offered < 1.2 * 5 * rate
    assert books.inside <= 3 * (SMALL.rows + SMALL.queue)


def test_no_request_is_lost_while_replicas_come_and_go() -> None:
    policy = Policy(1, 9, queue_target=2, rows_target=2, start_seconds=3, sync_seconds=1)
    policy = replace(policy, down_window_seconds=5)
    rates = [100.0] * 10 + [600.0] * 20 + [20.0] * 100
    books = Fleet(SMALL, 1, SEED, policy=policy).run(rates)
    assert books.offered == len(books.latencies_ms) + books.shed + books.inside
    assert books.shed > 0
    assert len(rates) < books.replica_seconds < 9 * len(rates)


def test_a_warm_up_is_left_out_of_the_books_and_they_still_balance() -> None:
    books = Fleet(SMALL, 2, SEED).run([250] * 6, warm_up_seconds=3.0)
    assert books.offered == len(books.latencies_ms) + books.shed + books.inside
    assert books.offered < 1.2 * 3 * 250
    assert books.replica_seconds == pytest.approx(6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_more_replicas_never_shed_more(seed: int) -> None:
    counts = (1, 2, 3, 4, 5, 6, 12)
    shed = [Fleet(SMALL, replicas, seed).run([600] * 10).shed for replicas in counts]
    assert shed[0] > 0
    assert shed == sorted(shed, reverse=True)
    assert shed[-1] == 0


@pytest.mark.slow
def test_more_replicas_never_shed_more_in_the_fluid(table: Table) -> None:
    rates = day(3000, SEED)
    shed = [live(table, rates, replicas).shed_share for replicas in (2, 4, 6, 8, 10, 100, 10_000)]
    assert shed[0] > 0
    assert shed == sorted(shed, reverse=True)
    assert shed[-1] == 0


def test_without_load_the_latency_is_the_time_of_the_work() -> None:
    books = Fleet(SERVICE, 4, SEED).run([2.0] * 1000)
    mean = sum(books.latencies_ms) / len(books.latencies_ms)
    assert mean == pytest.approx(MEASURED.idle_ms, rel=0.05)
    same_size = Service(SERVICE.throughput, SERVICE.queue, sigma=1e-9)
    alone = Fleet(same_size, 50, SEED).run([1.0] * 200)
    assert alone.latency_ms(0.5) == pytest.approx(MEASURED.idle_ms, rel=1e-3)


def test_no_replica_does_more_than_it_can() -> None:
    books = Fleet(SMALL, 1, SEED).run([1000] * 20, warm_up_seconds=2.0)
    assert len(books.latencies_ms) / 18 == pytest.approx(SMALL.saturation, rel=0.03)
    assert books.row_seconds / 18 == pytest.approx(SMALL.rows, rel=0.01)
    assert books.queue_seconds / 18 <= SMALL.queue


def test_a_seed_repeats_and_another_does_not() -> None:
    one, same, other = (
        Fleet(SMALL, 3, seed, "two choices").run([300] * 4) for seed in (SEED, SEED, SEED + 1)
    )
    assert one == same
    assert one != other
    assert np.array_equal(day(100, SEED), day(100, SEED))
    assert not np.array_equal(day(100, SEED), day(100, SEED + 1))


# ---------------------------------------------------------------- held against something else


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_means_are_those_of_the_formula(share: float) -> None:
    """A shared processor's distribution is known, and the sizes do not matter to it."""
    rate = share * SERVICE.saturation
    chances = probabilities(SERVICE, rate)
    assert chances.sum() == pytest.approx(1)
    books = Fleet(SERVICE, 1, SEED).run([rate] * 120, warm_up_seconds=5.0)
    inside = (books.row_seconds + books.queue_seconds) / 115
    assert inside == pytest.approx(texts_inside(SERVICE, rate), rel=0.12)


@pytest.mark.slow
def test_the_simulated_replica_has_the_measured_latencies() -> None:
    for measured in MEASURED.loads:
        rate = measured.share * MEASURED.saturation
        books = Fleet(SERVICE, 1, SEED).run([rate] * 120, warm_up_seconds=2.0)
        # Fitted.
        assert books.latency_ms(0.5) == pytest.approx(measured.p50_ms, rel=0.1)
        # Not fitted, but for the spread of the sizes, which is the same for all loads.
        assert books.latency_ms(0.97) == pytest.approx(measured.p97_ms, rel=0.2)
        assert books.latency_ms(0.99) == pytest.approx(measured.p99_ms, rel=0.2)


@pytest.mark.slow
def test_a_slice_of_a_fleet_does_what_the_fleet_does() -> None:
    """Spread at random, a replica knows nothing of the fleet but its own share of the requests."""
    rate = 0.8 * SERVICE.saturation
    whole = Fleet(SERVICE, 32, SEED).run([32 * rate] * 6, warm_up_seconds=2.0)
    part = Fleet(SERVICE, 4, SEED + 1).run([4 * rate] * 34, warm_up_seconds=2.0)
    for share in (0.5, 0.97, 0.99):
        assert part.latency_ms(share) == pytest.approx(whole.latency_ms(share), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("scaled", [False, True], ids=["fixed", "autoscaled"])
def test_the_fluid_does_what_the_requests_do(table: Table, scaled: bool) -> None:
    """A burst that three replicas cannot bear, through both models."""
    rates = [900.0] * 30 + [2600.0] * 120 + [900.0] * 30
    policy = Policy(3, 12) if scaled else None
    books = Fleet(SERVICE, 3, SEED, policy=policy).run(rates)
    fluid = live(table, rates, 3, policy)
    assert fluid.rates.sum() == pytest.approx(books.offered, rel=0.02)
    assert fluid.shed_share == pytest.approx(books.shed_share, rel=0.15, abs=0.01)
    assert fluid.paid.mean() == pytest.approx(books.replica_seconds / len(rates), rel=0.1)
    assert fluid.p99_ms == pytest.approx(books.latency_ms(0.99), rel=0.15)


def test_the_size_of_a_fleet_changes_nothing_but_its_size(table: Table) -> None:
    small, large = (live(table, day(peak, SEED), int(peak / 400)) for peak in (4e3, 4e6))
    assert large.shed_share == pytest.approx(small.shed_share)
    assert large.p99_ms == small.p99_ms
    assert large.replica_hours == pytest.approx(1000 * small.replica_hours)


# ---------------------------------------------------------------- parts


def test_the_autoscaler_waits_before_it_takes_away_and_not_before_it_adds() -> None:
    scaler = Autoscaler(Policy(2, 50, late_decisions=0))
    assert scaler.decide(0, 10, 0, 10 * 48) == 20
    assert scaler.decide(15, 20, 0, 20 * 24) == 20
    assert scaler.decide(30, 20, 0, 0) == 20
    assert scaler.decide(700, 20, 0, 0) == 18
    assert scaler.decide(715, 18, 0, 0) == 18
    assert scaler.decide(765, 18, 0, 0) == 17
    assert scaler.decide(780, 17, 1e6, 0) == 34
    assert scaler.decide(795, 34, 1e6, 0) == 50


def test_a_figure_near_its_target_moves_nothing() -> None:
    scaler = Autoscaler(Policy(2, 50, late_decisions=0))
    assert scaler.decide(0, 10, 0, 10 * 24 * 1.09) == 10
    assert scaler.decide(15, 10, 0, 10 * 24 * 1.2) == 12


def test_a_day_is_as_long_and_as_high_as_it_should_be() -> None:
    rates = day(1000, SEED)
    assert len(rates) == DAY_SECONDS
    assert rates.min() > 0
    assert 1000 < rates.max() < 1000 * 2**BURSTS
    quiet, busy = rates[4 * 3600 : 5 * 3600], rates[16 * 3600 : 17 * 3600]
    assert np.median(quiet) < np.median(busy)
    at = steepest(rates, 300)
    assert rates[at + 200 : at + 300].mean() > 1.2 * rates[at : at + 60].mean()


def test_what_a_fleet_needs_grows_with_it() -> None:
    small, large = needs(100, 60, 2, 50), needs(1e6, 6e5, 2500, 50)
    for name in (field.name for field in fields(small)):
        assert getattr(small, name) <= getattr(large, name), name


# ---------------------------------------------------------------- the project


def test_the_curve_is_the_one_on_the_page() -> None:
    page = (PROJECT_DIR / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    [row] = re.findall(r"^\| gatehouse \| int8 \| 615 \|.*$", page, re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert float(cells[2]) == MEASURED.saturation
    for cell, measured in zip(cells[3:6], MEASURED.loads, strict=True):
        found = (measured.p50_ms, measured.p97_ms, measured.p99_ms)
        assert tuple(float(value) for value in cell.split("/")) == found
    assert (float(cells[6]), float(cells[7])) == (MEASURED.limit_rate, MEASURED.idle_ms)
    [commit] = re.findall(r"at commit (\w+)", MEASURED.source)
    assert commit in page
    assert MEASURED.queue == Settings().queue_capacity
    # The rows are those of that measurement, and no longer the default.
    capacity = (PROJECT_DIR / "docs" / "capacity.md").read_text(encoding="utf-8")
    assert f"{MEASURED.rows} rows run (`GATEHOUSE_ROW_BUDGET` when that was measured" in capacity


def test_the_simulated_autoscaler_is_the_one_that_is_deployed() -> None:
    path = PROJECT_DIR / "deploy" / "kubernetes" / "base" / "autoscaler.yml"
    deployed, policy = load(path)["spec"], Policy(2, 20)
    targets = {
        one["pods"]["metric"]["name"]: float(one["pods"]["target"]["averageValue"])
        for one in deployed["metrics"]
    }
    assert targets == {
        "gatehouse_queue_depth": policy.queue_target,
        "gatehouse_rows_running": policy.rows_target,
    }
    assert (deployed["minReplicas"], deployed["maxReplicas"]) == (policy.least, policy.most)
    up, down = deployed["behavior"]["scaleUp"], deployed["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] == policy.down_window_seconds
    assert up["stabilizationWindowSeconds"] == 0
    percent, pods = up["policies"]
    assert (percent["value"], pods["value"]) == (100 * policy.up_share, policy.up_pods)
    assert percent["periodSeconds"] == pods["periodSeconds"] == policy.sync_seconds
    [fewer] = down["policies"]
    assert (fewer["value"], fewer["periodSeconds"]) == (100 * policy.down_share, 60)


def test_percentiles_of_nothing_are_not_a_number() -> None:
    assert math.isnan(Books().latency_ms(0.99))
    assert Books().shed_share == 0
