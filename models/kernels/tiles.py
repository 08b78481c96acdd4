"""The inner loop of an int8 product on processors that multiply tiles (Intel AMX).

A tile is 16 rows of 64 bytes, a place in the processor as registers are. One instruction multiplies
16 rows, 64 inputs of each, with 16 outputs. Weights are packed as :mod:`models.kernels.blocks`
has them: what one tile takes stands together.
"""

import ctypes
import functools
import platform
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from models.kernels.blocks import Block
from models.kernels.jit import instruction, processor_has

TILE_ROWS = 16
TILE_INPUTS = 64
_TILE_BYTES = TILE_ROWS * TILE_INPUTS
_SUMS_STRIDE = 128
"""Bytes from one row of sums to the next: of two tiles of 16 int32."""

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_ADDRESS = _I8.as_pointer()

_ARCH_PRCTL = 158
_REQUEST_PERMISSION, _TILE_DATA = 0x1023, 18


HAS_TILES = processor_has("amx-int8") and sys.platform == "linux" and platform.machine() == "x86_64"
"""Whether kernels may be compiled with these instructions."""


@functools.cache
def may_use_tiles() -> bool:
    """Whether the system lets this process use them.

    Linux wants to be asked, once: Documentation/arch/x86/xstate.rst.
    """
    if not HAS_TILES:
        return False
    system = ctypes.CDLL(None)
    return int(system.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)) == 0


CONFIGURATION = np.zeros(64, np.uint8)
"""Eight tiles of 16 rows of 64 bytes."""
CONFIGURATION[0] = 1
CONFIGURATION[16:32:2] = TILE_INPUTS
CONFIGURATION[48:56] = TILE_ROWS


def _call(builder: Any, name: str, *arguments: Any) -> None:
    kinds = [argument.type for argument in arguments]
    known = builder.module.globals.get(name)
    function = known or ir.Function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name)
    builder.call(function, arguments)


@instruction
def set_up_tiles(typing_context: Any, configuration: Any) -> Any:
    """Prepare this thread's tiles; the argument is the address of :data:`CONFIGURATION`."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address = builder.inttoptr(arguments[0], _ADDRESS)
        _call(builder, "llvm.x86.ldtilecfg", address)
        return context.get_dummy_value()

    return types.void(types.intp), generate


@instruction
def give_up_tiles(typing_context: Any) -> Any:
    """Leave the tiles: the system then need not keep them for this thread."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        _call(builder, "llvm.x86.tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


def make_tile_block(row_tiles: int) -> Callable[..., None]:
    """A function that multiplies 16 or 32 rows with 32 outputs, and meanwhile scales others.

    The tiles' unit works by itself for most of the time; what :func:`models.kernels.blocks` does
    to the sums of the block before is done between its instructions.

    Its arguments are int64, addresses and strides in bytes: rows and their stride, packed weights,
    tiles of inputs; where the sums go, int32 ``[rows, 32]``; then the arguments of
    :func:`models.kernels.blocks.make_scaling` for the block before, the number of its rows 0 if
    there is none.
    """

    @instruction
    def block(
        typing_context: Any,
        values: Any,
        row_stride: Any,
        weights: Any,
        tiles: Any,
        sums: Any,
        ready: Any,
        rows: Any,
        corrections: Any,
        scales: Any,
        biases: Any,
        row_scales: Any,
        outputs: Any,
        output_stride: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            scaling = _Scaling(builder, arguments[3], arguments[5:])
            _write_loop(builder, row_tiles, arguments[:5], scaling)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 13), generate

    return block


class _Scaling:
    """Writes the scaling of a block's sums in as many parts as another block's loop has steps."""

    def __init__(self, builder: Any, steps: Any, arguments: Any) -> None:
        self._builder = builder
        self._sums, self._rows, *weight, self._row_scales, outputs, output_stride = arguments
        self._place = (outputs, output_stride)
        self._writer = Block(builder, 1, 2)
        self._weight = self._writer.load_weight(weight)
        rounded_up = builder.sub(builder.add(self._rows, steps), ir.Constant(_I64, 1))
        self._share = builder.sdiv(rounded_up, steps)

    def write(self, step: Any) -> None:
        """The rows of one step."""
        builder = self._builder
        first = builder.mul(step, self._share)
        last = builder.add(first, self._share)
        is_less = builder.icmp_signed("<", last, self._rows)
        rows = (first, builder.select(is_less, last, self._rows))
        self._writer.scale_stored(self._sums, rows, self._weight, self._row_scales, self._place)


def _write_loop(builder: Any, row_tiles: int, arguments: Any, scaling: _Scaling) -> None:
    """Tiles 0 to 3 hold sums, 4 and 5 rows, 6 and 7 weights."""
    values, row_stride, weights, tiles, sums = arguments

    def number(value: int) -> Any:
        return ir.Constant(_I64, value)

    def tile(index: int) -> Any:
        return ir.Constant(_I8, index)

    def move(name: str, index: int, address: Any, stride: Any) -> None:
        pointer = builder.inttoptr(address, _ADDRESS)
        _call(builder, f"llvm.x86.{name}", tile(index), pointer, stride)

    pairs = [(row, column) for row in range(row_tiles) for column in range(2)]
    for row, column in pairs:
        _call(builder, "llvm.x86.tilezero", tile(2 * row + column))
    before = builder.block
    loop, after = (builder.append_basic_block(name) for name in ("tiles", "sums"))
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(_I64)
    step.add_incoming(number(0), before)
    place = builder.add(values, builder.mul(step, number(TILE_INPUTS)))
    for row in range(row_tiles):
        below = builder.mul(row_stride, number(TILE_ROWS * row))
        move("tileloadd64", 4 + row, builder.add(place, below), row_stride)
    column_bytes = builder.mul(tiles, number(_TILE_BYTES))
    place = builder.add(weights, builder.mul(step, number(_TILE_BYTES)))
    for column in range(2):
        beside = builder.mul(column_bytes, number(column))
        move("tileloadd64", 6 + column, builder.add(place, beside), number(TILE_INPUTS))
    for row, column in pairs:
        _call(builder, "llvm.x86.tdpbusd", tile(2 * row + column), tile(4 + row), tile(6 + column))
    scaling.write(step)
    following = builder.add(step, number(1))
    step.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, tiles), loop, after)
    builder.position_at_end(after)
    for row, column in pairs:
        offset = number(TILE_ROWS * row * _SUMS_STRIDE + column * _SUMS_STRIDE // 2)
        move("tilestored64", 2 * row + column, builder.add(sums, offset), number(_SUMS_STRIDE))
