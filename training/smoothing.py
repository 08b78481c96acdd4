"""Cross-entropy with label smoothing, in few passes over the vocabulary.

Shape legend: ``M`` target tokens, ``V`` vocabulary size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SmoothedLoss(torch.autograd.Function):
    """The gradient is made of the softmax while it is at hand, in its own memory."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.log_softmax(logits, dim=-1)
        size = logprobs.shape[1]
        likelihood = -logprobs.gather(1, targets[:, None]).sum()
        objective = likelihood
        if smoothing:
            objective = (1 - smoothing) * likelihood - smoothing / size * logprobs.sum()
        # d objective / d logits = softmax - (what the target distribution gives each token)
        gradient = logprobs.exp_().sub_(smoothing / size)
        share = torch.full_like(gradient[:, :1], smoothing - 1)
        ctx.save_for_backward(gradient.scatter_add_(1, targets[:, None], share))
        ctx.mark_non_differentiable(likelihood)
        return objective.clone(), likelihood

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_objective: Tensor, _grad_likelihood: Tensor
    ) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grad_objective), None, None


def smoothed_loss(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy against a target that keeps 1 - smoothing and spreads the rest evenly.

    Szegedy et al. 2016, section 7.

    Args:
        logits: ``[M, V]`` floating point, padded positions already left out.
        targets: ``[M]`` int64.
        smoothing: share that is spread over the vocabulary.

    Returns:
        Two float32 sums over the M tokens: the smoothed loss, whose gradient may be asked for
        once, and the plain negative log-likelihood in nats, which has none.
    """
    objective, likelihood = _SmoothedLoss.apply(  # type: ignore[no-untyped-call]
        logits if logits.dtype == torch.float64 else logits.float(), targets, smoothing
    )
    return objective, likelihood
