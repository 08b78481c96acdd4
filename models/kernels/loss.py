"""Losses of tokens and their gradients, of logits in bfloat16, row by row.

NumPy knows no bfloat16: numbers are given by their 16 bits, the upper half of those of a float32.

Shape legend: ``M`` tokens, ``V`` vocabulary size.
"""

import numpy as np

from models.kernels.blocks import bits_of, number_of
from models.kernels.gates import exponential
from models.kernels.jit import kernel, reduction

_LANES = 64
_LOWEST, _ZERO = np.float32(-np.inf), np.float32(0)
_HALF, _ONE, _BITS = np.int32(0x7FFF), np.int32(1), np.int32(16)


@kernel
def _widen(row, bias, wide):
    """The numbers of ``[V]`` bits as float32, with what is added to each; return the highest."""
    tops = np.full(_LANES, _LOWEST, np.float32)
    whole = row.shape[0] // _LANES * _LANES
    for begin in range(0, whole, _LANES):
        for lane in range(_LANES):
            number = number_of(np.int32(np.int32(row[begin + lane]) << _BITS)) + bias[begin + lane]
            wide[begin + lane] = number
            tops[lane] = number if number > tops[lane] else tops[lane]
    top = tops.max()
    for v in range(whole, row.shape[0]):
        wide[v] = number_of(np.int32(np.int32(row[v]) << _BITS)) + bias[v]
        top = max(top, wide[v])
    return top


@reduction
def _exponentials(wide, top):
    """Replace numbers by e^(number - top); return their sum and that of the numbers."""
    mass, total = _ZERO, _ZERO
    for v in range(wide.shape[0]):
        number = wide[v]
        power = exponential(number - top)
        wide[v] = power
        mass += power
        total += number
    return mass, total


@kernel
def _narrow(wide, scale, share, gradient):
    """``number * scale - share`` as bits of bfloat16, rounded to even."""
    for v in range(wide.shape[0]):
        bits = bits_of(wide[v] * scale - share)
        rounded = np.int32(bits + _HALF + ((bits >> _BITS) & _ONE))
        gradient[v] = np.int16(rounded >> _BITS)


@kernel
def smoothed_gradient(logits, bias, targets, smoothing, gradient):
    """The loss of ``M`` tokens, and its gradient.

    Args:
        logits: ``[M, V]`` int16, bits of bfloat16.
        bias: ``[V]`` float32, to be added to the logits of each token.
        targets: ``[M]`` int64.
        smoothing: share of the probability that is spread over the vocabulary.
        gradient: ``[M, V]`` int16, where the bits of the gradient go.

    Returns:
        The smoothed loss and the plain negative log-likelihood in nats, summed in float64.
    """
    wide = np.empty(logits.shape[1], np.float32)
    share = np.float32(smoothing / logits.shape[1])
    objective, likelihood = 0.0, 0.0
    for m in range(logits.shape[0]):
        top = _widen(logits[m], bias, wide)
        chosen = np.float64(wide[targets[m]])
        mass, total = _exponentials(wide, top)
        log_mass = top + np.log(np.float64(mass))
        scale = np.float32(1 / mass)
        _narrow(wide, scale, share, gradient[m])
        wanted = wide[targets[m] : targets[m] + 1]
        off = share + np.float32(1 - smoothing)
        _narrow(wanted, scale, off, gradient[m, targets[m] : targets[m] + 1])
        likelihood += log_mass - chosen
        even = log_mass - np.float64(total) / logits.shape[1]
        objective += (1 - smoothing) * (log_mass - chosen) + smoothing * even
    return objective, likelihood
