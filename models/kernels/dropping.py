"""Dropout whose random numbers are made where they are used, and made again for the gradient.

SplitMix64 (Steele, Lea and Flood 2014): word ``w`` of a stream is a hash of ``seed + (w + 1) *
gamma``, so that no state goes from one to the next. Each of its eight bytes decides on a number.

Shape legend: ``C`` numbers.
"""

import numpy as np

from models.kernels.jit import kernel

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
_BYTES = 8
_WORDS = 512
BLOCK = _WORDS * _BYTES
"""Numbers whose bytes are made together."""


@kernel
def drop(inputs, seed, block, dropped, scale, outputs):
    """Set numbers to zero whose byte is below ``dropped``, and scale the others.

    Args:
        inputs: ``[C]`` float32.
        seed: uint64.
        block: how many times :data:`BLOCK` numbers of the stream stand before these.
        dropped: uint8.
        scale: float32.
        outputs: ``[C]`` float32.
    """
    words = np.empty(_WORDS, np.uint64)
    drawn = words.view(np.uint8)
    zero = np.float32(0)
    for first in range(0, inputs.shape[0], BLOCK):
        before = np.uint64((block + first // BLOCK) * _WORDS + 1)
        for w in range(_WORDS):
            mixed = seed + (before + np.uint64(w)) * _GAMMA
            mixed = (mixed ^ (mixed >> _30)) * _FIRST
            mixed = (mixed ^ (mixed >> _27)) * _SECOND
            words[w] = mixed ^ (mixed >> _31)
        part, out = inputs[first : first + BLOCK], outputs[first : first + BLOCK]
        for i in range(part.shape[0]):
            out[i] = part[i] * scale if drawn[i] >= dropped else zero
