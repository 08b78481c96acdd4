"""A short soak over tiny models, and what the figures say about what grew."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import KINDS, broken_promises, table
from tests.benchmarks.test_overload import checkpoints, run_benchmark

__all__ = ["checkpoints"]


def sample(
    requests: int, megabytes: int = 600, files: int = 40, threads: int = 9
) -> dict[str, int]:
    return {
        "requests": requests,
        "resident_bytes": megabytes * 10**6,
        "files": files,
        "threads": threads,
    }


KEPT: dict[str, Any] = {
    "requests": 5_000,
    "seconds": 60,
    "outcomes": {"translate: 200": 5_000},
    "counted": 5_000.0,
    "samples": [sample(1_000), sample(5_000)],
    "books_balance": True,
    "texts": 7_000.0,
    "texts_failed": 0.0,
    "restarts": 0.0,
}


def test_promises_that_are_kept_and_broken() -> None:
    assert broken_promises(KEPT) == []
    for change, complaint in (
        ({"samples": [sample(1), sample(2, megabytes=700)]}, "memory grew by 17%"),
        ({"samples": [sample(1), sample(2, files=41)]}, "files: 40, then 41"),
        ({"samples": [sample(1), sample(2, threads=10)]}, "threads: 9, then 10"),
        ({"counted": 4_999.0}, "5000 requests were sent, 4999 counted"),
        ({"outcomes": {"translate: unexpected: 500": 1}}, "unexpected: 500"),
        ({"books_balance": False}, "books"),
        ({"texts_failed": 1.0}, "failed"),
        ({"restarts": 1.0}, "died"),
    ):
        (broken,) = broken_promises(KEPT | change)
        assert complaint in broken
    assert "| 5000 | 600 MB | 40 | 9 |" in table(KEPT)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_short_soak_keeps_its_promises(checkpoints: Path) -> None:  # the fixture
    figures = run_benchmark("soak", "--checkpoints", str(checkpoints), "--requests", "1500")
    assert figures["requests"] == 1_500
    for kind in KINDS:
        assert any(outcome.startswith(f"{kind.name}: ") for outcome in figures["outcomes"])
