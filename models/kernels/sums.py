"""Sums of floats in an order that depends on how many there are, and on nothing else.

A compiler that may choose the order takes another one for each width of vectors, and so scores
would differ from processor to processor. Here every 32nd number has a sum in common, these sums
are added in pairs, and what is left over at the end follows one by one.

Shape legend: ``M`` numbers.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from models.kernels.jit import formula, instruction, kernel

SUMS = 32
_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_FLOAT = ir.FloatType()
_FLOATS, _BYTES = ir.VectorType(_FLOAT, SUMS), ir.VectorType(_I8, SUMS)
_MAY_FUSE = ("contract",)


@kernel
def fold(lanes):
    """The sum of ``[32]`` float32, which are written over.

    Eight and eight first, as the halves of a register are added last.
    """
    for lane in range(8):
        near = lanes[lane] + lanes[lane + 8]
        lanes[lane] = near + (lanes[lane + 16] + lanes[lane + 24])
    for lane in range(4):
        lanes[lane] += lanes[lane + 4]
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])


def _fold(builder: Any, lanes: Any) -> Any:
    """The same of a vector."""
    near = [*range(8), *range(16, 24)]
    folded = _add_halves(builder, lanes, near, [place + 8 for place in near])
    for half in (8, 4, 2, 1):
        folded = _add_halves(builder, folded, list(range(half)), list(range(half, 2 * half)))
    return builder.extract_element(folded, ir.Constant(_I32, 0))


def _add_halves(builder: Any, vector: Any, one: list[int], other: list[int]) -> Any:
    nothing = ir.Constant(vector.type, ir.Undefined)
    picks = [ir.Constant(ir.VectorType(_I32, len(places)), places) for places in (one, other)]
    return builder.fadd(*(builder.shuffle_vector(vector, nothing, pick) for pick in picks))


@instruction
def _dot(typing_context: Any, floats: Any, integers: Any, count: Any) -> Any:
    """Of the addresses of float32 and int8 numbers, and their count: 32 or a multiple of it."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        floats, integers, count = arguments

        def load(kind: Any, address: Any, offset: Any) -> Any:
            pointer = builder.inttoptr(builder.add(address, offset), kind.as_pointer())
            return builder.load(pointer, align=1)

        before = builder.block
        loop, after = (builder.append_basic_block(name) for name in ("products", "sum"))
        builder.branch(loop)
        builder.position_at_end(loop)
        place, lanes = builder.phi(_I64), builder.phi(_FLOATS)
        own = load(_FLOATS, floats, builder.mul(place, ir.Constant(_I64, 4)))
        others = builder.sitofp(load(_BYTES, integers, place), _FLOATS)
        grown = builder.fadd(lanes, builder.fmul(own, others, flags=_MAY_FUSE), flags=_MAY_FUSE)
        following = builder.add(place, ir.Constant(_I64, SUMS))
        for phi, first, later in (
            (place, ir.Constant(_I64, 0), following),
            (lanes, ir.Constant(_FLOATS, None), grown),
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(later, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        return _fold(builder, grown)

    return types.float32(types.intp, types.intp, types.intp), generate


@formula
def dot(floats, integers):
    """The dot product of ``[M]`` float32 and ``[M]`` int8."""
    whole = floats.shape[0] // SUMS * SUMS
    total = np.float32(0)
    if whole:
        total = _dot(np.intp(floats.ctypes.data), np.intp(integers.ctypes.data), whole)
    for place in range(whole, floats.shape[0]):
        total += floats[place] * np.float32(integers[place])
    return total
