"""Products of integers: exact, whatever the size, and the same bits on every processor."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.kernels.products import (
    LEVELS,
    linear,
    make_values,
    pack_weight,
    round_rows,
    store_groups,
    store_rows,
)
from models.kernels.tiles import may_use_tiles
from tests.models.kernels.other_processors import digest_on

SIZES = [(1, 1), (2, 15), (30, 29), (64, 64), (65, 100), (518, 70), (1041, 16), (4097, 33)]
OTHER_PROCESSORS = {
    "AVX2": ("haswell", "+avx,+avx2,+fma,+sse4.2,+ssse3,+bmi,+bmi2,+popcnt"),
    "SSE2": ("x86-64", "+sse2"),
}


def random_case(
    rows: int, inputs: int, outputs: int
) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Rows, weights, scales and biases, some of the weights as large as they get."""
    generator = np.random.default_rng(rows)
    values = generator.integers(-LEVELS, LEVELS + 1, (outputs, inputs), np.int8)
    values[0], values[-1] = LEVELS, -LEVELS
    scales, biases = generator.random((2, outputs), np.float32) + np.float32(0.5)
    left = generator.standard_normal((rows, inputs), np.float32)
    left *= np.logspace(-8, 8, rows, dtype=np.float32)[:, None]
    left[rows // 2] = 0.3
    return left, values, scales, biases


def multiply(
    rows: int, inputs: int, outputs: int, *, in_tiles: bool | None = None
) -> NDArray[np.float32]:
    left, values, scales, biases = random_case(rows, inputs, outputs)
    found = np.empty((rows, outputs), np.float32)
    linear(left, pack_weight(values, scales, biases, in_tiles=in_tiles), found)
    return found


@pytest.mark.parametrize("in_tiles", [False, True], ids=["vectors", "tiles"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 13, 16, 30, 64, 131])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_products_are_exact(rows: int, inputs: int, outputs: int, in_tiles: bool) -> None:
    if in_tiles and not may_use_tiles():
        pytest.skip("this processor has no tiles, or the system does not lend them")
    left, values, scales, biases = random_case(rows, inputs, outputs)
    largest = np.maximum(np.abs(left).max(1, keepdims=True), np.float32(1e-30))
    row_scales = largest * np.float32(1 / LEVELS)
    integers = np.rint(left / row_scales).astype(np.int64)
    sums = (integers @ values.T.astype(np.int64)).astype(np.float32)
    expected = biases + row_scales * (scales * sums)
    assert expected.dtype == np.float32
    found = multiply(rows, inputs, outputs, in_tiles=in_tiles)
    np.testing.assert_array_equal(found, expected)


def test_rows_are_rounded_to_even_with_a_scale_of_their_own() -> None:
    rows = np.array([[127, -127, 0.5, 1.5, 2.5, -0.5], [0, 0, 0, 0, 0, 0]], np.float32)
    ones = np.ones(1, np.float32)
    values = make_values(2, pack_weight(np.zeros((1, 6), np.int8), ones, ones))
    scales = np.empty(2, np.float32)
    round_rows(rows, values, scales)
    zero = int(values[1, 0])  # what stands for 0 on this processor
    assert [(int(value) - zero + 128) % 256 - 128 for value in values[0, :6]] == [
        127,
        -127,
        0,
        2,
        2,
        0,
    ]
    assert scales[0] == 1
    assert 0 < scales[1] < 1e-30


def test_a_group_has_a_scale_for_all_its_real_rows() -> None:
    rows = np.random.default_rng(3).normal(size=(4, 5, 37)).astype(np.float32)
    is_real = np.arange(5) < np.array([[5], [1], [0], [3]])
    rows[0, 4, 7], rows[3, 1, 2] = 9, np.nan
    values, scales = np.full(rows.shape, 99, np.int8), np.empty(4, np.float32)
    store_groups(rows, np.flatnonzero(is_real), values, scales)
    for n, count in ((0, 5), (1, 1)):
        expected, scale = np.empty((1, 37 * count), np.int8), np.empty(1, np.float32)
        store_rows(rows[n, :count].reshape(1, -1), np.zeros(1, np.int64), expected, scale)
        assert (values[n, :count].ravel() == expected[0]).all()
        assert scales[n] == scale[0]
    assert (values[~is_real] == 99).all(), "padding is left alone"
    assert 0 < scales[2] < 1e-30
    assert np.isnan(scales[3])


def test_nothing_is_written_beside_the_outputs() -> None:
    left, values, scales, biases = random_case(7, 30, 29)
    around = np.full((9, 29), 7, np.float32)
    linear(left, pack_weight(values, scales, biases), around[1:8])
    assert (around[[0, 8]] == 7).all()


def digest() -> str:
    """Of the products of all sizes."""
    return hashlib.sha256(b"".join(multiply(13, *size).tobytes() for size in SIZES)).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "features"), OTHER_PROCESSORS.values(), ids=OTHER_PROCESSORS)
def test_other_processors_give_the_same_bits(name: str, features: str, tmp_path: Path) -> None:
    """A process that believes to run on another processor compiles other instructions."""
    assert digest_on(name, features, __name__, tmp_path) == digest()


@pytest.mark.parametrize("in_tiles", [False, True], ids=["vectors", "tiles"])
def test_threads_do_not_disturb_each_other(in_tiles: bool) -> None:
    if in_tiles and not may_use_tiles():
        pytest.skip("this processor has no tiles, or the system does not lend them")
    rows, inputs, outputs = 64, 128, 520
    cases = []
    for seed in range(4):
        left, values, scales, biases = random_case(rows, inputs, outputs)
        weight = pack_weight(np.roll(values, seed, 0), scales, biases, in_tiles=in_tiles)
        expected = np.empty((rows, outputs), np.float32)
        linear(left, weight, expected)
        cases.append((left, weight, expected))

    def compute(case: int) -> int:
        left, weight, expected = cases[case]
        wrong = 0
        for _ in range(500):
            found = np.empty((rows, outputs), np.float32)
            linear(left, weight, found)
            wrong += not np.array_equal(found, expected)
        return wrong

    with ThreadPoolExecutor(len(cases)) as threads:
        assert list(threads.map(compute, range(len(cases)))) == [0] * len(cases)
