"""Serving in int8 on the CPU: fast, and the same bits whoever shares the batch.

A float32 matrix product adds in an order that depends on how many rows it has, so that a row's
result changes with its batch-mates. Here every product multiplies integers, whose sums are exact
in any order, and every row has a scale of its own. What remains are operations on single
numbers and reductions within a row, of which only those are used that give the same bits for a
row whatever stands beside it.

Shape legend: ``M`` rows, ``I`` inputs, ``O`` outputs, ``N`` sources, ``T`` queries of each,
``S`` source positions, ``A`` attention size, ``E`` size of an encoder output.
"""

import math

import torch
from torch import Tensor, nn

from models.attention import AdditiveAttention, Attention, DotAttention
from models.integer_products import MAX_EXACT_TERMS, IntegerProducts, quantize_rows
from models.recurrent import RecurrentStack
from models.state import AttentionMemory

_VECTORS = 32
_ONE_THREADS_SHARE = 2**15
"""Numbers that PyTorch does not divide among threads (its grain size)."""
_WEIGHT_UNITS = 2.0**16
_MASS_UNITS = 2.0**20


class Int8Linear(nn.Module):
    """A linear layer that multiplies int8 by int8, with a scale for each row and each output.

    Args:
        weight: ``[O, I]``.
        bias: ``[O]``, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._products = IntegerProducts([(weight, bias)])
        self.bias = self._products.biases[0]

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs ``[..., I]`` float32 to ``[..., O]`` float32."""
        if inputs.dim() == 2:
            return self._products.of_rows(inputs)
        outputs = self._products.of_rows(inputs.reshape(-1, inputs.shape[-1]))
        return outputs.view(*inputs.shape[:-1], -1)


class Int8LinearPair(nn.Module):
    """Two :class:`Int8Linear` side by side, over ``[2, M, I]``.

    Args:
        one: weight ``[O, I]`` and bias ``[O]`` of the first.
        other: of the second.
    """

    def __init__(self, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self._products = IntegerProducts([one, other])

    def forward(self, inputs: Tensor) -> Tensor:
        """``[2, M, I]`` to ``[2, M, O]``."""
        return self._products.side_by_side(inputs)


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
