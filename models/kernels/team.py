"""How threads share out the work of a kernel: what they tell each other, and when.

A kernel that has much to do writes on the *board* what it is, divided into shares. The threads of
:mod:`models.team`, which watch the board, take one each. So does the kernel's own thread: first
its share, and then whatever nobody has taken, so that it never waits for a thread that does not
run. Whoever takes a share, its bits are the same.

A thread keeps its number, and takes the share of that number if it can: where the weights are
shared out, they may then stay in its cache from step to step.

A *board* is known by its address.
"""

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from models.kernels.jit import instruction, kernel

MAX_THREADS = 8
"""Most shares of a piece of work, one for each thread."""
BOARD_NUMBERS = 40
WORK, DONE, OWNER, THREADS, LEAST, TAKEN = 0, 8, 16, 24, 25, 26
"""Where on the board, most a line of memory apart: the shares that nobody has taken, how many are
done, whether a kernel uses the board; how many threads there are, the least work to share, and how
many shares others than the caller's thread have taken."""
KIND, PARTS, WIDTH = 32, 33, 34
"""And what the work is: see :func:`begin`."""
PRODUCTS, GRU_GATES, LSTM_GATES, DOT_ATTENTION, ADDITIVE_ATTENTION, CHOICE = range(6)
"""Kinds of work."""
LEAST_NANOSECONDS = 4_000
"""Work that is worth sharing: to tell others of it takes 1,000."""
_LINE_BYTES = 64
_LOOKS_TO_A_PAUSE = 8
"""A pause leaves the core to its other hyperthread, and makes the next look come later."""
_IDLE_LOOKS = 1 << 18
"""How often a thread looks at a board without work before it goes to sleep: for most of a
millisecond, which is longer than what Python does between two steps. To wake it takes a tenth of
that."""

_I64 = ir.IntType(64)
_PAUSES = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}
_PAUSE = _PAUSES.get(platform.machine())
_SHARE_BITS = np.int64(16)
_SHARES = np.int64((1 << 16) - 1)
_ONE = np.int64(1)


def _place(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


@instruction
def load(typing_context: Any, address: Any) -> Any:
    """The int64 at an address, and whatever was written before it was."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_place(builder, arguments[0]), "acquire", 8)

    return types.int64(types.int64), generate


@instruction
def store(typing_context: Any, address: Any, value: Any) -> Any:
    """Write an int64 to an address, after all that was written before."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _place(builder, arguments[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@instruction
def add(typing_context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address, whoever else does; returns what it was."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place = _place(builder, arguments[0])
        return builder.atomic_rmw("add", place, arguments[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@instruction
def replace(typing_context: Any, address: Any, expected: Any, value: Any) -> Any:
    """Write an int64 to an address unless another than expected is there: 1 if it was, else 0."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place, *values = arguments
        both = builder.cmpxchg(_place(builder, place), *values, "acq_rel", "acquire")
        return builder.zext(builder.extract_value(both, 1), _I64)

    return types.int64(types.int64, types.int64, types.int64), generate


@instruction
def pause(typing_context: Any) -> Any:
    """Let the processor do something else for a moment."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        if _PAUSE:
            known = builder.module.globals.get(_PAUSE)
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(known or ir.Function(builder.module, kind, _PAUSE), [])
        return context.get_dummy_value()

    return types.void(), generate


class Parcel:
    """What a piece of work is done with, as one kernel hands it to those of other threads.

    Args:
        contents: Numba's type of a tuple.
    """

    def __init__(self, contents: types.BaseTuple) -> None:
        @instruction
        def pack(typing_context: Any, parts: Any) -> Any:
            """The address of the parts, which stay where they are while their kernel runs."""

            def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
                slot = cgutils.alloca_once_value(builder, arguments[0])
                return builder.ptrtoint(slot, _I64)

            return types.int64(contents), generate

        @instruction
        def unpack(typing_context: Any, address: Any) -> Any:
            """The parts at an address."""

            def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
                kind = context.get_value_type(contents).as_pointer()
                parts = builder.load(builder.inttoptr(arguments[0], kind))
                context.nrt.incref(builder, contents, parts)
                return parts

            return contents(types.int64), generate

        self.pack, self.unpack = pack, unpack


@kernel
def _store_number(address, value):
    """:func:`store` for who is no kernel."""
    store(address, value)


class Board:
    """Where kernels and helpers of a process meet.

    Attributes:
        address: of it, as kernels take it.
    """

    def __init__(self) -> None:
        space = np.zeros(BOARD_NUMBERS + _LINE_BYTES // 8, np.int64)
        offset = -space.ctypes.data % _LINE_BYTES // 8
        self._numbers = space[offset : offset + BOARD_NUMBERS]
        self.address = self._numbers.ctypes.data

        self.set_least(LEAST_NANOSECONDS)

    def set_threads(self, count: int) -> None:
        """Have so many threads share out what comes, the caller among them."""
        _store_number(self.address + 8 * THREADS, count)

    @property
    def taken(self) -> int:
        """How many shares were taken by others than the thread whose kernel it was."""
        return int(self._numbers[TAKEN])

    def set_least(self, nanoseconds: int) -> None:
        """Have work shared that takes one thread at least so long."""
        _store_number(self.address + 8 * LEAST, nanoseconds)


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
def _divide(count, shares):
    """Rounded up."""
    return (count + shares - 1) // shares


@kernel
def plan(board, nanoseconds, count, multiple):
    """How to share out so many things, which take one thread about so long.

    Returns:
        What :func:`enlist` says; how many things are a share, a multiple of the last argument;
        and how many shares there are.
    """
    threads = enlist(board, nanoseconds)
    width = max(_divide(_divide(count, threads), multiple) * multiple, multiple)
    return threads, width, _divide(count, width)


@kernel
def bounds(share, width, count):
    """Where a share of so many things begins and ends."""
    return share * width, min((share + 1) * width, count)


@kernel
def handed_on(board):
    """What others than the caller's thread are told: the address of the parts, and the width."""
    return load(board + 8 * PARTS), load(board + 8 * WIDTH)


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
def begin(board, threads, kind, parts, width, shares):
    """Share out work; returns the first share of the kernel that does.

    Args:
        board: its address.
        threads: what :func:`enlist` said; one does all of it, as its only share.
        kind: which work it is, for other threads.
        parts: address of what it is done with.
        width: how much of it is a share.
        shares: how many there are.
    """
    if threads == 1:
        return np.int64(0)
    store(board + 8 * KIND, kind)
    store(board + 8 * PARTS, parts)
    store(board + 8 * WIDTH, width)
    store(board + 8 * DONE, 0)
    number = load(board + 8 * WORK) >> _SHARE_BITS
    store(board + 8 * WORK, ((number + _ONE) << _SHARE_BITS) | ((_ONE << shares) - _ONE))
    return claim(board, 0)


@kernel
def finish(board, number):
    """A share is done: the next one of a thread, or -1."""
    add(board + 8 * DONE, 1)
    return claim(board, number)


@kernel
def follow(board, threads):
    """The same for the kernel that shared out the work."""
    return np.int64(-1) if threads == 1 else finish(board, 0)


@kernel
def end(board, threads, shares, parts):
    """Wait until all shares are done, and give up the board.

    It is given the parts for these to be there until then: a kernel lets go of its arrays when it
    names them for the last time.
    """
    if threads == 1:
        return
    while load(board + 8 * DONE) < shares:
        pause()
    store(board + 8 * OWNER, 0)


@kernel
def wait_for_work(board):
    """Look at the board until there is a share to take, or for long enough: whether there is."""
    for look in range(_IDLE_LOOKS):
        if load(board + 8 * WORK) & _SHARES:
            return True
        if look % _LOOKS_TO_A_PAUSE == 0:
            pause()
    return False
