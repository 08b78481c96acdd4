"""Speeds from made-up runs, and a tiny run with kills."""

import importlib.util
import math
import os
import sys
from pathlib import Path

import pytest

from benchmarks.corpus import Speed, speed_of
from benchmarks.corpus_runs import descendants, on_cores, write_lines
from tests.app.conftest import save_translator
from tests.benchmarks.test_overload import run_benchmark

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, pins to cores")


def test_what_it_takes_to_start_counts_for_no_speed() -> None:
    # Two cores translate 20 lines a second, after 5 seconds.
    assert speed_of((100, 10.0), (300, 20.0), cores=2) == Speed(10.0, 5.0)


def test_sentences_are_repeated(tmp_path: Path) -> None:
    write_lines(["a", "b"], 5, tmp_path / "lines")
    assert (tmp_path / "lines").read_text() == "a\nb\na\nb\na\n"


def test_children_run_on_the_cores_of_their_time() -> None:
    before = os.sched_getaffinity(0)
    one = sorted(before)[:1]
    with on_cores(one):
        assert sorted(os.sched_getaffinity(0)) == one
    assert os.sched_getaffinity(0) == before


def test_this_process_descends_from_its_parent() -> None:
    assert os.getpid() in descendants(os.getppid())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra ray is not installed"
)
def test_a_tiny_measurement(tmp_path: Path) -> None:
    save_translator(tmp_path / "en-fr", "en", "fr")
    sizes = ("--lines", "400", "--short-lines", "40", "--shard-lines", "100", "--rounds", "1")
    small = ("--beam-size", "1", "--workers", "1")
    figures = run_benchmark("corpus", "--checkpoints", str(tmp_path), *sizes, *small)
    assert figures["outputs_that_differ"] == 0
    # Of so few lines it says nothing, and is below 0 where the short run happened to take longer.
    assert math.isfinite(figures["ratio"])
    assert len(figures["speeds"]["Ray"]) == len(figures["speeds"]["one process"]) == 1
