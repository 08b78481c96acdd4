"""Layers of recurrent cells over packed positions, from the gate equations of :mod:`models.cells`.

A layer's kernel runs position by position; at position t the first ``active[t]`` rows go on,
and the others have reached their end (see :class:`models.packing.PackedLayout`).

Shape legend: ``N`` rows, ``T`` positions, ``P`` packed positions, ``H`` hidden size, ``D``
directions, ``G`` gates.
"""

import numpy as np
from numba import types

from models.kernels.blocks import ROUNDING, ROUNDING_BITS, bits_of, number_of
from models.kernels.instructions import Parcel, keep
from models.kernels.jit import formula, kernel
from models.kernels.products import (
    WEIGHT,
    copy_row,
    make_values,
    multiply_all,
    round_row,
    round_rows,
)
from models.kernels.team import (
    GRU_GATES,
    GRU_STEP,
    LSTM_GATES,
    LSTM_STEP,
    call,
    operation,
    share_out,
)

_ROWS = types.float32[:, ::1]
_gru, _lstm = Parcel(types.UniTuple(_ROWS, 4)), Parcel(types.UniTuple(_ROWS, 5))
_pack_gru, _unpack_gru = _gru.pack, _gru.unpack
_pack_lstm, _unpack_lstm = _lstm.pack, _lstm.unpack
_PAIR = types.UniTuple(_ROWS, 2)
_gru_step = Parcel(types.Tuple((_ROWS, _ROWS, WEIGHT, _ROWS)))
_lstm_step = Parcel(types.Tuple((_ROWS, _PAIR, WEIGHT, _PAIR)))
_pack_gru_step, _unpack_gru_step = _gru_step.pack, _gru_step.unpack
_pack_lstm_step, _unpack_lstm_step = _lstm_step.pack, _lstm_step.unpack
_ONE, _TWO = np.float32(1), np.float32(2)
_LOWEST, _HIGHEST = np.float32(-87.3), np.float32(88.3)
"""Where e^x leaves the normal numbers of float32."""
_LOG2_E = np.float32(1.44269504)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)
_C2, _C3, _C4 = np.float32(0.5), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_C5, _C6 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3)
_C7 = np.float32(1.9875691500e-4)


@formula
def exponential(x):
    """e^x of a float32, to 2 units in the last place; NaN stays NaN.

    A polynomial over [-ln 2 / 2, ln 2 / 2] times a power of two: Cephes (Moshier 1989), expf.
    """
    x = _HIGHEST if x > _HIGHEST else x
    x = _LOWEST if x < _LOWEST else x
    rounded = x * _LOG2_E + ROUNDING
    power = rounded - ROUNDING
    rest = x - power * _LN_2_HIGH - power * _LN_2_LOW
    sum_ = ((((_C7 * rest + _C6) * rest + _C5) * rest + _C4) * rest + _C3) * rest + _C2
    sum_ = sum_ * rest * rest + rest + _ONE
    exponent = np.int32(bits_of(rounded) - ROUNDING_BITS) + _BIAS
    return sum_ * number_of(np.int32(np.int32(exponent) << _MANTISSA_BITS))


@formula
def sigmoid(x):
    """1 / (1 + e^-x) of a float32."""
    return _ONE / (_ONE + exponential(-x))


@formula
def hyperbolic_tangent(x):
    """2 sigmoid(2x) - 1, to an absolute 2^-23."""
    return _TWO * sigmoid(_TWO * x) - _ONE


@kernel
def apply_tanh(inputs, outputs):
    """The hyperbolic tangent of each of ``[M, I]`` numbers.

    Row by row: what a loop leaves over is computed in another way than what it takes together,
    and must not depend on other rows.
    """
    for m in range(inputs.shape[0]):
        row, out = inputs[m], outputs[m]
        for i in range(row.shape[0]):
            out[i] = hyperbolic_tangent(row[i])


@kernel
def _recur(hidden, column, size, rows, weight, space, recurrent):
    """The hidden states' share of the gates, of the first rows: into ``recurrent``."""
    values, scales = space
    for n in range(rows):
        scales[n] = round_row(hidden[n][column : column + size], values[n, :size])
    multiply_all(values, scales, weight, recurrent[:rows])


@kernel
def _scratch(rows, weight):
    """Space for rounded rows and their scales."""
    return make_values(rows, weight), np.empty(rows, np.float32)


@kernel
def run_rnn(projected, order, active, hidden, weight, outputs, column):
    """Run :class:`models.cells.RNNCell`.

    Args:
        projected: ``[P, H]``, the inputs' share of the gates.
        order: ``[P]`` int64, the row of ``outputs`` that belongs to each packed place.
        active: ``[T]`` int64, rows that have this position.
        hidden: ``[N, D * H]``, the states before, of every direction; the states after each row's
            end are written there.
        weight: of the hidden states.
        outputs: ``[P, D * H]``, where the hidden states go.
        column: where this direction begins in both.
    """
    size = projected.shape[1]
    space = _scratch(hidden.shape[0], weight)
    recurrent = np.empty((hidden.shape[0], size), np.float32)
    place = 0
    for rows in active:
        _recur(hidden, column, size, rows, weight, space, recurrent)
        for n in range(rows):
            x, u, out = projected[place + n], recurrent[n], outputs[order[place + n]]
            after = out[column : column + size]
            for j in range(size):
                after[j] = hyperbolic_tangent(x[j] + u[j])
            copy_row(after, hidden[n][column : column + size])
        place += rows


@kernel
def run_gru(projected, order, active, hidden, weight, outputs, column):
    """Run :class:`models.cells.GRUCell`: see :func:`run_rnn`, with ``projected [P, 3 H]``."""
    size = projected.shape[1] // 3
    space = _scratch(hidden.shape[0], weight)
    recurrent = np.empty((hidden.shape[0], 3 * size), np.float32)
    place = 0
    for rows in active:
        _recur(hidden, column, size, rows, weight, space, recurrent)
        for n in range(rows):
            before = hidden[n][column : column + size]
            after = outputs[order[place + n]][column : column + size]
            _apply_gru(projected[place + n], recurrent[n], before, after)
            copy_row(after, before)
        place += rows


@kernel
def _apply_gru(x, u, before, after):
    """The gates of one row, of the inputs' share and the hidden state's."""
    size = before.shape[0]
    xr, xz, xn = x[:size], x[size : 2 * size], x[2 * size :]
    ur, uz, un = u[:size], u[size : 2 * size], u[2 * size :]
    for j in range(size):
        candidate = hyperbolic_tangent(xn[j] + sigmoid(xr[j] + ur[j]) * un[j])
        after[j] = candidate + sigmoid(xz[j] + uz[j]) * (before[j] - candidate)


@operation(GRU_GATES)
def _apply_gru_to(address, first, last):
    projected, recurrent, before, after = _unpack_gru(address)
    for n in range(first, last):
        _apply_gru(projected[n], recurrent[n], before[n], after[n])
    return np.int64(1)


@operation(GRU_STEP)
def _step_gru(address, _first, _last):
    projected, before, weight, after = _unpack_gru_step(address)
    rows, size = before.shape
    recurrent = np.empty((rows, 3 * size), np.float32)
    values, scales = _scratch(rows, weight)
    round_rows(before, values, scales)
    multiply_all(values, scales, weight, recurrent)
    parts = (projected, recurrent, before, after)
    share_out(weight.board, GRU_GATES, _pack_gru(parts), 2 * before.size, rows, 1)
    keep(parts)
    return np.int64(1)


@kernel
def step_gru(projected, before, weight, after):
    """One position of :func:`run_gru`, from hidden states ``[N, H]`` to other ones."""
    parts = (projected, before, weight, after)
    call(weight.board, GRU_STEP, _pack_gru_step(parts))
    keep(parts)


@kernel
def run_textbook_gru(
    projected, order, active, hidden, gate_weight, candidate_weight, outputs, column
):
    """Run :class:`models.cells.TextbookGRUCell`: see :func:`run_gru`."""
    size = projected.shape[1] // 3
    space = _scratch(hidden.shape[0], gate_weight)
    recurrent = np.empty((hidden.shape[0], 2 * size), np.float32)
    kept = np.empty((hidden.shape[0], size), np.float32)
    candidates = np.empty_like(kept)
    place = 0
    for rows in active:
        _recur(hidden, column, size, rows, gate_weight, space, recurrent)
        for n in range(rows):
            x, h, u = projected[place + n], hidden[n][column : column + size], recurrent[n]
            for j in range(size):
                kept[n, j] = sigmoid(x[j] + u[j]) * h[j]
        _recur(kept, 0, size, rows, candidate_weight, space, candidates)
        for n in range(rows):
            x, h, u = projected[place + n], hidden[n][column : column + size], recurrent[n]
            after = outputs[order[place + n]][column : column + size]
            xz, xn, uz = x[size : 2 * size], x[2 * size :], u[size:]
            for j in range(size):
                candidate = hyperbolic_tangent(xn[j] + candidates[n, j])
                after[j] = candidate + sigmoid(xz[j] + uz[j]) * (h[j] - candidate)
            copy_row(after, h)
        place += rows


@kernel
def run_lstm(projected, order, active, hidden, memory, weight, outputs, column):
    """Run :class:`models.cells.LSTMCell`: see :func:`run_rnn`, with ``projected [P, 4 H]``.

    ``memory [N, D * H]`` is changed in place like the hidden states.
    """
    size = projected.shape[1] // 4
    space = _scratch(hidden.shape[0], weight)
    recurrent = np.empty((hidden.shape[0], 4 * size), np.float32)
    before = np.empty(size, np.float32)  # apart: loops over arrays that overlap are slow
    place = 0
    for rows in active:
        _recur(hidden, column, size, rows, weight, space, recurrent)
        for n in range(rows):
            kept = memory[n][column : column + size]
            copy_row(kept, before)
            after = outputs[order[place + n]][column : column + size]
            _apply_lstm(projected[place + n], recurrent[n], before, kept, after)
            copy_row(after, hidden[n][column : column + size])
        place += rows


@kernel
def _apply_lstm(x, u, before, memory, hidden):
    """The gates of one row, of the inputs' share and the hidden state's."""
    size = before.shape[0]
    xi, xf, xg, xo = x[:size], x[size : 2 * size], x[2 * size : 3 * size], x[3 * size :]
    ui, uf, ug, uo = u[:size], u[size : 2 * size], u[2 * size : 3 * size], u[3 * size :]
    for j in range(size):
        kept = sigmoid(xf[j] + uf[j]) * before[j]
        memory[j] = kept + sigmoid(xi[j] + ui[j]) * hyperbolic_tangent(xg[j] + ug[j])
        hidden[j] = sigmoid(xo[j] + uo[j]) * hyperbolic_tangent(memory[j])


@operation(LSTM_GATES)
def _apply_lstm_to(address, first, last):
    projected, recurrent, before, memory, hidden = _unpack_lstm(address)
    for n in range(first, last):
        _apply_lstm(projected[n], recurrent[n], before[n], memory[n], hidden[n])
    return np.int64(1)


@operation(LSTM_STEP)
def _step_lstm(address, _first, _last):
    projected, (hidden, memory), weight, after = _unpack_lstm_step(address)
    rows, size = hidden.shape
    recurrent = np.empty((rows, 4 * size), np.float32)
    values, scales = _scratch(rows, weight)
    round_rows(hidden, values, scales)
    multiply_all(values, scales, weight, recurrent)
    parts = (projected, recurrent, memory, after[1], after[0])
    share_out(weight.board, LSTM_GATES, _pack_lstm(parts), 3 * hidden.size, rows, 1)
    keep(parts)
    return np.int64(1)


@kernel
def step_lstm(projected, before, weight, after):
    """One position of :func:`run_lstm`, from hidden states and memories ``[N, H]`` to others."""
    parts = (projected, before, weight, after)
    call(weight.board, LSTM_STEP, _pack_lstm_step(parts))
    keep(parts)
