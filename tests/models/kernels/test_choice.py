"""The choice of tokens against the plain rule: the higher, then the lower id."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.kernels.choice import best_candidates, count_blocks, log_softmax, most_probable
from models.kernels.team import BOARD

SIZES = st.sampled_from([1, 2, 5, 63, 64, 65, 128, 200, 1003])


@st.composite
def logit_rows(draw: st.DrawFn) -> NDArray[np.float32]:
    """Rows with many equals, some by rounding alone, of every size around a block's."""
    size, rows = draw(SIZES), draw(st.integers(1, 3))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    step = np.float32(draw(st.sampled_from([0.5, 2**-20, 2**-22, 2**-24])))
    offset = np.float32(draw(st.sampled_from([0.0, -3.0, 17.0])))
    return (generator.integers(-9, 10, (rows, size)) * step + offset).astype(np.float32)


@given(logit_rows(), st.sets(st.integers(0, 3)), st.integers(1, 9) | st.integers(60, 70))
def test_the_best_tokens_by_the_rule(
    logits: NDArray[np.float32], never: set[int], width: int
) -> None:
    rows, size = logits.shape
    spared = np.array(sorted(token for token in never if token < size), np.int64)
    all_logprobs = np.empty_like(logits)
    log_softmax(logits, all_logprobs)
    tokens, tops, sums = np.empty(rows, np.int64), np.empty(rows, np.float32), np.empty(rows, "f4")
    scores = logits.copy()
    blocks = np.empty((rows, count_blocks(size)), np.float32)
    most_probable(scores, spared, tokens, tops, sums, blocks, BOARD.address)
    assert np.isneginf(scores[:, spared]).all()
    count = min(width, size)
    ids, logprobs = np.empty((rows, count), np.int64), np.empty((rows, count), np.float32)
    best_candidates(scores, np.arange(rows), tops, sums, blocks, ids, logprobs)
    for row in range(rows):
        allowed = [token for token in range(size) if token not in spared]
        by_rule = sorted(allowed, key=lambda token: (-all_logprobs[row, token], token))
        if by_rule:
            assert tokens[row] == max(allowed, key=lambda token: (logits[row, token], -token))
        found = [(int(i), float(p)) for i, p in zip(ids[row], logprobs[row], strict=True)]
        expected = [(token, float(all_logprobs[row, token])) for token in by_rule[:count]]
        assert found[: len(expected)] == expected
        assert all(np.isneginf(logprob) for _, logprob in found[len(expected) :])


@given(logit_rows())
def test_log_probabilities_are_those_of_the_formula(logits: NDArray[np.float32]) -> None:
    found = np.empty_like(logits)
    log_softmax(logits, found)
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("hostile", [np.nan, np.inf])
def test_a_row_without_probabilities_says_so(hostile: float) -> None:
    logits = np.zeros((3, 100), np.float32)
    logits[1, 70] = hostile
    found = np.empty_like(logits)
    log_softmax(logits, found)
    assert np.isnan(found[1]).any()
    assert np.isfinite(found[[0, 2]]).all()
