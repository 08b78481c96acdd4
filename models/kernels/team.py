"""How threads share out the work of kernels: what they tell each other, and when.

A kernel that has much to do writes on the *board* which *operation* does it, divided into shares.
The threads of :mod:`models.team`, which watch the board, take one each. So does the kernel's own
thread: first its share, and then whatever nobody has taken, so that it never waits for a thread
that does not run. Whoever takes a share, its bits are the same.

A thread keeps its number, and takes the share of that number if it can: where the weights are
shared out, they may then stay in its cache from step to step.

A *board* is known by its address. An operation is compiled once and called by its address: each
kernel that uses it would otherwise have a copy of it, and take as long to compile.
"""

import threading
from collections.abc import Callable

import numpy as np

from models.kernels.instructions import add, invoke, load, pause, replace, store
from models.kernels.jit import Function, compile_callable, kernel

MAX_THREADS = 8
"""Most shares of a piece of work, one for each thread."""
BOARD_NUMBERS = 40
WORK, DONE, OWNER, THREADS, LEAST, TAKEN, TABLE = 0, 8, 16, 24, 25, 26, 27
"""Where on the board, most a line of memory apart: the shares that nobody has taken, how many are
done, whether a kernel uses the board; how many threads there are, the least work to share, how
many shares others than the caller's thread have taken, and where the operations' addresses are."""
OPERATION, PARTS, WIDTH, COUNT, FAILED = 32, 33, 34, 35, 36
"""And what the work is: see :func:`begin`; and how many of its shares have failed."""
PRODUCTS, GRU_GATES, LSTM_GATES, DOT_ATTENTION, ADDITIVE_ATTENTION, CHOICE, SAMPLING = range(7)
"""Operations that are shared out."""
LINEAR, GRU_STEP, LSTM_STEP, SEARCHES = range(7, 11)
"""Operations that are done as a whole, and may share out what they are made of."""
LEAST_NANOSECONDS = 4_000
"""Work that is worth sharing: to tell others of it takes 1,000."""
_LINE_BYTES = 64
_LOOKS_TO_A_PAUSE = 8
"""A pause leaves the core to its other hyperthread, and makes the next look come later."""
_IDLE_LOOKS = 1 << 18
"""How often a thread looks at a board without work before it goes to sleep: for most of a
millisecond, which is longer than what Python does between two steps. To wake it takes a tenth of
that."""

_FAILED = "an operation of a kernel has failed"
"""For nothing else than memory: they do nothing else that could."""
_SHARE_BITS = np.int64(16)
_SHARES = np.int64((1 << 16) - 1)
_ONE = np.int64(1)


class Operations:
    """What kernels have done in shares, by number.

    Compiled when the first kernel is about to run: nobody waits for what is only imported.

    Attributes:
        addresses: of the operations, 0 where there is none.
    """

    def __init__(self) -> None:
        self.addresses = np.zeros(SEARCHES + 1, np.int64)
        self._pending: dict[int, Function] = {}
        self._are_needed = False
        self._lock = threading.Lock()

    def add(self, number: int, function: Function) -> None:
        """Have a function of its parts' address and of where a share begins and ends.

        Args:
            number: of the operation.
            function: see :func:`~models.kernels.jit.compile_callable`.
        """
        self._pending[number] = function
        if self._are_needed:
            self.compile()

    def compile(self) -> None:
        """Have all of them, and those that come later at once."""
        with self._lock:
            self._are_needed = True
            for number in list(self._pending):
                self.addresses[number] = compile_callable(self._pending[number])
                del self._pending[number]


OPERATIONS = Operations()


def operation(number: int) -> Callable[[Function], Function]:
    """Make a function the operation of this number."""

    def register(function: Function) -> Function:
        OPERATIONS.add(number, function)
        return function

    return register


@kernel
def store_number(address, value):
    """:func:`store` for who is no kernel."""
    store(address, value)


class Board:
    """Where kernels and helpers of a process meet."""

    def __init__(self) -> None:
        space = np.zeros(BOARD_NUMBERS + _LINE_BYTES // 8, np.int64)
        offset = -space.ctypes.data % _LINE_BYTES // 8
        self._numbers = space[offset : offset + BOARD_NUMBERS]
        self._address = self._numbers.ctypes.data
        self._numbers[TABLE] = OPERATIONS.addresses.ctypes.data
        self.set_least(LEAST_NANOSECONDS)

    @property
    def address(self) -> int:
        """Of it, as kernels take it, who may call operations then."""
        OPERATIONS.compile()
        return self._address

    def set_threads(self, count: int) -> None:
        """Have so many threads share out what comes, the caller among them."""
        store_number(self._address + 8 * THREADS, count)

    @property
    def taken(self) -> int:
        """How many shares were taken by others than the thread whose kernel it was."""
        return int(self._numbers[TAKEN])

    def set_least(self, nanoseconds: int) -> None:
        """Have work shared that takes one thread at least so long."""
        store_number(self._address + 8 * LEAST, nanoseconds)


BOARD = Board()
"""Of this process."""


@kernel
def enlist(board, nanoseconds):
    """How many threads may share work that takes one about so long.

    1 where it is not worth the telling, nobody helps, or another kernel has the board. Whoever
    gets more than 1 has it until :func:`end`.
    """
    threads = load(board + 8 * THREADS)
    if threads < 2 or nanoseconds < load(board + 8 * LEAST):
        return np.int64(1)
    return threads if replace(board + 8 * OWNER, 0, 1) else np.int64(1)


@kernel
def claim(board, own):
    """Take a share that nobody has: one's own if possible. Returns -1 if there is none."""
    while True:
        work = load(board + 8 * WORK)
        left = work & _SHARES
        if not left:
            return np.int64(-1)
        share = np.int64(own)
        if not left & (_ONE << share):
            share = np.int64(0)
            while not left & (_ONE << share):
                share += _ONE
        # The number of the work is in it: a share of work that is over cannot be taken.
        if replace(board + 8 * WORK, work, work & ~(_ONE << share)):
            return share


@kernel
def _divide(count, shares):
    """Rounded up."""
    return (count + shares - 1) // shares


@kernel
def begin(board, threads, operation, parts, count, multiple):
    """Divide work among threads, one share for each at most.

    Args:
        board: its address.
        threads: what :func:`enlist` said.
        operation: address of the function that does it.
        parts: address of what it is done with.
        count: how many things there are to do.
        multiple: how many of them cannot be divided.

    Returns:
        How many shares there are.
    """
    width = max(_divide(_divide(count, threads), multiple) * multiple, multiple)
    shares = _divide(count, width)
    store(board + 8 * OPERATION, operation)
    store(board + 8 * PARTS, parts)
    store(board + 8 * WIDTH, width)
    store(board + 8 * COUNT, count)
    store(board + 8 * DONE, 0)
    store(board + 8 * FAILED, 0)
    number = load(board + 8 * WORK) >> _SHARE_BITS
    store(board + 8 * WORK, ((number + _ONE) << _SHARE_BITS) | ((_ONE << shares) - _ONE))
    return shares


@kernel
def do_shares(board, number):
    """Take shares and do them until none is left; returns how many there were."""
    done = np.int64(0)
    share = claim(board, number)
    while share >= 0:
        width, count = load(board + 8 * WIDTH), load(board + 8 * COUNT)
        first, last = share * width, min((share + _ONE) * width, count)
        if not invoke(load(board + 8 * OPERATION), load(board + 8 * PARTS), first, last):
            add(board + 8 * FAILED, 1)
        add(board + 8 * DONE, 1)
        done += _ONE
        share = claim(board, number)
    return done


@kernel
def end(board, shares):
    """Wait until all shares are done, and give up the board; returns whether none has failed."""
    while load(board + 8 * DONE) < shares:
        pause()
    failed = load(board + 8 * FAILED)
    store(board + 8 * OWNER, 0)
    return failed == 0


@kernel
def share_out(board, operation, parts, nanoseconds, count, multiple):
    """Do so many things, by all threads that help where there is much to do.

    Whoever calls it is to :func:`keep` the parts.

    Args:
        board: its address.
        operation: its number.
        parts: address of what it is done with.
        nanoseconds: that it takes one thread, about.
        count: how many things there are to do.
        multiple: how many of them cannot be divided.

    Raises:
        MemoryError: there was none for it.
    """
    function = load(load(board + 8 * TABLE) + 8 * operation)
    threads = enlist(board, nanoseconds)
    if threads == 1:
        is_done = invoke(function, parts, 0, count) == 1
    else:
        shares = begin(board, threads, function, parts, count, multiple)
        do_shares(board, 0)
        is_done = end(board, shares)
    if not is_done:
        raise MemoryError(_FAILED)


@kernel
def call(board, operation, parts):
    """Have an operation done as a whole. Whoever calls it is to :func:`keep` the parts.

    Raises:
        MemoryError: there was none for it.
    """
    if not invoke(load(load(board + 8 * TABLE) + 8 * operation), parts, 0, 0):
        raise MemoryError(_FAILED)


@kernel
def _wait_for_work(board):
    """Look at the board until there is a share to take, or for long enough: whether there is."""
    for look in range(_IDLE_LOOKS):
        if load(board + 8 * WORK) & _SHARES:
            return True
        if look % _LOOKS_TO_A_PAUSE == 0:
            pause()
    return False


@kernel
def work_along(board, number):
    """Take shares of whatever comes, until nothing has come for a while.

    Args:
        board: its address.
        number: of this thread among those that share, from 1.
    """
    while _wait_for_work(board):
        add(board + 8 * TAKEN, do_shares(board, number))
