"""The most probable tokens of each row, in two looks at its logits.

Shape legend: ``N`` rows, ``V`` vocabulary size, ``K`` candidates.
"""

import numpy as np

from models.kernels.gates import exponential
from models.kernels.jit import kernel, reduction

_BLOCK = 64
_LOWEST, _ZERO = np.float32(-np.inf), np.float32(0)


@kernel
def _maximum(logits):
    """The highest of ``[V]`` logits; any NaN may be overlooked."""
    tops = np.full(_BLOCK, _LOWEST)
    whole = logits.shape[0] // _BLOCK * _BLOCK
    for first in range(0, whole, _BLOCK):
        for i in range(_BLOCK):
            value = logits[first + i]
            tops[i] = value if value > tops[i] else tops[i]
    top = _LOWEST
    for i in range(_BLOCK):
        top = tops[i] if tops[i] > top else top
    for v in range(whole, logits.shape[0]):
        top = logits[v] if logits[v] > top else top
    return top


@reduction
def _mass(logits, top):
    total = _ZERO
    for v in range(logits.shape[0]):
        total += exponential(logits[v] - top)
    return total


@kernel
def log_normalisers(logits, tops, sums):
    """Of each row ``[N, V]`` the highest logit and the logarithm of the sum of e^(logit - it)."""
    for n in range(logits.shape[0]):
        tops[n] = _maximum(logits[n])
        sums[n] = np.log(_mass(logits[n], tops[n]))
