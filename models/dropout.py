"""Dropout that is quick on a CPU.

PyTorch draws a random number for every element there, which was a tenth of a training step. A
byte decides as well: the probability is rounded to a multiple of 1/256.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.kernels.dropping import BLOCK, drop
from models.threads import run_shares

_LEVELS = 256
_WORTH_SHARING = 2**18
"""Elements that take one thread longer than it takes to have another begin."""


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
    seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    outputs: Tensor = _Dropout.apply(inputs, seed % 2**64, dropped)  # type: ignore[no-untyped-call]
    return outputs


class _Dropout(torch.autograd.Function):
    """Keeps no mask: the seed says which elements are dropped."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, seed: int, dropped: int) -> Tensor:
        ctx.seed, ctx.dropped = seed, dropped
        return _drop(inputs, seed, dropped)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _drop(grad, ctx.seed, ctx.dropped), None, None


def _drop(inputs: Tensor, seed: int, dropped: int) -> Tensor:
    """By as many threads as PyTorch takes for an operation."""
    if inputs.dtype == torch.float64:
        ones = torch.ones(inputs.shape, dtype=torch.float32)
        return inputs.detach() * _drop(ones, seed, dropped)
    wide = inputs.detach().float().contiguous()
    outputs = torch.empty_like(wide)
    count, threads = wide.numel(), torch.get_num_threads()
    share = count if count < _WORTH_SHARING else -(-count // threads // BLOCK) * BLOCK
    numbers, target = wide.view(-1).numpy(), outputs.view(-1).numpy()
    scale = np.float32(_LEVELS / (_LEVELS - dropped))

    def work(first: int) -> None:
        own = slice(first, first + share)
        drop(numbers[own], np.uint64(seed), first // BLOCK, np.uint8(dropped), scale, target[own])

    if count:
        run_shares(work, [(first,) for first in range(0, count, share)])
    return outputs.to(inputs.dtype)
