"""The best tokens against a stable sort of everything."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.decoding.candidates import most_probable, top_candidates

SIZES = st.one_of(
    st.integers(1, 300),
    # Around multiples of the blocks, where the path changes.
    st.sampled_from([63, 64, 65, 127, 128, 129, 191, 192, 255, 256]),
)


def make_scores(rows: int, size: int, kind: str, seed: int) -> Tensor:
    """Random scores in which ties are common, or everything, or nothing counts."""
    generator = torch.Generator().manual_seed(seed)
    choice = torch.randint(0, 7, (rows, size), generator=generator)
    values = {
        "ties": [-math.inf, -2.5, -0.0, 0.0, 1e-42, 2.5, 2.5],
        "equal": [1.0] * 7,
        "nothing": [-math.inf] * 7,
        "zeros": [0.0, -0.0] * 3 + [0.0],
        "few": [-math.inf] * 6 + [-1.0],
        "ends": [-3.4e38, 3.4e38, -1e-45, 1e-45, math.inf, -math.inf, 0.0],
    }
    if kind == "random":
        return torch.randn(rows, size, generator=generator) * 10
    return torch.tensor(values[kind])[choice]


scores_of = st.builds(
    make_scores,
    st.integers(1, 4),
    SIZES,
    st.sampled_from(["ties", "equal", "nothing", "zeros", "few", "ends", "random"]),
    st.integers(0, 10**6),
)


def sorted_tokens(row: list[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda token: (-row[token], token))


@given(scores_of, st.integers(1, 16) | st.sampled_from([64, 127, 128, 299, 300, 1000]))
def test_candidates_equal_a_full_sort(scores: Tensor, count: int) -> None:
    best, tokens = top_candidates(scores, count)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [sorted_tokens(row)[:count] for row in scores.tolist()]
    assert torch.equal(best, scores.gather(1, tokens))


@given(scores_of)
def test_the_most_probable_is_the_first_of_equals(scores: Tensor) -> None:
    assert most_probable(scores).tolist() == [sorted_tokens(row)[0] for row in scores.tolist()]


@pytest.mark.parametrize("kind", ["ties", "equal", "zeros", "few", "ends", "random"])
@pytest.mark.parametrize(("size", "count"), [(8003, 1), (8003, 16), (8003, 128), (20_011, 128)])
def test_candidates_of_a_large_vocabulary(kind: str, size: int, count: int) -> None:
    scores = make_scores(3, size, kind, seed=size + count)
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    assert torch.equal(top_candidates(scores, count)[1], order[:, :count])
    assert torch.equal(most_probable(scores), order[:, 0])


def test_equals_in_two_blocks_keep_their_order_whichever_block_is_better() -> None:
    scores = torch.zeros(1, 1024)
    scores[0, [10, 20]] = torch.tensor([4.0, 3.0])
    scores[0, [690, 700]] = torch.tensor([5.0, 3.0])
    assert top_candidates(scores, 4)[1].tolist() == [[690, 10, 20, 700]]


@pytest.mark.parametrize("count", [1, 5, 128])
def test_fewer_candidates_are_the_first_of_more(count: int) -> None:
    """A row's candidates do not depend on how many another row of the batch asks for."""
    for kind in ("ties", "random"):
        scores = make_scores(3, 8003, kind, seed=1)
        assert torch.equal(
            top_candidates(scores, count)[1], top_candidates(scores, 1000)[1][:, :count]
        )
