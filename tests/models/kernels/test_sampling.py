"""Sampling against a plain oracle in Python's lists, at sizes around those of blocks."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.decoding.sampling import joined
from models.kernels.sampling import sample
from models.kernels.team import BOARD
from tests.models.teams import team_of

SIZES = st.sampled_from([1, 4, 63, 64, 65, 128, 200, 1003])
NEAR = 1e-5
"""Nearer to a limit, rounding decides."""


def choose(
    logits: NDArray[np.float32],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    uniform: float | NDArray[np.float64] = 0.5,
    *,
    penalty: float = 1.0,
    seen: tuple[int, ...] = (),
    never: tuple[int, ...] = (),
) -> list[int]:
    """For all rows, by the same settings."""
    count = len(logits)
    settings = (
        np.full(count, temperature, np.float32),
        np.full(count, top_k),
        np.full(count, top_p),
        np.full(count, penalty, np.float32),
    )
    texts = joined([seen] * count)
    uniforms, tokens = np.full(count, uniform), np.empty(count, np.int64)
    banned = np.array(never, np.int64)
    rows = np.arange(count)
    sample(logits, banned, rows, rows, settings, texts, uniforms, tokens, BOARD.address)
    chosen: list[int] = tokens.tolist()
    return chosen


def by_hand(scores: list[float], top_k: int, top_p: float, uniform: float) -> int:
    """The token of one row whose scores have been divided by the temperature."""
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))[: top_k or None]
    shares = {token: math.exp(scores[token] - scores[order[0]]) for token in order}
    limit, mass, kept = top_p * sum(shares.values()), 0.0, set()
    for token in order:
        assume(top_p == 1 or abs(mass - limit) > NEAR * limit)
        if top_p < 1 and mass >= limit:
            break
        kept.add(token)
        mass += shares[token]
    threshold, before = uniform * mass, 0.0
    for token in sorted(kept):
        before += shares[token]
        assume(abs(before - threshold) > NEAR * mass)
        if before > threshold:
            return token
    raise AssertionError("the last one takes what is left")


@given(
    size=SIZES,
    seed=st.integers(0, 10_000),
    step=st.sampled_from([0.5, 0.01, 2**-20]),
    spread=st.sampled_from([1.0, 30.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 64, 65, 900, 5000]),
    top_p=st.sampled_from([0.02, 0.5, 0.93, 0.9999, 1.0]),
    uniform=st.floats(0, 0.999),
)
def test_the_token_of_the_oracle(
    size: int, seed: int, step: float, spread: float, temperature: float, top_k: int, top_p: float,
    uniform: float,
) -> None:  # fmt: skip
    generator = np.random.default_rng(seed)
    logits = (generator.integers(-9, 10, (1, size)) * step * spread).astype(np.float32)
    scores = (logits[0] / np.float32(temperature)).tolist()
    expected = by_hand(scores, top_k, top_p, uniform)
    assert choose(logits, temperature, top_k, top_p, uniform) == [expected]


@pytest.mark.parametrize("size", [5, 64, 8003])
@pytest.mark.parametrize("top_k", [1, 3, 64, 65, 1000])
def test_of_equals_the_lower_are_kept(size: int, top_k: int) -> None:
    logits = np.zeros((1, size), np.float32)
    logits[0, 1::2] = -0.0
    assert choose(logits, 1.0, top_k, uniform=1 - 2**-53) == [min(top_k, size) - 1]
    assert choose(logits, 1.0, top_k, 0.5, uniform=1 - 2**-53) == [(min(top_k, size) - 1) // 2]


def test_a_mass_that_is_reached_exactly_needs_no_further_token() -> None:
    logits = np.zeros((1, 8), np.float32)
    for top_p, last in ((0.125, 0), (0.25, 1), (0.2501, 2), (0.875, 6), (0.876, 7)):
        assert choose(logits, 1.0, 0, top_p, 1 - 2**-53) == [last]


def test_scores_far_below_the_highest_have_no_share() -> None:
    logits = np.full((1, 300), -100, np.float32)
    logits[0, [7, 200]] = 0
    for uniform, token in ((0.0, 7), (0.49, 7), (0.51, 200), (1 - 2**-53, 200)):
        assert choose(logits, uniform=uniform) == [token]
        assert choose(logits, 1.0, 250, 0.999, uniform) == [token]


def test_what_is_never_chosen_and_what_was_seen() -> None:
    logits = np.array([[9.0, 2.0, 1.9, -1.0]], np.float32)
    assert choose(logits, 0.0) == [0]
    assert choose(logits, 0.0, never=(0,)) == [1]
    assert choose(logits, 0.0, never=(0,), penalty=3.0, seen=(1, 1, 3)) == [2]
    assert choose(logits, 1.0, 1, never=(0,), penalty=3.0, seen=(1, 1, 3)) == [2]
    assert choose(-logits, 0.0, penalty=5.0, seen=(3, 2)) == [3]  # 0.2, and -9.5 below -2
    assert choose(logits, 1.0, uniform=0.0, never=(0, 1, 2)) == [3]
    np.testing.assert_array_equal(logits, np.array([[9.0, 2.0, 1.9, -1.0]], np.float32))


@pytest.mark.parametrize("gap", [3.0, 1e3, 1e9, 3e38])
@pytest.mark.parametrize("size", [29, 64, 200])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_no_number_has_no_place_among_others(sign: float, size: int, gap: float) -> None:
    """Where the highest stands beside it, parts of a range would be sought outside of it."""
    logits = np.zeros((1, size), np.float32)
    logits[0, ::64] = np.copysign(np.float32(np.nan), np.float32(sign))
    logits[0, 10] = gap
    for temperature in (0.01, 1.0, 10.0):
        for top_k, top_p in ((5, 1.0), (0, 0.5), (5, 0.5), (100, 0.5)):
            for seen in ((), (0, 10)):
                tokens = choose(logits, temperature, top_k, top_p, penalty=1.0, seen=seen)
                assert tokens == [10] or gap == 3.0


@pytest.mark.parametrize("hostile", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_no_number_harms_no_other(hostile: float) -> None:
    logits = np.random.default_rng(1).standard_normal((4, 200)).astype(np.float32)
    expected = choose(logits, 0.8, 40, 0.9)
    logits[0, 130], logits[2] = hostile, hostile
    found = choose(logits, 0.8, 40, 0.9)
    assert found[1::2] == expected[1::2]
    assert all(0 <= token < 200 for token in found)


def test_scores_that_a_low_temperature_makes_infinite_leave_the_first_of_them() -> None:
    logits = np.zeros((1, 100), np.float32)
    logits[0, [40, 80]] = 1e37
    for top_k, top_p in ((0, 1.0), (7, 1.0), (0, 0.9), (7, 0.9)):
        assert choose(logits, 0.01, top_k, top_p) == [40]


def test_neither_company_nor_threads_change_a_token() -> None:
    generator = np.random.default_rng(3)
    logits = 3 * generator.standard_normal((64, 8003)).astype(np.float32)
    uniforms = generator.random(64)
    for top_k, top_p in ((0, 1.0), (40, 0.9), (0, 0.9), (700, 1.0)):
        together = choose(logits, 0.9, top_k, top_p, uniforms)
        alone = [
            choose(logits[row : row + 1], 0.9, top_k, top_p, uniforms[row])[0] for row in range(64)
        ]
        assert alone == together
        with team_of(3):
            assert choose(logits, 0.9, top_k, top_p, uniforms) == together
    assert len(set(together)) > 9


def test_only_the_rows_that_are_named_are_chosen_for_by_their_owners_settings() -> None:
    logits = np.eye(6, dtype=np.float32) * 9
    tokens = np.full(6, -1)
    greedy = np.zeros(2, np.float32)
    settings = (greedy, np.zeros(2, np.int64), np.ones(2), np.array([1, 100], np.float32))
    seen = joined([[4], [1, 2]], room=1)
    rows, owners = np.array([4, 1]), np.array([9, 1, 9, 9, 0, 9])
    never = np.empty(0, np.int64)
    sample(logits, never, rows, owners, settings, seen, np.zeros(2), tokens, BOARD.address)
    assert tokens.tolist() == [-1, 1, -1, -1, 4, -1]
    logits[1, 3] = 0.5  # where 9 / 100 is less
    sample(logits, never, rows, owners, settings, seen, np.zeros(2), tokens, BOARD.address)
    assert tokens.tolist() == [-1, 3, -1, -1, 4, -1]
