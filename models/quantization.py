"""Serving in int8 on the CPU: fast, and the same bits whoever shares the batch.

A float32 matrix product adds in an order that depends on how many rows it has, so that a row's
result changes with its batch-mates. Here every product multiplies integers, whose sums are exact
in any order, and every row has a scale of its own. What remains are operations on single
numbers and reductions within a row, of which only those are used that give the same bits for a
row whatever stands beside it.

Shape legend: ``M`` rows, ``I`` inputs, ``O`` outputs, ``N`` sources, ``T`` queries of each,
``S`` source positions, ``A`` attention size, ``E`` size of an encoder output.
"""

import functools
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.attention import AdditiveAttention, Attention, DotAttention
from models.recurrent import RecurrentStack
from models.state import AttentionMemory

LEVELS = 127
"""Values are stored as integers from -127 to 127."""
MAX_EXACT_TERMS = 2**24 // LEVELS**2
"""float32 holds every integer up to 2^24: so many products of two values may be added in it."""
_TINY = 1e-30
_VECTORS = 32
_ONE_THREADS_SHARE = 2**15
"""Numbers that PyTorch does not divide among threads (its grain size)."""
_WEIGHT_UNITS = 2.0**16
_MASS_UNITS = 2.0**20


@functools.cache
def has_exact_int8_kernel() -> bool:
    """Whether this processor multiplies int8 matrices without saturating on the way.

    Processors with VNNI (or the like) do; below that, pairs of products are added in 16 bits.
    """
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-LEVELS, LEVELS + 1, (33, 1031), generator=generator, dtype=torch.int8)
    right = torch.randint(-LEVELS, LEVELS + 1, (70, 1031), generator=generator, dtype=torch.int8)
    left[0], left[1], right[0], right[1] = LEVELS, -LEVELS, LEVELS, -LEVELS
    try:
        product = torch._int_mm(left, right.t())
    except RuntimeError:
        return False
    return torch.equal(product.long(), left.long() @ right.long().t())


@functools.cache
def has_fast_int8_kernel() -> bool:
    """Whether this processor multiplies int8 matrices faster than float32 ones.

    Without VNNI (or the like) PyTorch multiplies them in a plain loop: exact, and a hundred times
    slower than float32. Asked of the clock, since which processors are served well is PyTorch's
    own affair and changes with its versions. No answer depends on it: both ways are exact.
    """
    left = torch.ones(32, 256, dtype=torch.int8)
    right = torch.ones(1024, 256, dtype=torch.int8)
    floats = left.float(), right.float()
    return _best_seconds(lambda: torch._int_mm(left, right.t())) < _best_seconds(
        lambda: floats[0] @ floats[1].t()
    )


def _best_seconds(work: Callable[[], Tensor]) -> float:
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


@functools.cache
def uses_int8_kernel() -> bool:
    """Whether products are computed from int8: else from float32 that holds the same integers."""
    return has_exact_int8_kernel() and has_fast_int8_kernel()


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to integers with a scale of its own.

    Args:
        rows: ``[..., I]`` float32.

    Returns:
        Integer values as float32 ``[..., I]``, and the scales ``[..., 1]`` that multiply them.
    """
    scales = rows.abs().amax(-1, keepdim=True).clamp_(min=_TINY).mul_(1 / LEVELS)
    return torch.div(rows, scales).round_(), scales


def _padded_rows(count: int) -> int:
    """Rows that a product of ``count`` rows is computed with.

    Each new shape costs the kernel library a plan of a millisecond: a few shapes are enough.
    """
    for limit, step in ((8, 1), (128, 8), (512, 32)):
        if count <= limit:
            return -(-count // step) * step
    return -(-count // 128) * 128


def multiply_integers(values: Tensor, weights: Tensor) -> Tensor:
    """Products of integers, exact whatever stands beside a row.

    Args:
        values: ``[G, M, I]`` float32 holding integers, one matrix for each weight.
        weights: ``[G, O, I]``: int8, or float32 where :func:`uses_int8_kernel` says no.

    Returns:
        ``[G, M, O]`` float32, each the exact sum, rounded once.
    """
    groups, count, size = values.shape
    if weights.is_floating_point():
        if size <= MAX_EXACT_TERMS:
            return _multiply_floats(values, weights)
        lefts, rights = (torch.split(each, MAX_EXACT_TERMS, 2) for each in (values, weights))
        pieces = (_multiply_floats(*pair).double() for pair in zip(lefts, rights, strict=True))
        return functools.reduce(torch.add, pieces).float()
    rows = torch.empty(groups, _padded_rows(count), size, dtype=torch.int8)
    rows[:, :count] = values  # what follows is never looked at
    if groups == 1:
        return torch._int_mm(rows[0], weights[0].t())[None, :count].float()
    products = torch.empty(groups, rows.shape[1], weights.shape[1], dtype=torch.int32)
    for group in range(groups):
        torch._int_mm(rows[group], weights[group].t(), out=products[group])
    return products[:, :count].float()


def _multiply_floats(values: Tensor, weights: Tensor) -> Tensor:
    """``[G, M, I]`` by ``[G, O, I]``; one group without bmm, which is slower for a single row."""
    if len(weights) == 1:
        return (values[0] @ weights[0].t())[None]
    return torch.bmm(values, weights.transpose(1, 2))


def _store_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``[O, I]`` as :func:`multiply_integers` takes it, and the scale of each output ``[O]``."""
    values, scales = quantize_rows(weight.detach().float())
    # torch 2.13 computes products of a single term wrong.
    stored = values.to(torch.int8) if uses_int8_kernel() and weight.shape[1] > 1 else values
    return stored, scales[:, 0].contiguous()


class Int8Linear(nn.Module):
    """A linear layer that multiplies int8 by int8, with a scale for each row and each output.

    Args:
        weight: ``[O, I]``.
        bias: ``[O]``, or None.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        stored, scales = _store_weight(weight)
        bias = torch.zeros(len(weight)) if bias is None else bias.detach().float().clone()
        self.register_buffer("weight", stored)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)
        # Found faster than a buffer, which is looked up in a dictionary of its own.
        self._fast = (stored, scales, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs ``[..., I]`` float32 to ``[..., O]`` float32."""
        weight, scales, bias = self._fast
        rows = inputs if inputs.dim() == 2 else inputs.reshape(-1, inputs.shape[-1])
        values, row_scales = quantize_rows(rows)
        products = multiply_integers(values[None], weight[None])[0].mul_(row_scales)
        outputs = torch.addcmul(bias, products, scales, out=products)
        return outputs if inputs.dim() == 2 else outputs.view(*inputs.shape[:-1], -1)


class Int8LinearPair(nn.Module):
    """Two :class:`Int8Linear` side by side, over ``[2, M, I]``.

    Args:
        one: weight ``[O, I]`` and bias ``[O]`` of the first.
        other: of the second.
    """

    def __init__(self, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        stored = [_store_weight(weight) for weight, _ in (one, other)]
        self._weights = torch.stack([weight for weight, _ in stored])
        self._scales = torch.stack([scales for _, scales in stored])[:, None]
        self._bias = torch.stack([bias.detach().float() for _, bias in (one, other)])[:, None]

    def forward(self, inputs: Tensor) -> Tensor:
        """``[2, M, I]`` to ``[2, M, O]``."""
        values, row_scales = quantize_rows(inputs)
        products = multiply_integers(values, self._weights).mul_(row_scales)
        return torch.addcmul(self._bias, products, self._scales, out=products)


class StableSigmoid(nn.Module):
    """The sigmoid, the same bits wherever in a tensor a number stands."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Any shape."""
        return _stable_sigmoid(inputs)


class StableTanh(nn.Module):
    """2 sigmoid(2x) - 1, to an absolute 2^-23: several times as fast as ``torch.tanh``."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Any shape."""
        return _stable_sigmoid(inputs * 2).mul_(2).sub_(1)


def _stable_sigmoid(inputs: Tensor) -> Tensor:
    """Sigmoid of any shape, into a tensor of its own.

    ``torch.sigmoid`` computes 32 numbers at a time, and what is left over at the end of a
    thread's share by another formula. Where rows leave nothing over, and each call is one
    thread's, it is four times as fast as 1 / (1 + e^-x), whose operations round alike everywhere.
    """
    if inputs.shape[-1] % _VECTORS:
        return inputs.neg().exp_().add_(1).reciprocal_()
    if inputs.numel() <= _ONE_THREADS_SHARE or torch.get_num_threads() == 1:
        return torch.sigmoid(inputs)
    flat = inputs.contiguous().view(-1)
    outputs = torch.empty_like(flat)
    pieces = (torch.split(each, _ONE_THREADS_SHARE) for each in (flat, outputs))
    for piece, result in zip(*pieces, strict=True):
        torch.sigmoid(piece, out=result)
    return outputs.view(inputs.shape)


class IntegerAttention(Attention):
    """Attention whose sums over the source are sums of integers.

    Encoder outputs are stored as integers with one scale for each source, and the weights are
    rounded to multiples of 2^-16.

    Args:
        attention: whose projections it takes over.
    """

    def __init__(self, attention: Attention) -> None:
        nn.Module.__init__(self)
        self.query_projection = attention.query_projection
        self.key_projection = attention.key_projection

    def memory(self, values: Tensor, mask: Tensor) -> AttentionMemory:
        """See :meth:`Attention.memory`."""
        stored, scales = quantize_rows(values.flatten(1))
        keys, key_scales = self.store_keys(self.key_projection(values))
        return AttentionMemory(keys, stored.view_as(values), mask, key_scales, scales[:, 0])

    def store_keys(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Projected keys ``[B, S, A]`` as they are kept, and their scales ``[B, S]``."""
        return keys, keys.new_ones(keys.shape[:2])

    def weigh(self, queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """See :meth:`Attention.weigh`."""
        assert memory.value_scales is not None
        scores = self.scores(queries, memory).masked_fill(~memory.mask[:, None], float("-inf"))
        masses = (scores - scores.amax(-1, keepdim=True)).exp_().mul_(_MASS_UNITS).round_()
        # A sum of integers in float64 is exact up to 2^53.
        weights = masses.div_(masses.sum(-1, keepdim=True, dtype=torch.float64).float())
        # Some 2^16 units times 127 stay below 2^24, which float32 adds exactly in any order.
        context = torch.bmm((weights * _WEIGHT_UNITS).round_(), memory.values)
        return context.mul_(memory.value_scales[:, None, None] / _WEIGHT_UNITS), weights


class IntegerAdditiveAttention(IntegerAttention):
    """:class:`AdditiveAttention`, its score an :class:`Int8Linear` too."""

    def __init__(self, attention: AdditiveAttention) -> None:
        super().__init__(attention)
        self.score, self.tanh = attention.score, attention.tanh

    def scores(self, queries: Tensor, memory: AttentionMemory) -> Tensor:
        """See :meth:`Attention.scores`."""
        scores: Tensor = self.score(self.tanh(queries[:, :, None] + memory.keys[:, None]))
        return scores.squeeze(-1)


class IntegerDotAttention(IntegerAttention):
    """:class:`DotAttention` over keys that are stored as integers, a scale for each position."""

    def store_keys(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`IntegerAttention.store_keys`."""
        stored, scales = quantize_rows(keys)
        return stored, scales[..., 0]

    def scores(self, queries: Tensor, memory: AttentionMemory) -> Tensor:
        """See :meth:`Attention.scores`."""
        assert memory.key_scales is not None
        values, scales = quantize_rows(queries)
        size = values.shape[-1]
        keys = memory.keys.transpose(1, 2)
        pieces = range(0, size, MAX_EXACT_TERMS)
        products = [
            torch.bmm(
                values[..., first : first + MAX_EXACT_TERMS],
                keys[:, first : first + MAX_EXACT_TERMS],
            )
            for first in pieces
        ]
        total = products[0] if len(products) == 1 else torch.stack(products).sum(0)
        return total * (scales * (memory.key_scales[:, None] / math.sqrt(size)))


def quantize(model: nn.Module) -> None:
    """Have a model compute in int8 from now on, in place. It can no longer be trained or saved.

    Args:
        model: in float32, on the CPU.
    """
    for name, child in list(model.named_children()):
        quantize(child)
        if isinstance(child, nn.Linear):
            setattr(model, name, Int8Linear(child.weight, child.bias))
        elif isinstance(child, nn.Sigmoid):
            setattr(model, name, StableSigmoid())
        elif isinstance(child, nn.Tanh):
            setattr(model, name, StableTanh())
        elif isinstance(child, AdditiveAttention):
            setattr(model, name, IntegerAdditiveAttention(child))
        elif isinstance(child, DotAttention):
            setattr(model, name, IntegerDotAttention(child))
    if isinstance(model, RecurrentStack):
        model.replace_products(Int8Linear, Int8LinearPair)
