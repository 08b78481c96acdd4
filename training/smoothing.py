"""Cross-entropy with label smoothing, and the consistency of two passes, in few passes of memory.

Shape legend: ``M`` target tokens, ``F`` size of a feature, ``V`` vocabulary size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.kernels.loss import smoothed_gradient
from models.packed_gru import ROWS_OF_A_SHAPE
from models.threads import share_rows

CHUNK_ROWS = 32
"""Tokens whose probabilities are computed at once: few enough to stay in a processor's cache."""
GPU_CHUNK_ROWS = 4096
"""The same on a GPU, where starting a kernel costs more than most of them compute."""


class _SmoothedLoss(torch.autograd.Function):
    """The gradient is made of the probabilities while they are in the cache."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, smoothing: float, consistency: float
    ) -> tuple[Tensor, Tensor]:
        logits = logits.contiguous()
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        objective = torch.zeros((), dtype=wide, device=logits.device)
        likelihood = torch.zeros_like(objective)
        gradient = torch.empty_like(logits)
        passes = 2 if consistency else 1
        real = passes * len(targets)
        gradient[real:] = 0
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(likelihood)
        by_pass = (
            logits[:real].view(passes, -1, logits.shape[1]),
            gradient[:real].view(passes, -1, logits.shape[1]),
        )
        chunk = CHUNK_ROWS if logits.device.type == "cpu" else GPU_CHUNK_ROWS
        for rows, wanted, given in zip(
            *(torch.split(tensor, chunk, dim=1) for tensor in by_pass),
            torch.split(targets, chunk),
            strict=True,
        ):
            logprobs = torch.log_softmax(rows, dim=-1, dtype=wide)
            index = given.expand(passes, -1)[..., None]
            chosen = -logprobs.gather(-1, index).sum()
            likelihood += chosen
            objective += (1 - smoothing) * chosen
            probs = logprobs.exp()
            if consistency:
                objective += _add_divergence(logprobs, probs, consistency)
            # d objective / d logits = softmax - (what the target distribution gives each token)
            if smoothing:
                share = smoothing / logits.shape[1]
                objective -= share * logprobs.sum()
                probs -= share
            probs.scatter_add_(-1, index, torch.full_like(index, smoothing - 1, dtype=wide))
            wanted.copy_(probs)
        return objective, likelihood

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_objective: Tensor, _grad_likelihood: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grad_objective), None, None, None


class _OutputLoss(torch.autograd.Function):
    """An output layer in bfloat16 and the loss of its logits.

    Their bias is added, and their gradient scaled, where there are fewer numbers than logits.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        inputs, narrow = features.to(torch.bfloat16), weight.to(torch.bfloat16)
        logits = inputs.mm(narrow.t())
        gradient = torch.empty_like(logits)
        real = len(targets)
        gradient[real:] = 0
        sums = _by_kernel(logits[:real], bias, targets, smoothing, gradient[:real])
        ctx.save_for_backward(inputs, narrow, gradient)
        ctx.dtype = features.dtype
        objective, likelihood = torch.tensor(sums, dtype=torch.float32)
        ctx.mark_non_differentiable(likelihood)
        return objective, likelihood

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_objective: Tensor, _grad_likelihood: Tensor
    ) -> tuple[Tensor | None, ...]:
        inputs, weight, gradient = ctx.saved_tensors
        ones = gradient.new_ones(1, len(gradient))
        products = (
            gradient.mm(weight),
            gradient.t().mm(inputs),
            ones.mm(gradient)[0],
        )
        features, *others = (product.float().mul_(grad_objective) for product in products)
        return features.to(ctx.dtype), *others, None, None


def _by_kernel(
    logits: Tensor, bias: Tensor, targets: Tensor, smoothing: float, gradient: Tensor
) -> tuple[float, float]:
    """Both sums."""
    added = bias.detach().numpy()

    def work(tokens: Tensor, given: Tensor, wanted: Tensor) -> tuple[float, float]:
        objective, likelihood = smoothed_gradient(
            given.numpy(), added, tokens.numpy(), smoothing, wanted.numpy()
        )
        return float(objective), float(likelihood)

    parts = (targets, logits.view(torch.int16), gradient.view(torch.int16))
    objectives, likelihoods = zip(*share_rows(work, parts), strict=True)
    return sum(objectives), sum(likelihoods)


def _add_divergence(logprobs: Tensor, probs: Tensor, weight: float) -> Tensor:
    """Weigh how far two passes' distributions p and q are apart, and add its gradient.

    Args:
        logprobs: ``[2, M, V]``.
        probs: their exponentials; the gradient with respect to the logits is added in place.
        weight: of the mean of KL(p || q) and KL(q || p).

    Returns:
        The weighted divergence, summed over the tokens.
    """
    half = weight / 2
    ratio = logprobs[0] - logprobs[1]
    forward = (probs[0] * ratio).sum(-1, keepdim=True)
    backward = -(probs[1] * ratio).sum(-1, keepdim=True)
    apart = (probs[0] - probs[1]).mul_(half)
    probs[0].mul_((ratio - forward).mul_(half).add_(1)).add_(apart)
    probs[1].mul_((ratio + backward).mul_(-half).add_(1)).sub_(apart)
    return half * (forward + backward).sum()


def smoothed_loss(
    logits: Tensor, targets: Tensor, smoothing: float, consistency: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy against a target that keeps 1 - smoothing and spreads the rest evenly.

    Szegedy et al. 2016, section 7. With ``consistency``, the logits are those of two passes over
    the same tokens, which dropout made different, and what sets the two apart is added to the
    loss: R-Drop, Liang et al. 2021, equation 4 (its alpha is ``consistency``; its loss is twice
    this one).

    Args:
        logits: ``[M, V]`` floating point, padded positions already left out; ``[2M, V]``, one
            pass behind the other, with ``consistency``. Rows behind these have no loss.
        targets: ``[M]`` int64.
        smoothing: share that is spread over the vocabulary.
        consistency: weight of the mean of both Kullback-Leibler divergences; 0 is one pass.

    Returns:
        Two float32 sums over the M or 2M rows: the loss, whose gradient may be asked for once,
        and the plain negative log-likelihood in nats, which has none.
    """
    objective, likelihood = _SmoothedLoss.apply(  # type: ignore[no-untyped-call]
        logits, targets, smoothing, consistency
    )
    return objective, likelihood


def computes_bfloat16(device: torch.device) -> bool:
    """Whether autocast has products computed in bfloat16 on a CPU."""
    return (
        device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def smoothed_output_loss(
    features: Tensor, layer: nn.Linear, targets: Tensor, smoothing: float, consistency: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The :func:`smoothed_loss` of what an output layer makes of features ``[M, F]``.

    Where products are computed in bfloat16 on a CPU, in fewer passes of memory.
    """
    if consistency or not computes_bfloat16(features.device):
        return smoothed_loss(layer(features), targets, smoothing, consistency)
    with torch.autocast("cpu", enabled=False):
        objective, likelihood = _OutputLoss.apply(  # type: ignore[no-untyped-call]
            features, layer.weight, layer.bias, targets, smoothing
        )
    return objective, likelihood


def pad_rows(features: Tensor) -> Tensor:
    """Zeros behind ``[M, F]``, up to a multiple of so many rows that shapes come again.

    oneDNN compiles a product for each number of rows that it meets, which takes milliseconds.
    """
    return functional.pad(features, (0, 0, 0, -len(features) % ROWS_OF_A_SHAPE))
