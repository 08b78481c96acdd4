"""Work shared out among threads: each share is done once, and who does not come is not awaited."""

import ctypes
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.kernels import team
from models.kernels.instructions import add
from models.kernels.jit import compile_callable, kernel
from models.kernels.products import linear, pack_weight
from models.kernels.team import (
    BOARD,
    CHOICE,
    DONE,
    LEAST_NANOSECONDS,
    MAX_THREADS,
    TABLE,
    Board,
    Operations,
    begin,
    call,
    claim,
    do_shares,
    end,
    enlist,
    share_out,
    work_along,
)
from tests.models.kernels.test_products import SIZES, multiply, random_case
from tests.models.teams import team_of


@pytest.fixture
def board() -> Board:
    board = Board()
    board.set_threads(4)
    board.set_least(0)
    return board


def take_all(board: Board, own: int) -> list[int]:
    """Shares in the order in which a thread of this number gets them."""
    shares = []
    while (share := claim(board.address, own)) >= 0:
        shares.append(share)
    return shares


def finish(board: Board, shares: int) -> None:
    """As who took these shares does."""
    add_to(board.address + 8 * DONE, shares)
    end(board.address, shares)


@kernel
def add_to(address: int, value: int) -> None:
    add(address, value)


def test_a_thread_takes_its_own_share_first_and_then_what_is_left(board: Board) -> None:
    assert begin(board.address, 4, 0, 0, 4, 1) == 4
    assert take_all(board, own=2) == [2, 0, 1, 3]
    finish(board, 4)


def test_nothing_is_there_to_take_before_and_after(board: Board) -> None:
    assert claim(board.address, 0) == -1
    assert begin(board.address, 4, 0, 0, 2, 1) == 2
    assert take_all(board, own=0) == [0, 1]
    finish(board, 2)
    assert claim(board.address, 1) == -1
    assert do_shares(board.address, 1) == 0


@pytest.mark.parametrize(
    ("count", "multiple", "threads", "shares"),
    [(8, 1, 4, 4), (3, 1, 4, 3), (9, 1, 4, 3), (17, 4, 2, 2), (17, 4, 4, 3), (3, 4, 4, 1)],
)
def test_nothing_is_divided_smaller_than_it_may_be(
    board: Board, count: int, multiple: int, threads: int, shares: int
) -> None:
    assert begin(board.address, threads, 0, 0, count, multiple) == shares


def test_only_one_kernel_has_the_board_at_a_time(board: Board) -> None:
    assert enlist(board.address, 100) == 4
    assert enlist(board.address, 100) == 1, "it is in use"
    assert begin(board.address, 4, 0, 0, 1, 1) == 1
    assert take_all(board, own=0) == [0]
    finish(board, 1)
    assert enlist(board.address, 100) == 4


def test_operations_are_compiled_when_they_are_needed() -> None:
    operations = Operations()
    operations.add(CHOICE, _nothing)
    assert not operations.addresses.any()
    operations.compile()
    assert operations.addresses[CHOICE]
    operations.add(0, _nothing)
    assert operations.addresses[0], "kernels may run already"


def _nothing(address: int, first: int, last: int) -> int:
    return 1


def test_an_operation_that_could_not_be_compiled_is_compiled_when_it_is_next_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that was full, say. To call it by no address at all would be the end."""

    def refuse(_function: object) -> int:
        raise OSError("full")

    operations = Operations()
    operations.add(CHOICE, _nothing)
    with monkeypatch.context() as patch:
        patch.setattr(team, "compile_callable", refuse)
        with pytest.raises(OSError, match="full"):
            operations.compile()
    operations.compile()
    assert operations.addresses[CHOICE]


def _fails_at_two(_address: int, first: int, last: int) -> int:
    for number in range(first, last):
        if number == 2:
            raise MemoryError
    return 1


@kernel
def work(board: int, count: int) -> None:
    share_out(board, CHOICE, 0, 10**9, count, 1)


@kernel
def whole(board: int) -> None:
    call(board, CHOICE, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("threads", [1, 4])
def test_what_fails_is_told(board: Board, threads: int) -> None:
    """Whoever goes on would take for an answer what happens to be in memory."""
    board.set_threads(threads)
    addresses = np.zeros(CHOICE + 1, np.int64)
    addresses[CHOICE] = compile_callable(_fails_at_two)
    number_at(board.address + 8 * TABLE).value = addresses.ctypes.data
    work(board.address, 2)
    with pytest.raises(MemoryError):
        work(board.address, 4)
    work(board.address, 2)
    whole(board.address)
    addresses[CHOICE] = compile_callable(_fails)
    with pytest.raises(MemoryError):
        whole(board.address)


def _fails(_address: int, _first: int, _last: int) -> int:
    raise MemoryError


def number_at(address: int) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(address)


def test_what_is_soon_done_is_not_shared(board: Board) -> None:
    board.set_least(500)
    assert enlist(board.address, 499) == 1
    assert enlist(board.address, 500) == 4


def test_nobody_helps_one_thread(board: Board) -> None:
    board.set_threads(1)
    assert enlist(board.address, 10**9) == 1


@given(st.integers(1, MAX_THREADS), st.integers(2, 6))
def test_each_share_is_taken_once(shares: int, threads: int) -> None:
    board = Board()
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            begin(board.address, shares, 0, 0, shares, 1)
            found = pool.map(take_all, [board] * threads, range(threads))
            taken = [share for each in found for share in each]
            assert sorted(taken) == list(range(shares))
            finish(board, shares)


@pytest.mark.parametrize("threads", [2, 3, MAX_THREADS])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_no_number_of_threads_changes_a_bit(inputs: int, outputs: int, threads: int) -> None:
    expected = {rows: multiply(rows, inputs, outputs) for rows in (1, 13, 40)}
    with team_of(threads):
        for _ in range(10):
            for rows, products in expected.items():
                np.testing.assert_array_equal(multiply(rows, inputs, outputs), products)


def product(rows: int) -> tuple[Any, Any, Any]:
    """Inputs, a layer that is large enough to share, and space for its outputs."""
    left, values, scales, biases = random_case(rows, 512, 1024)
    return left, pack_weight(values, scales, biases), np.empty((rows, 1024), np.float32)


def test_kernels_of_several_threads_do_not_disturb_each_other() -> None:
    """One has the board, and the others do their work alone."""
    cases = [product(rows) for rows in (1, 3, 16, 33)]
    for case in cases:
        linear(*case)
    expected = [outputs.copy() for *_, outputs in cases]

    def repeat(case: tuple[Any, Any, Any]) -> None:
        for _ in range(50):
            case[2][:] = 0
            linear(*case)

    with team_of(3), ThreadPoolExecutor(len(cases)) as pool:
        list(pool.map(repeat, cases))
    for (*_, outputs), products in zip(cases, expected, strict=True):
        np.testing.assert_array_equal(outputs, products)


def test_who_does_not_come_is_not_waited_for() -> None:
    """A board that says that eight share, and of whom there is one."""
    left, weight, outputs = product(5)
    linear(left, weight, outputs)
    alone, before = outputs.copy(), BOARD.taken
    board = Board()
    board.set_threads(MAX_THREADS)
    linear(left, weight._replace(board=board.address), outputs)
    np.testing.assert_array_equal(outputs, alone)
    assert (board.taken, BOARD.taken) == (0, before)


def test_others_take_shares_where_they_can() -> None:
    left, weight, outputs = product(5)
    linear(left, weight, outputs)
    alone = outputs.copy()
    board = Board()
    board.set_threads(2)
    is_over = threading.Event()

    def help_out() -> None:
        while not is_over.is_set():
            work_along(board.address, 1)

    helper = threading.Thread(target=help_out)
    helper.start()
    deadline = time.monotonic() + 60
    while board.taken < 20 and time.monotonic() < deadline:
        outputs[:] = 0
        linear(left, weight._replace(board=board.address), outputs)
        np.testing.assert_array_equal(outputs, alone)
    is_over.set()
    helper.join()
    assert board.taken >= 20


def test_the_least_work_is_what_it_says() -> None:
    board = Board()
    board.set_threads(2)
    assert enlist(board.address, LEAST_NANOSECONDS - 1) == 1
    assert enlist(board.address, LEAST_NANOSECONDS) == 2
