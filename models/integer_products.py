"""Products of integers, exact in whatever order they are added.

Where the processor multiplies int8 matrices without saturating (VNNI, AMX) they are multiplied as
such; elsewhere float32 holds the same integers. Which kernel computes a weight of what size the
fastest, the clock is asked when models are loaded. All give the same bits.

Shape legend: ``G`` products side by side, ``M`` rows, ``I`` inputs, ``O`` outputs.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LEVELS = 127
"""Values are stored as integers from -127 to 127."""
MAX_EXACT_TERMS = 2**24 // LEVELS**2
"""float32 holds every integer up to 2^24: so many products of two values may be added in it."""
_TINY = 1e-30
_ZERO_POINT = 128
"""What stands for 0 where integers are stored without a sign, as every int8 kernel takes rows."""


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


def _as_int8(values: Tensor) -> Tensor:
    """Rows ``[M, I]`` as kernels take them, with more rows behind that nobody looks at."""
    count, size = values.shape
    rows = torch.empty(_padded_rows(count), size, dtype=torch.int8)
    rows[:count] = values
    return rows


class PackedWeight:
    """A weight as oneDNN's int8 kernel likes it best.

    Args:
        values: ``[O, I]`` float32 holding integers, at most ``max_terms`` inputs.
        scales: ``[O]`` float32, of the products.
    """

    max_terms = 2**24 // (2 * LEVELS + 1) // LEVELS
    """The kernel turns sums into float32 before it takes away what the zero point added."""

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(values.to(torch.int8), None)
        self._scales = scales
        self._zero_points = torch.zeros(len(scales), dtype=torch.int32)
        self._kernel = torch.ops.onednn.qlinear_pointwise.default

    def multiply(self, values: Tensor) -> Tensor:
        """``[M, I]`` float32 holding integers, to ``[M, O]`` float32, scaled."""
        unsigned = _as_int8(values).view(torch.uint8).bitwise_xor_(_ZERO_POINT)
        # Then: scale and zero point of what comes out, its type, and nothing applied to it.
        products: Tensor = self._kernel(
            unsigned, 1.0, _ZERO_POINT, self._packed, self._scales, self._zero_points,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return products[: len(values)]


class PlainWeight:
    """A weight as ``torch._int_mm`` takes it, which begins faster than oneDNN's packed kernel.

    Args:
        values: ``[O, I]`` float32 holding integers, at most ``max_terms`` inputs.
        scales: ``[O]`` float32, of the products.
    """

    max_terms = 2**31 // LEVELS**2

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        self._transposed = values.to(torch.int8).t()
        self._scales = scales

    def multiply(self, values: Tensor) -> Tensor:
        """``[M, I]`` float32 holding integers, to ``[M, O]`` float32, scaled."""
        return (
            torch._int_mm(_as_int8(values), self._transposed)[: len(values)]
            .float()
            .mul_(self._scales)
        )


class FloatWeight:
    """A weight as float32 holding integers, for processors without an exact int8 kernel.

    Args:
        values: ``[O, I]`` float32 holding integers, at most ``max_terms`` inputs.
        scales: ``[O]`` float32, of the products.
    """

    max_terms = MAX_EXACT_TERMS

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        self._transposed = values.t()
        self._scales = scales

    def multiply(self, values: Tensor) -> Tensor:
        """``[M, I]`` float32 holding integers, to ``[M, O]`` float32, scaled."""
        return (values @ self._transposed).mul_(self._scales)


class SplitWeight:
    """A weight with so many inputs that their sums are exact in pieces only.

    Args:
        kind: of the pieces.
        values: ``[O, I]`` float32 holding integers.
        scales: ``[O]`` float32, of the products.
    """

    def __init__(self, kind: "Kind", values: Tensor, scales: Tensor) -> None:
        self._max_terms = kind.max_terms
        self._dtype = torch.float32 if values.shape[1] <= MAX_EXACT_TERMS else torch.float64
        self._pieces = [
            kind(piece, torch.ones_like(scales))
            for piece in torch.split(values, kind.max_terms, dim=1)
        ]
        self._scales = scales

    def multiply(self, values: Tensor) -> Tensor:
        """``[M, I]`` float32 holding integers, to ``[M, O]`` float32, scaled."""
        parts = zip(torch.split(values, self._max_terms, dim=1), self._pieces, strict=True)
        total = functools.reduce(
            torch.add, (piece.multiply(part).to(self._dtype) for part, piece in parts)
        )
        return total.float().mul_(self._scales)


_Weight = PackedWeight | PlainWeight | FloatWeight | SplitWeight
Kind = type[PackedWeight] | type[PlainWeight] | type[FloatWeight]


KINDS: tuple[Kind, ...] = (FloatWeight, PlainWeight, PackedWeight)


def store_weight(kind: Kind, values: Tensor, scales: Tensor) -> _Weight:
    """A weight for one kind of kernel, in pieces where its sums would not be exact otherwise."""
    if values.shape[1] > kind.max_terms:
        return SplitWeight(kind, values, scales)
    return kind(values, scales)


@functools.cache
def is_exact(kind: Kind) -> bool:
    """Whether this processor's kernel multiplies integers without saturating on the way.

    Processors with VNNI (or the like) do; below that, pairs of products are added in 16 bits.
    """
    generator = torch.Generator().manual_seed(0)

    def integers(*shape: int) -> Tensor:
        return torch.randint(-LEVELS, LEVELS + 1, shape, generator=generator).float()

    # Sums beyond 2^24 among them, where it matters when they are rounded to float32.
    left, right, scales = integers(33, 4099), integers(70, 4099), torch.rand(70) + 0.5
    left[0], left[1], right[0], right[1] = LEVELS, -LEVELS, LEVELS, -LEVELS
    try:
        product = store_weight(kind, right, scales).multiply(left)
    except (RuntimeError, AttributeError):  # there is no such kernel for this processor
        return False
    return torch.equal(product, (left.double() @ right.double().t()).float() * scales)


@functools.cache
def fastest_kind(outputs: int, inputs: int) -> Kind:
    """The exact kernel that computes a weight ``[O, I]`` the fastest here, with 1 to 64 rows.

    Asked of the clock, since which processors are served well is PyTorch's own affair and
    changes with its versions: some of its kernels are a hundred times slower than float32 on
    some processors. No answer depends on it.
    """
    if inputs == 1:  # torch 2.13 computes int8 products of a single term wrong
        return FloatWeight
    values, scales = torch.ones(outputs, inputs), torch.ones(outputs)

    def seconds(kind: Kind) -> float:
        weight = store_weight(kind, values, scales)
        batches = [torch.ones(rows, inputs) for rows in (1, 8, 64)]
        return sum(_best_seconds(functools.partial(weight.multiply, rows)) for rows in batches)

    return min(filter(is_exact, KINDS), key=seconds)  # type: ignore[arg-type]  # classes can be hashed


def _best_seconds(work: Callable[[], Tensor]) -> float:
    best, end = math.inf, time.perf_counter() + 0.02
    for _ in range(5):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
        if began > end:  # a slow kernel is known as such after one attempt
            break
    return best


class IntegerProducts:
    """Products with the weights of one or more linear layers, side by side.

    ``outputs = bias + row_scale * (scale * sum(integers))``, in this order and each operation
    rounded by itself, so that the bits depend neither on the kernel nor on the other rows.

    Args:
        layers: weight ``[O, I]`` and bias ``[O]`` of each of G layers of one size.

    Attributes:
        biases: ``[O]`` float32, zeros where a layer has none.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        kind = fastest_kind(*layers[0][0].shape)
        self._weights: list[_Weight] = []
        self.biases: list[Tensor] = []
        for weight, bias in layers:
            values, scales = quantize_rows(weight.detach().float())
            self._weights.append(store_weight(kind, values, scales[:, 0].contiguous()))
            added = torch.zeros(len(weight)) if bias is None else bias.detach().float().clone()
            self.biases.append(added)

    def of_rows(self, inputs: Tensor) -> Tensor:
        """The first layer's: ``[M, I]`` float32 to ``[M, O]`` float32."""
        values, row_scales = quantize_rows(inputs)
        products = self._weights[0].multiply(values)
        return torch.addcmul(self.biases[0], products, row_scales, out=products)

    def side_by_side(self, inputs: Tensor) -> Tensor:
        """Each layer's of its own rows: ``[G, M, I]`` float32 to ``[G, M, O]`` float32."""
        values, row_scales = quantize_rows(inputs)
        outputs = inputs.new_empty(*inputs.shape[:-1], len(self.biases[0]))
        for weight, bias, *own in zip(
            self._weights, self.biases, values, row_scales, outputs, strict=True
        ):
            torch.addcmul(bias, weight.multiply(own[0]), own[1], out=own[2])
        return outputs
