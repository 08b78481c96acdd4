"""The inner loop of an int8 product, as instructions for the processor.

A block is a few rows times a few vectors of 16 outputs, whose sums stay in registers while the
loop goes over the inputs, four at a time. No compiler makes such a loop of plain Python; so it is
written in LLVM's intermediate representation.

Weights are packed as ``[O / 16, I / 4, 16, 4]``: what one instruction takes stands together.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from models.kernels.jit import instruction, processor_has

LANES = 16
"""Outputs of one vector."""
GROUP = 4
"""Inputs that one instruction takes of each row."""
HAS_DOT_PRODUCTS = processor_has("avx512vnni")
"""Whether one instruction adds four products of bytes to a 32-bit number (VNNI)."""
ROUNDING = np.float32(1.5 * 2**23)
"""Added to a small number, it leaves no place for a fraction: what is left is rounded to even."""
ROUNDING_BITS = np.int32(ROUNDING.view(np.int32))
ZERO_POINT = 128 if HAS_DOT_PRODUCTS else 0
"""What stands for 0 in rows: the instruction takes them without a sign."""

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_FLOAT = ir.FloatType()
_SUMS = ir.VectorType(_I32, LANES)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_BYTES = ir.VectorType(_I8, LANES * GROUP)


@instruction
def bits_of(typing_context: Any, number: Any) -> Any:
    """The 32 bits of a float32, as int32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _I32)

    return types.int32(types.float32), generate


@instruction
def number_of(typing_context: Any, bits: Any) -> Any:
    """The float32 that has these 32 bits."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.int32), generate


class Block:
    """Writes one block's loop.

    Args:
        builder: where to.
        rows: of the block.
        vectors: of outputs.
    """

    def __init__(self, builder: Any, rows: int, vectors: int) -> None:
        self._builder = builder
        self._rows = rows
        self._vectors = vectors

    def _at(self, address: Any, index: Any, stride: Any) -> Any:
        offset = self._builder.mul(index, stride)
        return self._builder.add(address, offset)

    def _load(self, kind: Any, address: Any) -> Any:
        return self._builder.load(self._builder.inttoptr(address, kind.as_pointer()), align=1)

    def _spread(self, number: Any, kind: Any) -> Any:
        """A vector of which every lane holds the number."""
        nothing = ir.Constant(kind, ir.Undefined)
        first = self._builder.insert_element(nothing, number, _constant(0, _I32))
        lanes = ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count)
        return self._builder.shuffle_vector(first, nothing, lanes)

    def _add_products(self, sums: Any, row: Any, weights: Any) -> Any:
        """To the sum of each lane, the products of its four weights with the row's four values."""
        if HAS_DOT_PRODUCTS:
            name = "llvm.x86.avx512.vpdpbusd.512"
            known = self._builder.module.globals.get(name)
            instruction = known or ir.Function(
                self._builder.module, ir.FunctionType(_SUMS, [_SUMS] * 3), name
            )
            return self._builder.call(instruction, [sums, row, weights])
        wide = ir.VectorType(_I32, LANES * GROUP)
        products = self._builder.mul(
            self._builder.sext(self._builder.bitcast(row, _BYTES), wide),
            self._builder.sext(self._builder.bitcast(weights, _BYTES), wide),
        )
        # Two of 16 bits each, added to one of 32 bits, is an instruction of most processors.
        pairs = self._add_neighbours(products)
        return self._builder.add(sums, pairs)

    def _add_neighbours(self, numbers: Any) -> Any:
        count = numbers.type.count
        picks = [
            ir.Constant(ir.VectorType(_I32, count // 2), list(range(first, count, 2)))
            for first in (0, 1)
        ]
        nothing = ir.Constant(numbers.type, ir.Undefined)
        even, odd = (self._builder.shuffle_vector(numbers, nothing, pick) for pick in picks)
        return self._builder.add(even, odd)

    def sums(self, values: Any, row_stride: Any, weights: Any, groups: Any) -> list[list[Any]]:
        """The sums ``[rows][vectors]`` over all groups of inputs, at least one."""
        builder = self._builder
        kind = _SUMS if HAS_DOT_PRODUCTS else ir.VectorType(_I32, 2 * LANES)
        before = builder.block
        loop = builder.append_basic_block("groups")
        after = builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        group = builder.phi(_I64)
        group.add_incoming(_constant(0), before)
        sums = [[builder.phi(kind) for _ in range(self._vectors)] for _ in range(self._rows)]
        column_stride = builder.mul(groups, _constant(LANES * GROUP))
        place = self._at(weights, group, _constant(LANES * GROUP))
        loaded = [
            self._load(_SUMS, self._at(place, _constant(vector), column_stride))
            for vector in range(self._vectors)
        ]
        place = self._at(values, group, _constant(GROUP))
        grown = []
        for number, row in enumerate(sums):
            four = self._load(_I32, self._at(place, _constant(number), row_stride))
            spread = self._spread(four, _SUMS)
            pairs = zip(row, loaded, strict=True)
            grown.append([self._add_products(total, spread, block) for total, block in pairs])
        following = builder.add(group, _constant(1))
        group.add_incoming(following, loop)
        for old_row, new_row in zip(sums, grown, strict=True):
            for old, new in zip(old_row, new_row, strict=True):
                old.add_incoming(ir.Constant(kind, None), before)
                old.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", following, groups), loop, after)
        builder.position_at_end(after)
        if HAS_DOT_PRODUCTS:
            return grown
        return [[self._add_neighbours(total) for total in row] for row in grown]

    def load_weight(self, weight: Any) -> list[tuple[Any, Any, Any]]:
        """Correction, scale and bias of each vector of outputs."""
        loaded = []
        for vector in range(self._vectors):
            places = [self._builder.add(part, _constant(4 * LANES * vector)) for part in weight]
            kinds = (_SUMS, _FLOATS, _FLOATS)
            loaded.append(tuple(map(self._load, kinds, places)))
        return loaded

    def scale(
        self, sums: list[list[Any]], weight: list[tuple[Any, Any, Any]], row_scales: Any, place: Any
    ) -> None:
        """Write ``bias + row_scale * (scale * (sum - correction))``, each operation rounded."""
        builder = self._builder
        outputs, output_stride = place
        for row in range(self._rows):
            own = self._load(_FLOAT, builder.add(row_scales, _constant(4 * row)))
            own = self._spread(own, _FLOATS)
            for vector, (correction, scale, bias) in enumerate(weight):
                exact = builder.sub(sums[row][vector], correction)
                scaled = builder.fmul(builder.sitofp(exact, _FLOATS), scale)
                result = builder.fadd(builder.fmul(scaled, own), bias)
                address = self._at(outputs, _constant(row), output_stride)
                address = builder.add(address, _constant(4 * LANES * vector))
                builder.store(result, builder.inttoptr(address, _FLOATS.as_pointer()), align=1)

    def scale_stored(
        self, sums: Any, rows: tuple[Any, Any], weight: Any, row_scales: Any, place: Any
    ) -> None:
        """:meth:`scale` for rows, from one to before another, whose sums stand in memory."""
        builder = self._builder
        outputs, output_stride = place
        begin, end = rows
        before = builder.block
        loop = builder.append_basic_block("rows")
        after = builder.append_basic_block("scaled")
        builder.cbranch(builder.icmp_signed("<", begin, end), loop, after)
        builder.position_at_end(loop)
        row = builder.phi(_I64)
        row.add_incoming(begin, before)
        first = self._at(sums, row, _constant(4 * LANES * self._vectors))
        own_sums = [
            self._load(_SUMS, builder.add(first, _constant(4 * LANES * vector)))
            for vector in range(self._vectors)
        ]
        target = (self._at(outputs, row, output_stride), output_stride)
        self.scale([own_sums], weight, self._at(row_scales, row, _constant(4)), target)
        following = builder.add(row, _constant(1))
        row.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
        builder.position_at_end(after)


def _constant(value: int, kind: Any = _I64) -> Any:
    return ir.Constant(kind, value)


def make_block(rows: int, vectors: int) -> Callable[..., None]:
    """A function that multiplies so many rows with so many vectors of outputs.

    Its arguments are int64, addresses and strides in bytes: rows and their stride, packed weights,
    groups of inputs; corrections, scales and biases of the outputs; scales of the rows; outputs
    and the stride of their rows.
    """

    @instruction
    def block(
        typing_context: Any,
        values: Any,
        row_stride: Any,
        weights: Any,
        groups: Any,
        corrections: Any,
        scales: Any,
        biases: Any,
        row_scales: Any,
        outputs: Any,
        output_stride: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            writer = Block(builder, rows, vectors)
            sums = writer.sums(*arguments[:4])
            writer.scale(sums, writer.load_weight(arguments[4:7]), arguments[7], arguments[8:])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10), generate

    return block


def make_scaling(vectors: int) -> Callable[..., None]:
    """A function that makes outputs of sums, as the functions of :func:`make_block` end.

    Its arguments are int64, addresses and strides in bytes: sums ``[rows, 16 vectors]`` int32 and
    the number of rows; the rest as there.
    """

    @instruction
    def scaling(
        typing_context: Any,
        sums: Any,
        rows: Any,
        corrections: Any,
        scales: Any,
        biases: Any,
        row_scales: Any,
        outputs: Any,
        output_stride: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            writer = Block(builder, 1, vectors)
            sums, rows, row_scales = arguments[0], arguments[1], arguments[5]
            weight = writer.load_weight(arguments[2:5])
            writer.scale_stored(sums, (_constant(0), rows), weight, row_scales, arguments[6:])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), generate

    return scaling
