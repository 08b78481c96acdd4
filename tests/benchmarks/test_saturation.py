"""Percentiles, and the search for a server's limits, on servers that are formulas."""

import math

import pytest

from benchmarks.saturation import (
    MAX_SWEEP_MEASUREMENTS,
    Measure,
    Measurement,
    highest_rate,
    percentile,
    saturation,
    summarise,
    sweep,
)


def make_server(capacity: float) -> Measure:
    """Waiting grows as the load comes near the capacity; behind it, without limit."""

    def measure(rate: float) -> Measurement:
        latency_ms = math.inf if rate >= capacity else 20 / (1 - rate / capacity)
        answered = min(rate, capacity)
        return Measurement(rate, answered, 100, 0, latency_ms, latency_ms, latency_ms)

    return measure


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.5, 2), (0.75, 3), (0.76, 4), (1, 4)])
def test_a_percentile_is_the_smallest_value_with_the_share(share: float, expected: int) -> None:
    assert percentile([1, 2, 3, 4], share) == expected


def test_there_is_no_percentile_of_nothing() -> None:
    assert math.isnan(percentile([], 0.5))


def test_failures_count_as_endless_waits() -> None:
    measurement = summarise(10.0, [5.0] * 96, failed=4, answered=96, seconds=10)
    assert measurement.p50_ms == 5
    assert math.isinf(measurement.p97_ms)
    assert measurement.requests == 100
    assert measurement.goodput == 9.6
    assert not measurement.keeps_up


@pytest.mark.parametrize("estimate", [30.0, 95.0, 140.0, 400.0])
def test_the_sweep_finds_the_limit_from_either_side(estimate: float) -> None:
    taken = sweep(make_server(100), estimate)
    assert len(taken) <= MAX_SWEEP_MEASUREMENTS
    assert saturation(taken) > 92
    assert {measurement.keeps_up for measurement in taken} == {True, False}


def test_the_sweep_ends_where_there_is_no_limit() -> None:
    assert len(sweep(make_server(1e9), 10)) == MAX_SWEEP_MEASUREMENTS


def test_the_highest_rate_is_found_between_the_known_ones() -> None:
    # 20 / (1 - rate / 100) = 250 at a rate of 92.
    measure = make_server(100)
    found = highest_rate(measure, [measure(70.0), measure(99.0)], 250, steps=5)
    assert found is not None
    assert 89 < found.rate <= 92


def test_the_highest_rate_is_looked_for_below_and_above_the_known_ones() -> None:
    measure = make_server(100)
    below = highest_rate(measure, [measure(99.0)], 250, steps=4)
    assert below is not None
    assert 85 < below.rate <= 92
    above = highest_rate(measure, [measure(50.0)], 250, steps=4)
    assert above is not None
    assert above.rate > 70


def test_luck_above_a_broken_limit_does_not_count() -> None:
    kept, broken, lucky = (
        Measurement(rate, rate, 100, 0, 1, p97, p97)
        for rate, p97 in ((50.0, 100.0), (60.0, 400.0), (70.0, 200.0))
    )
    assert highest_rate(make_server(1), [kept, broken, lucky], 250, steps=0) == kept


def test_a_server_that_is_always_too_slow_has_no_rate() -> None:
    assert highest_rate(make_server(0.001), [make_server(1)(10.0)], 250, steps=2) is None
