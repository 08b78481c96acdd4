"""Products of int8 weights, exact in their integers, with a scale for each row and each output.

Shape legend: ``M`` rows, ``I`` inputs, ``O`` outputs.
"""

from typing import NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from models.kernels.blocks import (
    GROUP,
    LANES,
    ROUNDING,
    ROUNDING_BITS,
    ZERO_POINT,
    bits_of,
    make_block,
    make_scaling,
    number_of,
)
from models.kernels.instructions import Parcel, keep
from models.kernels.jit import kernel
from models.kernels.team import BOARD, LINEAR, PRODUCTS, call, operation, share_out
from models.kernels.tiles import (
    CONFIGURATION,
    HAS_TILES,
    TILE_INPUTS,
    TILE_ROWS,
    give_up_tiles,
    make_tile_block,
    may_use_tiles,
    set_up_tiles,
)

LEVELS = 127
"""Values are stored as integers from -127 to 127."""
TINY = 1e-30

_TINY = np.float32(TINY)
_SHARE = np.float32(1 / LEVELS)
_ABSOLUTE = np.int32(0x7FFFFFFF)
_INFINITE = np.int32(0x7F800000)
_ZERO_POINT = np.int32(ZERO_POINT)

_LINE_BYTES = 64
_VECTOR_BYTES = 4 * LANES
_WIDE = 4
"""Vectors of outputs that are computed together; what is left over, one by one."""
_block_6, _block_4 = make_block(6, _WIDE), make_block(4, _WIDE)
_block_2, _block_1 = make_block(2, _WIDE), make_block(1, _WIDE)
_rest_4, _rest_1 = make_block(4, 1), make_block(1, 1)


_INPUT_STEP = TILE_INPUTS if HAS_TILES else GROUP
_TILES_PAY = 12
"""Rows from which tiles are worth it, which compute 16 however few there are."""
if HAS_TILES:
    _tiles_32, _tiles_16 = make_tile_block(2), make_tile_block(1)
    _scale = make_scaling(2)


class Weight(NamedTuple):
    """A linear layer as kernels take it. Outputs are filled up to whole vectors, with zeros.

    Attributes:
        packed: ``[O / 16, I / 4, 16, 4]`` int8.
        corrections: ``[O]`` int32, what the zero point of the rows adds to a sum.
        scales: ``[O]`` float32, of the sums.
        biases: ``[O]`` float32.
        in_tiles: whether the processor may multiply tiles.
        board: address of where threads are told to help: see :mod:`models.kernels.team`.
    """

    packed: NDArray[np.int8]
    corrections: NDArray[np.int32]
    scales: NDArray[np.float32]
    biases: NDArray[np.float32]
    in_tiles: bool
    board: int


def pack_weight(
    values: NDArray[np.int8],
    scales: NDArray[np.float32],
    biases: NDArray[np.float32],
    *,
    in_tiles: bool | None = None,
) -> Weight:
    """A layer ``[O, I]`` with scale and bias ``[O]`` of each output.

    Args:
        values: the integers.
        scales: of the outputs.
        biases: of the outputs.
        in_tiles: False leaves the processor's tiles alone; None uses them if they are there.
    """
    outputs, inputs = values.shape
    missing = -outputs % LANES
    filled = np.pad(values, ((0, missing), (0, -inputs % _INPUT_STEP)))
    blocks = filled.reshape(filled.shape[0] // LANES, LANES, filled.shape[1] // GROUP, GROUP)
    blocks = blocks.transpose(0, 2, 1, 3)
    packed = make_space(blocks.size).view(np.int8).reshape(blocks.shape)
    packed[...] = blocks
    return Weight(
        packed,
        ZERO_POINT * filled.sum(1, dtype=np.int32),
        np.pad(scales, (0, missing)),
        np.pad(biases, (0, missing)),
        may_use_tiles() if in_tiles is None else in_tiles,
        BOARD.address,
    )


@kernel
def _scale_of(row):
    """What the integers of a row ``[I]`` float32 are to be multiplied by."""
    largest = np.int32(0)
    for i in range(row.shape[0]):
        # The bits of positive floats are in their order, and NaN is above them all.
        largest = max(largest, np.int32(bits_of(row[i]) & _ABSOLUTE))
    scale = max(number_of(largest), _TINY) if largest <= _INFINITE else number_of(largest)
    return scale * _SHARE


@kernel
def _store_row(row, scale, stored):
    for i in range(row.shape[0]):
        stored[i] = np.int8(bits_of(row[i] / scale + ROUNDING) - ROUNDING_BITS)


@kernel
def store_rows(rows, places, values, scales):
    """Round rows to integers, each with a scale, to be kept.

    Args:
        rows: ``[M, I]`` float32.
        places: ``[M]`` int64, where each row goes in both of the next.
        values: ``[P, I]`` int8.
        scales: ``[P]``.
    """
    for m in range(rows.shape[0]):
        place = places[m]
        scales[place] = _scale_of(rows[m])
        _store_row(rows[m], scales[place], values[place])


@kernel
def store_groups(rows, places, values, scales):
    """The same of groups of rows, each with a scale for all its rows.

    Args:
        rows: ``[N, S, I]`` float32.
        places: ``[P]`` int64, which of the ``N * S`` rows are real, in order.
        values: ``[N, S, I]`` int8, where those go; the others are left alone.
        scales: ``[N]``, where the scales go.
    """
    size, done = rows.shape[1], 0
    for n in range(rows.shape[0]):
        first, scale = done, _TINY * _SHARE
        while done < places.shape[0] and places[done] // size == n:
            own = _scale_of(rows[n, places[done] % size])
            scale = own if own > scale or np.isnan(own) else scale
            done += 1
        scales[n] = scale
        for i in range(first, done):
            place = places[i] % size
            _store_row(rows[n, place], scale, values[n, place])


@kernel
def round_row(row, values):
    """Round a row ``[I]`` float32 to integers ``[I]`` uint8; return the scale that undoes it."""
    scale = _scale_of(row)
    for i in range(row.shape[0]):
        rounded = bits_of(row[i] / scale + ROUNDING) - ROUNDING_BITS
        values[i] = np.uint8(rounded + _ZERO_POINT)
    return scale


@kernel
def copy_row(row, target):
    """Numbers ``[I]`` to another array: Numba takes a second to compile ``target[:] = row``."""
    for i in range(row.shape[0]):
        target[i] = row[i]


@kernel
def make_space(size):
    """So many bytes from the beginning of one of the processor's lines of memory."""
    space = np.empty(size + _LINE_BYTES, np.uint8)
    offset = -np.intp(space.ctypes.data) % _LINE_BYTES
    return space[offset : offset + size]


@kernel
def make_values(rows, weight):
    """Space for so many rounded rows: more than these, and than a row's inputs."""
    filled = (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    width = weight.packed.shape[1] * GROUP
    return make_space(filled * width).reshape(filled, width)


@kernel
def round_rows(rows, values, scales):
    """Round rows ``[M, I]`` into the space of :func:`make_values`, each with a scale ``[M]``."""
    for m in range(rows.shape[0]):
        scales[m] = round_row(rows[m], values[m, : rows.shape[1]])


@kernel
def _places(weight):
    """Addresses of what is packed, and of corrections, scales and biases."""
    parts = (
        np.intp(weight.corrections.ctypes.data),
        np.intp(weight.scales.ctypes.data),
        np.intp(weight.biases.ctypes.data),
    )
    return np.intp(weight.packed.ctypes.data), parts


if HAS_TILES:

    @kernel
    def _multiply_tiles(values, row_scales, weight, outputs, begin, end, sums):
        """As :func:`multiply`, two vectors of outputs at a time; return the first left over.

        ``sums [2, 32, 32]`` int32 is space, for the sums of a block and of the one before, which
        are scaled meanwhile. It comes from the caller, since an array of which only the address is
        used is given back before that.
        """
        rows, width = outputs.shape
        groups = weight.packed.shape[1]
        stride, reach = values.strides[0], outputs.strides[0]
        first, first_scale = np.intp(values.ctypes.data), np.intp(row_scales.ctypes.data)
        target = np.intp(outputs.ctypes.data)
        packed, parts = _places(weight)
        aside = np.intp(sums.ctypes.data)
        tiles = groups * GROUP // TILE_INPUTS
        set_up_tiles(np.intp(CONFIGURATION.ctypes.data))
        last = begin + (min(end, width // LANES) - begin) // 2 * 2
        offset, m, count, ready, fresh = 0, 0, 0, aside, aside + sums.strides[0]
        for column in range(begin, last, 2):
            w = packed + column * groups * LANES * GROUP
            for row in range(0, rows, 2 * TILE_ROWS):
                v = first + row * stride
                k, s, b = parts[0] + offset, parts[1] + offset, parts[2] + offset
                r, o = first_scale + 4 * m, target + m * reach + offset
                if rows - row > TILE_ROWS:
                    _tiles_32(v, stride, w, tiles, fresh, ready, count, k, s, b, r, o, reach)
                else:
                    _tiles_16(v, stride, w, tiles, fresh, ready, count, k, s, b, r, o, reach)
                offset, m, count = column * _VECTOR_BYTES, row, min(rows - row, 2 * TILE_ROWS)
                ready, fresh = fresh, ready
        k, s, b = parts[0] + offset, parts[1] + offset, parts[2] + offset
        if count:
            _scale(ready, count, k, s, b, first_scale + 4 * m, target + m * reach + offset, reach)
        give_up_tiles()
        return last

else:

    @kernel
    def _multiply_tiles(values, row_scales, weight, outputs, begin, end, sums):
        """No output is computed where there are no tiles."""
        return begin


@kernel
def multiply(values, row_scales, weight, outputs, begin, end):
    """Multiply rounded rows ``[M, I]`` uint8 with a weight, into ``[M, O]`` float32.

    ``outputs = bias + row_scale * (scale * sum(integers))``.

    Args:
        values: see :func:`round_rows`.
        row_scales: ``[M]``, from there.
        weight: the layer.
        outputs: where the products go.
        begin: the first vector of outputs to compute.
        end: the one behind the last, of ``O / 16``.
    """
    rows, width = outputs.shape
    if weight.in_tiles and rows >= _TILES_PAY:
        space = make_space(2 * 2 * TILE_ROWS * 2 * _VECTOR_BYTES).view(np.int32)
        sums = space.reshape(2, 2 * TILE_ROWS, 2 * LANES)
        begin = _multiply_tiles(values, row_scales, weight, outputs, begin, end, sums)
    groups = weight.packed.shape[1]
    stride, reach = values.strides[0], outputs.strides[0]
    first, first_scale = np.intp(values.ctypes.data), np.intp(row_scales.ctypes.data)
    target = np.intp(outputs.ctypes.data)
    packed, parts = _places(weight)
    wide_end = begin + max(min(end, width // LANES) - begin, 0) // _WIDE * _WIDE
    for column in range(begin, wide_end, _WIDE):
        w = packed + column * groups * LANES * GROUP
        offset = column * _VECTOR_BYTES
        k, s, b = parts[0] + offset, parts[1] + offset, parts[2] + offset
        m = 0
        while m < rows:
            v, r, o = first + m * stride, first_scale + 4 * m, target + m * reach + offset
            if m + 6 <= rows:
                _block_6(v, stride, w, groups, k, s, b, r, o, reach)
                m += 6
            elif m + 4 <= rows:
                _block_4(v, stride, w, groups, k, s, b, r, o, reach)
                m += 4
            elif m + 2 <= rows:
                _block_2(v, stride, w, groups, k, s, b, r, o, reach)
                m += 2
            else:
                _block_1(v, stride, w, groups, k, s, b, r, o, reach)
                m += 1
    # What is left over, and perhaps no whole vector, goes by way of a place aside.
    scratch = np.empty((4, LANES), np.float32)
    aside = np.intp(scratch.ctypes.data)
    for column in range(wide_end, end):
        w = packed + column * groups * LANES * GROUP
        offset = column * _VECTOR_BYTES
        k, s, b = parts[0] + offset, parts[1] + offset, parts[2] + offset
        lanes = min(width - column * LANES, LANES)
        m = 0
        while m < rows:
            v, r = first + m * stride, first_scale + 4 * m
            count = 4 if m + 4 <= rows else 1
            if count == 4:
                _rest_4(v, stride, w, groups, k, s, b, r, aside, _VECTOR_BYTES)
            else:
                _rest_1(v, stride, w, groups, k, s, b, r, aside, _VECTOR_BYTES)
            for row in range(count):
                for lane in range(lanes):
                    outputs[m + row, column * LANES + lane] = scratch[row, lane]
            m += count


_FLOATS, _ROWS = types.float32[::1], types.float32[:, ::1]
WEIGHT = types.NamedTuple(
    (types.int8[:, :, :, ::1], types.int32[::1], _FLOATS, _FLOATS, types.boolean, types.int64),
    Weight,
)
"""Numba's type of a :class:`Weight`."""
_parcel = Parcel(types.Tuple((types.uint8[:, ::1], _FLOATS, WEIGHT, _ROWS)))
_pack_products, _unpack_products = _parcel.pack, _parcel.unpack
_linear_parcel = Parcel(types.Tuple((_ROWS, WEIGHT, _ROWS)))
_pack_linear, _unpack_linear = _linear_parcel.pack, _linear_parcel.unpack


@operation(PRODUCTS)
def _multiply_share(address, first, last):
    values, row_scales, weight, outputs = _unpack_products(address)
    multiply(values, row_scales, weight, outputs, first, last)
    return np.int64(1)


@kernel
def multiply_all(values, row_scales, weight, outputs):
    """:func:`multiply` of all outputs, by all threads that help where there is much to do."""
    vectors, rows = weight.packed.shape[0], outputs.shape[0]
    # A byte of the weights comes in 1/31 ns, and is multiplied with eight rows in as long.
    nanoseconds = weight.packed.size * (rows + 8) // 256
    parts = (values, row_scales, weight, outputs)
    share_out(weight.board, PRODUCTS, _pack_products(parts), nanoseconds, vectors, _WIDE)
    keep(parts)


@operation(LINEAR)
def _linear(address, _first, _last):
    rows, weight, outputs = _unpack_linear(address)
    values = make_values(rows.shape[0], weight)
    scales = np.empty(rows.shape[0], np.float32)
    round_rows(rows, values, scales)
    multiply_all(values, scales, weight, outputs)
    return np.int64(1)


@kernel
def linear(rows, weight, outputs):
    """Rows ``[M, I]`` float32 through a linear layer, into ``[M, O]`` float32."""
    parts = (rows, weight, outputs)
    call(weight.board, LINEAR, _pack_linear(parts))
    keep(parts)


@kernel
def linear_of(rows, order, weight, outputs):
    """What :func:`linear` makes of ``rows[order]``: ``order [M]`` int64, into ``[M, O]``."""
    values = make_values(order.shape[0], weight)
    scales = np.empty(order.shape[0], np.float32)
    for m in range(order.shape[0]):
        row = rows[order[m]]
        scales[m] = round_row(row, values[m, : row.shape[0]])
    multiply_all(values, scales, weight, outputs)
