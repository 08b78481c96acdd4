"""A short overload over a tiny model, and what the figures say about broken promises."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.settings import PROJECT_DIR
from benchmarks.overload import broken_promises, table
from tests.app.test_reloading import save_letters, save_translator

KEPT: dict[str, Any] = {
    "seconds": 60.0,
    "saturation": 100.0,
    "offered": 1000.0,
    "goodput": 95.0,
    "goodput_share": 0.95,
    "failures": {"429": 54_000},
    "accepted_p99_ms": 900.0,
    "refused_p50_ms": 2.0,
    "refused_p99_ms": 20.0,
    "generator_cores": 0.3,
    "light_p50_before_ms": 5.0,
    "light_p50_after_ms": 5.0,
    "light_failures_after": {},
    "resident_before_bytes": 600_000_000,
    "resident_after_bytes": 600_000_000,
    "restarts": 0.0,
    "books_balance": True,
}


def test_promises_that_are_kept_and_broken() -> None:
    assert broken_promises(KEPT) == []
    for change, complaint in (
        ({"failures": {"429": 1, "500": 2}}, "['500']"),
        ({"failures": {}}, "nothing was refused"),
        ({"goodput": 0.0}, "nothing was answered"),
        ({"books_balance": False}, "books"),
        ({"restarts": 1.0}, "died"),
        ({"light_failures_after": {"429": 1}}, "when the load is gone"),
    ):
        (broken,) = broken_promises(KEPT | change)
        assert complaint in broken
    assert "| 95.0 requests/s: 95% |" in table(KEPT)


def run_benchmark(name: str, *arguments: str) -> dict[str, Any]:
    """Figures of a benchmark that ends with status 0."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, *arguments],
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["figures"]
    return figures


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    save_letters(root / "letters", 0)
    save_translator(root / "en-fr", 0)
    return root


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_short_overload_keeps_its_promises(checkpoints: Path) -> None:
    options = ("--seconds", "4", "--rest-seconds", "1", "--queue-capacity", "16")
    figures = run_benchmark("overload", "--checkpoints", str(checkpoints), *options)
    assert figures["sent"] > 0
    assert figures["books_balance"]
