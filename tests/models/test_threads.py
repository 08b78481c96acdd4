"""Shares of work on several threads."""

import threading
from collections.abc import Iterator

import pytest
import torch

from models.threads import run_shares, share_rows


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_shares() -> None:
    assert run_shares(lambda one, other: one - other, [(5, 3), (9, 1), (0, 4)]) == [2, 8, -4]


def test_the_first_share_is_done_here_and_the_others_beside_it() -> None:
    together = threading.Barrier(2, timeout=60)

    def work(_: int) -> threading.Thread:
        together.wait()
        return threading.current_thread()

    own, other = run_shares(work, [(1,), (2,)])
    assert own is threading.current_thread() is not other


def test_an_error_elsewhere_comes_out_here() -> None:
    with pytest.raises(ZeroDivisionError):
        run_shares(lambda number: 1 / number, [(1,), (0,)])


@pytest.mark.parametrize("rows", [1, 2, 6, 7, 100])
def test_every_row_is_worked_on_once(threads: int, rows: int) -> None:
    numbers, target = torch.arange(rows), torch.zeros(rows)

    def work(own: torch.Tensor, wanted: torch.Tensor) -> list[int]:
        wanted += own + 1
        return own.tolist()

    shares = share_rows(work, (numbers, target))
    assert [number for share in shares for number in share] == numbers.tolist()
    assert len(shares) <= threads
    assert target.tolist() == (numbers + 1).tolist()
