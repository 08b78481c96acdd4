"""Sums in one order, whatever the processor."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.decoding.corpus import decode_corpus
from models.decoding.params import DecodingParams
from models.kernels.sums import SUMS, dot, fold
from models.precision import set_precision
from tests.models.decoding.toy_models import make_model
from tests.models.kernels.other_processors import digest_on

OTHER_VECTORS = {
    "256-bits": ("haswell", "+avx,+avx2,+fma,+sse4.2,+ssse3,+bmi,+bmi2,+popcnt"),
    "128-bits": ("haswell", "+avx,+avx2,+fma,+sse4.2,+ssse3,+bmi,+bmi2,+popcnt,+prefer-128-bit"),
}


def added_in_order(numbers: NDArray[np.float32]) -> np.float32:
    lanes = numbers[: len(numbers) // SUMS * SUMS].reshape(-1, SUMS)
    sums = np.zeros(SUMS, np.float32)
    for row in lanes:
        sums += row
    eight = (sums[:8] + sums[8:16]) + (sums[16:24] + sums[24:])
    four = eight[:4] + eight[4:]
    total = (four[0] + four[2]) + (four[1] + four[3])
    for number in numbers[len(lanes) * SUMS :]:
        total += number
    return np.float32(total)


@given(st.integers(0, 200), st.integers(0, 999))
def test_a_dot_product_is_added_up_in_the_order_that_is_written(size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Powers of two: their products are exact, so that rounding them or not makes no difference.
    floats = (2.0 ** generator.integers(-12, 12, size)).astype(np.float32)
    integers = generator.integers(-127, 128, size).astype(np.int8)
    assert dot(floats, integers) == added_in_order(floats * integers)


def test_folding_adds_in_the_same_order() -> None:
    numbers = np.random.default_rng(1).standard_normal(SUMS).astype(np.float32)
    assert fold(numbers.copy()) == added_in_order(numbers)


def digest() -> str:
    """Of what models with attention and without say, to the last bit of each score."""
    said = []
    for form in ("parallel dot", "parallel additive", "context", "embedded"):
        model = set_precision(make_model(form, "gru", 8003, hidden_size=80), "int8")
        params = [DecodingParams(6), DecodingParams(6, beam_size=4, num_outputs=2)] * 4
        prompts = [[4 + i, 9, 2 * i + 5, 2] for i in range(len(params))]
        for key, hypotheses in sorted(decode_corpus(model, prompts, params)):
            said += [(form, key, h.token_ids, h.score) for h in hypotheses]
    return hashlib.sha256(repr(said).encode()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "features"), OTHER_VECTORS.values(), ids=OTHER_VECTORS)
def test_vectors_of_other_sizes_give_the_same_scores(
    name: str, features: str, tmp_path: Path
) -> None:
    """A process that believes to run on another processor, which multiplies and adds as one."""
    assert digest_on(name, features, __name__, tmp_path) == digest()
