"""Loads as they are named, how two checkouts compare, and a short run of this one beside itself."""

import argparse
import math
from typing import Any

import pytest

from app.settings import PROJECT_DIR
from benchmarks.checkouts import KINDS, Load, Sample, record, table
from benchmarks.load import Outcome
from benchmarks.saturation import Measurement
from tests.benchmarks.test_overload import run_benchmark


def test_loads_by_name() -> None:
    assert Load.parse("translate:64") == Load("translate", 64, 0.0)
    assert Load.parse("stream:2.5/s") == Load("stream", 0, 2.5)
    for word in ("translate:64", "stream:2.5/s"):
        assert str(Load.parse(word)) == word
    for word in ("translate", "greek:1", "stream:1.5", "stream:x/s", "beam:0", "beam:-1/s"):
        with pytest.raises(argparse.ArgumentTypeError, match="kinds are translate"):
            Load.parse(word)


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_of_a_load_is_another_one(kind: str) -> None:
    bodies = Load(kind, 1, 0.0).bodies(["one", "two"])
    assert len(set(bodies)) == len(bodies) >= 2


def test_a_sample_is_of_what_was_answered() -> None:
    outcome = Outcome(
        latencies_ms=[3.0, 1.0, 2.0],
        begun_after_ms=[0.5, 0.7, 0.6],
        answered=3,
        seconds=2.0,
        failures={"429": 2, "504": 1},
    )
    measurement, first_ms = Sample.of(Load("stream", 4, 0.0), outcome)
    assert (measurement.goodput, measurement.failed, first_ms) == (1.5, 3, 0.6)
    assert (measurement.p50_ms, measurement.p97_ms) == (3.0, math.inf), "failures are the slowest"


def sample(answers: float, p50_ms: float) -> Sample:
    return Sample(Measurement(0, answers, 9, 0, p50_ms, 2 * p50_ms, 3 * p50_ms), p50_ms / 2)


def test_checkouts_are_compared_within_each_round() -> None:
    """A machine that slows down for a round slows both, and says nothing of either."""
    first = [sample(100, 10), sample(10, 100), sample(100, 10)]
    own = [sample(150, 5), sample(15, 50), sample(120, 9)]
    figures = record("stream:1", "/a/after", own, first)
    assert (figures["answers_ratio"], figures["p50_ratio"]) == (1.5, 0.5)
    assert (figures["answers_per_second"], figures["p50_ms"]) == (120, 9)
    assert "| stream:1 | after | 120.0 | 1.5 | 9.0 | 0.5 | 18.0 | 4.5 | 0 |" in table([figures])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_run() -> None:
    here = str(PROJECT_DIR)
    words = ("--checkouts", here, here, "--rounds", "1", "--seconds", "0.3")
    figures = run_benchmark("checkouts", *words, "--loads", "translate:2", "stream:2")
    records: list[dict[str, Any]] = figures["records"]
    assert [each["load"] for each in records] == ["translate:2"] * 2 + ["stream:2"] * 2
    assert all(each["answers_per_second"] > 0 and not each["failures"] for each in records)
    assert all(each["first_ms"] < each["p50_ms"] for each in records[2:]), "a stream begins early"
