"""Log-probabilities of given tokens through a wide output layer, in few passes of memory.

Shape legend: ``M`` tokens, ``F`` size of a feature, ``V`` vocabulary size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.kernels import loss as kernels
from models.packed_gru import ROWS_OF_A_SHAPE
from models.threads import share_rows
from training.smoothing import computes_bfloat16


class _TokenLogprobs(torch.autograd.Function):
    """Of an output layer in bfloat16. The gradient takes the place of the logits."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
    ) -> Tensor:
        inputs, narrow = features.to(torch.bfloat16), weight.to(torch.bfloat16)
        logits = inputs.mm(narrow.t())
        logprobs = torch.empty(len(targets))
        log_masses = torch.empty_like(logprobs)
        real, added = logits[: len(targets)].view(torch.int16), bias.detach().numpy()

        def work(given: Tensor, tokens: Tensor, own: Tensor, masses: Tensor) -> None:
            kernels.token_logprobs(
                given.numpy(), added, tokens.numpy(), own.numpy(), masses.numpy()
            )

        share_rows(work, (real, targets, logprobs, log_masses))
        ctx.save_for_backward(inputs, narrow, logits, bias, targets, log_masses)
        ctx.dtype = features.dtype
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, gradient, bias, targets, log_masses = ctx.saved_tensors
        real, added = gradient[: len(targets)].view(torch.int16), bias.detach().numpy()

        def work(given: Tensor, tokens: Tensor, masses: Tensor, weights: Tensor) -> None:
            kernels.logprobs_gradient(
                given.numpy(), added, tokens.numpy(), masses.numpy(), weights.numpy()
            )

        share_rows(work, (real, targets, log_masses, grad.contiguous()))
        gradient[len(targets) :] = 0
        ones = gradient.new_ones(1, len(gradient))
        return (
            gradient.mm(weight).to(ctx.dtype),
            gradient.t().mm(inputs).float(),
            ones.mm(gradient)[0].float(),
            None,
        )


def pad_rows(features: Tensor) -> Tensor:
    """Zeros behind ``[M, F]``, up to a multiple of so many rows that shapes come again.

    oneDNN compiles a product for each number of rows that it meets, which takes milliseconds.
    """
    return functional.pad(features, (0, 0, 0, -len(features) % ROWS_OF_A_SHAPE))


def token_logprobs(features: Tensor, layer: nn.Linear, targets: Tensor) -> Tensor:
    """Log-probabilities of tokens by what an output layer makes of features.

    Args:
        features: ``[M, F]``; rows behind these have no token.
        layer: from F to V.
        targets: ``[M]`` int64.

    Returns:
        ``[M]`` float32 (float64 of such features), whose gradient may be asked for once.
    """
    if computes_bfloat16(features.device):
        with torch.autocast("cpu", enabled=False):
            logprobs: Tensor = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
                features, layer.weight, layer.bias, targets
            )
        return logprobs
    logits = layer(features)[: len(targets)]
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    every = torch.log_softmax(logits, dim=-1, dtype=wide)
    return every.gather(-1, targets[:, None])[:, 0]
