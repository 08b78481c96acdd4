"""What the comparison reports, from figures that were made up."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.contestants import Setup, all_contestants
from benchmarks.processes import busy_seconds
from benchmarks.saturation import Measurement
from benchmarks.sentences import DEFAULT_SENTENCES
from benchmarks.serving import (
    Result,
    as_json,
    ratios,
    results_table,
    same_text_share,
)
from benchmarks.trial import SHARES, Figures

EVERY = all_contestants(Setup(Path("checkpoint"), beam_size=1, cores=2))
CONTESTANTS = {name: arrangements[-1] for name, arrangements in EVERY.items()}


def make_result(name: str, saturation: float, latency_ms: float) -> Result:
    measurement = Measurement(saturation, saturation, 100, 5, 20.0, math.inf, math.inf)
    figures = Figures(saturation=saturation, one_connection_p50_ms=latency_ms)
    figures.at_shares = dict.fromkeys(SHARES, measurement)
    return Result(CONTESTANTS[name], "float32", ["a", "b"], figures)


def test_ratios_are_gatehouses_figures_over_the_others() -> None:
    results = [
        make_result("gatehouse", 1000.0, 5.0),
        make_result("plain-float32", 40.0, 25.0),
        make_result("litserve-float32", 200.0, 30.0),
        make_result("mosec-bfloat16", 500.0, 30.0),
    ]
    assert ratios(results) == {
        "requests/s against plain-float32": 25,
        "requests/s against litserve-float32": 5,
        "requests/s against the best peer": 2,
        "latency with one connection against plain-float32": 0.2,
    }
    assert ratios(results[1:]) == {}


def test_the_table_has_a_column_for_every_figure() -> None:
    lines = results_table([make_result("gatehouse", 1000.0, 5.0)]).splitlines()
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert "failed" in lines[-1]


def test_figures_become_json_without_infinite_numbers() -> None:
    figures = as_json(asdict(make_result("gatehouse", 1000.0, 5.0).figures))
    text = json.dumps(figures, allow_nan=False)
    assert json.loads(text)["at_shares"]["0.8"]["p97_ms"] is None


def test_texts_are_compared_in_order() -> None:
    assert same_text_share(["a", "b", "c", "d"], ["a", "b", "d", "c"]) == 0.5


@pytest.mark.parametrize("name", CONTESTANTS)
def test_every_contestant_is_asked_and_understood(name: str) -> None:
    contestant = CONTESTANTS[name]
    best = {"text": "Oui."}
    answer = {"translations": [best]} if contestant.system == "gatehouse" else best
    assert contestant.translation(answer) == "Oui."
    assert contestant.body("Yes.")["text"] == "Yes."


def test_threads_and_workers_share_the_cores() -> None:
    peers = [name for name in EVERY if not name.startswith("gatehouse")]
    for name in peers:
        for contestant in EVERY[name]:
            command = contestant.command
            workers, threads = (
                int(command[command.index(option) + 1]) for option in ("--workers", "--threads")
            )
            assert workers * threads == 2, name
            assert workers == contestant.workers


def test_peers_that_batch_have_two_arrangements() -> None:
    numbers = {name: [c.workers for c in arrangements] for name, arrangements in EVERY.items()}
    assert numbers["gatehouse"] == numbers["plain-float32"] == [1]
    assert numbers["litserve-bfloat16"] == numbers["mosec-float32"] == [1, 2]
    fixed = all_contestants(Setup(Path("checkpoint"), beam_size=1, cores=4, workers=3))
    assert [contestant.workers for contestant in fixed["mosec-float32"]] == [3]


def test_the_sentences_are_many_different_ones_of_mixed_lengths() -> None:
    lines = DEFAULT_SENTENCES.read_text(encoding="utf-8").splitlines()
    assert len(set(lines)) == len(lines) > 200
    lengths = [len(line.split()) for line in lines]
    assert min(lengths) < 3
    assert max(lengths) > 30


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="reads Linux's /proc")
def test_work_makes_cores_busy() -> None:
    assert busy_seconds([0]) > 0
    assert busy_seconds([]) == 0
