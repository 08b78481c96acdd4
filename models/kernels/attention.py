"""Attention of each row to one source, from the scoring functions of :mod:`models.attention`.

A row's source is looked at only where it has a position, in the order of positions, so that
neither padding nor other rows change a bit.

Shape legend: ``N`` rows, ``B`` sources, ``S`` source positions, ``A`` attention size, ``E`` size
of an encoder output. Keys and values come as ``[X]``, one number after the other, with the
distances between sources and between positions: a view of a pool is no whole array.
"""

import numpy as np
from numba import types

from models.kernels.gates import exponential, hyperbolic_tangent
from models.kernels.instructions import Parcel, keep
from models.kernels.jit import formula, kernel
from models.kernels.sums import SUMS, dot, fold
from models.kernels.team import ADDITIVE_ATTENTION, DOT_ATTENTION, operation, share_out

_NANOSECONDS = 2_000
"""What a row takes one thread, about."""
_NUMBERS, _STRIDES = types.int64[::1], types.UniTuple(types.int64, 2)
_FLOATS, _ROWS, _BYTES = types.float32[::1], types.float32[:, ::1], types.int8[::1]
_RESULTS = (_BYTES, _STRIDES, _FLOATS, types.boolean[:, ::1], _ROWS, _ROWS)
_dot = Parcel(types.Tuple((_ROWS, _NUMBERS, _BYTES, _STRIDES, _ROWS, *_RESULTS)))
_additive_parts = Parcel(types.Tuple((_ROWS, _NUMBERS, _FLOATS, _FLOATS, _STRIDES, *_RESULTS)))
_pack_dot, _unpack_dot = _dot.pack, _dot.unpack
_pack_additive, _unpack_additive = _additive_parts.pack, _additive_parts.unpack

_LOWEST = np.float32(-np.inf)
_ZERO = np.float32(0)


@formula
def _additive(query, key, vector, sums):
    whole = query.shape[0] // SUMS * SUMS
    sums[:] = _ZERO
    for first in range(0, whole, SUMS):
        q, k, v = query[first:], key[first:], vector[first:]
        for lane in range(SUMS):
            sums[lane] += v[lane] * hyperbolic_tangent(q[lane] + k[lane])
    total = fold(sums)
    for a in range(whole, query.shape[0]):
        total += vector[a] * hyperbolic_tangent(query[a] + key[a])
    return total


@formula
def _add(context, share, value):
    for e in range(context.shape[0]):
        context[e] += share * np.float32(value[e])


@kernel
def _end_of(mask):
    """Where the padding at the end begins."""
    end = mask.shape[0]
    while end > 0 and not mask[end - 1]:
        end -= 1
    return end


@kernel
def _attend(values, first, stride, scale, mask, weights, context):
    """Scores, which are in ``weights``, to weights; and the sum of the values by them."""
    top = _LOWEST
    for s in range(weights.shape[0]):
        if mask[s]:
            top = weights[s] if weights[s] > top else top
    total = _ZERO
    for s in range(weights.shape[0]):
        weights[s] = exponential(weights[s] - top) if mask[s] else _ZERO
        total += weights[s]
    context[:] = _ZERO
    for s in range(weights.shape[0]):
        if mask[s]:
            weights[s] /= total
            place = first + s * stride
            _add(context, weights[s] * scale, values[place : place + context.shape[0]])


@operation(DOT_ATTENTION)
def _attend_by_dot(address, first_row, last_row):
    (
        queries, sources, keys, key_strides, key_scales, values, value_strides, value_scales, mask,
        weights, contexts,
    ) = _unpack_dot(address)  # fmt: skip
    for n in range(first_row, last_row):
        b = sources[n]
        end = _end_of(mask[b])
        for s in range(end):
            if mask[b, s]:
                place = b * key_strides[0] + s * key_strides[1]
                key = keys[place : place + queries.shape[1]]
                weights[n, s] = dot(queries[n], key) * key_scales[b, s]
        first, stride, scale = b * value_strides[0], value_strides[1], value_scales[b]
        _attend(values, first, stride, scale, mask[b, :end], weights[n, :end], contexts[n])
        weights[n, end:] = _ZERO
    return np.int64(1)


@kernel
def attend_by_dot(
    queries, sources, keys, key_strides, key_scales, values, value_strides, value_scales, mask,
    weights, contexts, board,
):  # fmt: skip
    """:class:`models.attention.DotAttention`.

    Args:
        queries: ``[N, A]``, projected and divided by the square root of A.
        sources: ``[N]`` int64, each row's.
        keys: ``[X]`` int8.
        key_strides: between two sources and between two positions.
        key_scales: ``[B, S]``.
        values: ``[X]`` int8.
        value_strides: as of the keys.
        value_scales: ``[B]``.
        mask: ``[B, S]`` bool, True at real positions.
        weights: ``[N, S]``, where the weights go.
        contexts: ``[N, E]``, where the context vectors go.
        board: address of where threads are told to help.
    """
    parts = (
        queries, sources, keys, key_strides, key_scales, values, value_strides, value_scales, mask,
        weights, contexts,
    )  # fmt: skip
    rows = queries.shape[0]
    share_out(board, DOT_ATTENTION, _pack_dot(parts), _NANOSECONDS * rows, rows, 1)
    keep(parts)


@operation(ADDITIVE_ATTENTION)
def _attend_additively(address, first_row, last_row):
    (
        queries, sources, vector, keys, key_strides, values, value_strides, value_scales, mask,
        weights, contexts,
    ) = _unpack_additive(address)  # fmt: skip
    sums = np.empty(SUMS, np.float32)
    for n in range(first_row, last_row):
        b = sources[n]
        end = _end_of(mask[b])
        for s in range(end):
            if mask[b, s]:
                place = b * key_strides[0] + s * key_strides[1]
                key = keys[place : place + queries.shape[1]]
                weights[n, s] = _additive(queries[n], key, vector, sums)
        first, stride, scale = b * value_strides[0], value_strides[1], value_scales[b]
        _attend(values, first, stride, scale, mask[b, :end], weights[n, :end], contexts[n])
        weights[n, end:] = _ZERO
    return np.int64(1)


@kernel
def attend_additively(
    queries, sources, vector, keys, key_strides, values, value_strides, value_scales, mask,
    weights, contexts, board,
):  # fmt: skip
    """:class:`models.attention.AdditiveAttention`: see :func:`attend_by_dot`.

    ``vector [A]`` makes a score of what tanh gives; keys are float32, without scales.
    """
    parts = (
        queries, sources, vector, keys, key_strides, values, value_strides, value_scales, mask,
        weights, contexts,
    )  # fmt: skip
    rows = queries.shape[0]
    share_out(board, ADDITIVE_ATTENTION, _pack_additive(parts), _NANOSECONDS * rows, rows, 1)
    keep(parts)
