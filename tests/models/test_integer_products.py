"""Which kernel multiplies integers, and that it does so exactly."""

import itertools
import time

import pytest
import torch
from torch import Tensor

from models import integer_products
from models.integer_products import (
    KINDS,
    LEVELS,
    FloatWeight,
    Kind,
    PackedWeight,
    PlainWeight,
    fastest_kind,
    is_exact,
    store_weight,
)


class Saturating(FloatWeight):
    """As AVX2 does it: one side without a sign, pairs of products added in 16 bits."""

    def multiply(self, values: Tensor) -> Tensor:
        weight = self._transposed.int()
        products = (values.int() + 128)[:, :, None] * weight[None]
        if products.shape[1] % 2:
            products = torch.cat([products, torch.zeros_like(products[:, :1])], dim=1)
        pairs = products[:, ::2] + products[:, 1::2]
        sums = pairs.clamp(-(2**15), 2**15 - 1).sum(1) - 128 * weight.sum(0)
        return sums.float() * self._scales


class Missing(FloatWeight):
    def __init__(self, values: Tensor, scales: Tensor) -> None:
        raise RuntimeError("no such kernel")


class Slow(FloatWeight):
    def multiply(self, values: Tensor) -> Tensor:
        time.sleep(0.02)
        return super().multiply(values)


@pytest.mark.parametrize(("kind", "verdict"), [(Saturating, 0), (Missing, 0), (FloatWeight, 1)])
def test_a_kernel_is_believed_only_if_it_is_exact(kind: Kind, verdict: int) -> None:
    assert is_exact.__wrapped__(kind) is bool(verdict)


@pytest.mark.parametrize(
    "kinds", list(itertools.permutations([Slow, Saturating, Missing, FloatWeight]))
)
def test_the_fastest_of_the_exact_kernels_is_used(
    kinds: tuple[Kind, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processors without VNNI, PyTorch 2.13 multiplies int8 in a plain loop."""
    monkeypatch.setattr(integer_products, "KINDS", kinds)
    assert fastest_kind.__wrapped__(64, 32) is FloatWeight


def test_a_slow_kernel_is_known_as_such_at_once() -> None:
    tries: list[float] = []

    def work() -> Tensor:
        tries.append(time.perf_counter())
        time.sleep(0.03)
        return torch.empty(0)

    integer_products._best_seconds(work)
    assert len(tries) <= 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 5, 17, 64, 131])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(2, 1), (30, 29), (518, 70), (519, 31), (1041, 7), (4097, 33)]
)
def test_this_processors_kernels_are_exact(
    kind: Kind, rows: int, inputs: int, outputs: int
) -> None:
    if not is_exact(kind):  # type: ignore[arg-type]  # classes can be hashed
        pytest.skip("this processor's kernel is not exact, or missing")
    torch.manual_seed(rows)
    left = torch.randint(-LEVELS, LEVELS + 1, (rows, inputs))
    right = torch.randint(-LEVELS, LEVELS + 1, (outputs, inputs))
    left[0], right[0], right[-1] = LEVELS, LEVELS, -LEVELS
    scales = torch.rand(outputs) + 0.5
    found = store_weight(kind, right.float(), scales).multiply(left.float())
    assert torch.equal(found, (left @ right.t()).float() * scales)


def test_packed_sums_stay_in_what_float32_holds() -> None:
    """oneDNN's AMX kernel turns sums with the zero point's share into float32."""
    assert PackedWeight.max_terms * 255 * LEVELS <= 2**24
    assert FloatWeight.max_terms * LEVELS**2 <= 2**24
    assert PlainWeight.max_terms * LEVELS**2 < 2**31
