"""Dropout that draws its masks quickly on a CPU.

PyTorch draws a random number for every element there, which was a tenth of a training step. A
byte decides as well: the probability is rounded to a multiple of 1/256.
"""

import torch
from torch import Tensor
from torch.nn import functional

_BYTES_IN_A_WORD = 8
_LEVELS = 256


def dropout(inputs: Tensor, probability: float, training: bool) -> Tensor:
    """Set elements to zero at random and scale the others up (Srivastava et al. 2014).

    Args:
        inputs: floating point, any shape.
        probability: to drop an element, in [0, 1); on a CPU rounded to a multiple of 1/256.
        training: without it nothing is dropped.

    Returns:
        A tensor like ``inputs``, with the same expectation.
    """
    if inputs.device.type != "cpu" or not training:
        return functional.dropout(inputs, probability, training)
    dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    if not dropped:
        return inputs
    count = inputs.numel()
    words = torch.empty(-(-count // _BYTES_IN_A_WORD), dtype=torch.int64)
    drawn = words.random_(-(2**63), None).view(torch.uint8)[:count].view(inputs.shape)
    kept = (drawn >= dropped).to(inputs.dtype)
    return inputs * kept.mul_(_LEVELS / (_LEVELS - dropped))
