"""Sampling against a plain oracle in Python lists."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from models.decoding.candidates import most_probable
from models.decoding.draws import uniform_number
from models.decoding.params import DecodingParams
from models.decoding.sampling import (
    NEVER_GENERATED,
    choose_tokens,
    choose_tokens_on_device,
    invert_distribution,
    keep_top,
    penalise_repetition,
    suppress_special,
)

SIZE = 13
# Few distinct values, so that ties are common.
logits_strategy = st.lists(
    st.sampled_from([-3.0, -1.0, 0.0, 0.5, 0.5, 2.0]), min_size=SIZE, max_size=SIZE
)


def kept_by_hand(scores: list[float], top_k: int, top_p: float) -> set[int]:
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    order = [token for token in order if scores[token] > -math.inf][: top_k or None]
    total = sum(math.exp(scores[token]) for token in order)
    kept: set[int] = set()
    mass = 0.0
    for token in order:
        # Three of ten equals have 0.3 or a little less, as it is rounded.
        assume(top_p == 1 or abs(mass - top_p) > 1e-6)
        if kept and top_p < 1 and mass >= top_p:
            break
        kept.add(token)
        mass += math.exp(scores[token]) / total
    return kept


@given(logits_strategy, st.integers(0, SIZE + 2), st.sampled_from([0.05, 0.3, 0.71, 0.97, 1.0]))
def test_keep_top_equals_the_oracle(scores: list[float], top_k: int, top_p: float) -> None:
    kept = keep_top(torch.tensor([scores]), [top_k], [top_p])
    found = {token for token in range(SIZE) if kept[0, token] > -math.inf}
    assert found == kept_by_hand(scores, top_k, top_p)


def test_a_mass_that_is_reached_exactly_needs_no_further_token() -> None:
    # Halves and quarters are exact, and so are their sums.
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    for top_p, count in ((0.5, 1), (0.75, 2), (0.875, 3), (0.876, 4)):
        kept = keep_top(scores, [0], [top_p])
        assert int((kept > -math.inf).sum()) == count


def flat_scores(size: int, seed: int, spread: float) -> torch.Tensor:
    """Scores with ties, so near to each other that much of the vocabulary has to be looked at."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, size, generator=generator).mul(8 * spread).round() / 8


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.93, 0.9999])
@pytest.mark.parametrize("top_k", [0, 7, 100, 3000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_keep_top_equals_the_oracle_where_the_first_look_does_not_suffice(
    spread: float, top_k: int, top_p: float
) -> None:
    scores = flat_scores(8003, seed=top_k, spread=spread)
    (kept,) = keep_top(scores, [top_k], [top_p]).isfinite()
    order = scores[0].sort(descending=True, stable=True).indices[: top_k or None]
    count = int(kept.sum())
    assert set(kept.nonzero()[:, 0].tolist()) == set(order[:count].tolist())
    # As many as hold the probability and no more, but for the rounding of float32 softmax.
    mass = torch.softmax(scores[0, order].double(), -1).cumsum(-1)
    assert mass[count - 1] >= top_p - 1e-5
    assert count == 1 or mass[count - 2] < top_p + 1e-5


@pytest.mark.parametrize("size", [29, 8003])
def test_what_is_kept_does_not_depend_on_how_far_others_look(size: int) -> None:
    scores = torch.cat([flat_scores(size, seed, spread) for seed, spread in enumerate([0.1, 1, 6])])
    scores = scores.repeat(3, 1)
    top_k, top_p = [0, 0, 0, 5, 1000, 0, 0, 3, 0], [1.0, 0.3, 0.9, 0.5, 0.999, 0.7, 0.2, 1.0, 0.99]
    together = keep_top(scores, top_k, top_p)
    for row, (k, p) in enumerate(zip(top_k, top_p, strict=True)):
        assert torch.equal(keep_top(scores[row : row + 1], [k], [p])[0], together[row])
    assert torch.equal(together[0], scores[0])


def test_ties_keep_the_lower_token() -> None:
    kept = keep_top(torch.zeros(1, 6), [2], [1.0])
    assert kept.isfinite()[0].tolist() == [True, True, False, False, False, False]


def test_neutral_settings_keep_everything() -> None:
    scores = torch.randn(3, 8003)
    kept = keep_top(scores, [0] * 3, [1.0] * 3)
    assert torch.equal(kept, scores)


def test_inverting_the_distribution_by_hand() -> None:
    scores = torch.tensor([[0.5, 0.0, 0.25, 0.25]]).log()
    draws = [0.0, 0.49, 0.5, 0.74, 0.76, 1 - 2**-53]
    tokens = [int(invert_distribution(scores, torch.tensor([u]).double())) for u in draws]
    assert tokens == [0, 0, 2, 2, 3, 3]


def test_no_draw_picks_a_token_without_a_share() -> None:
    scores = torch.full((1, 9), -math.inf)
    scores[0, [2, 5]] = 0.0
    for u in (0.0, 0.499999, 0.5, 0.999999, 1 - 2**-53):
        assert int(invert_distribution(scores, torch.tensor([u]).double())) in (2, 5)


Choose = Callable[..., torch.Tensor]
both = pytest.mark.parametrize("choose", [choose_tokens, choose_tokens_on_device])
"""By the kernel, and by the operations that a GPU has."""


@both
def test_samples_follow_the_distribution(choose: Choose) -> None:
    logits = torch.tensor([[-math.inf] * 4 + [0.0, 1.0, 2.0]])
    params = DecodingParams(1, temperature=1.0)
    draws = Counter(
        int(choose(logits, [params], [uniform_number(seed, 0)], [[]])) for seed in range(4000)
    )
    weights = [1.0, math.e, math.e**2]
    for token, weight in zip((4, 5, 6), weights, strict=True):
        assert draws[token] / 4000 == pytest.approx(weight / sum(weights), abs=0.025)


@both
def test_temperature_sharpens_and_flattens(choose: Choose) -> None:
    logits = torch.tensor([[-math.inf] * 4 + [0.0, 1.0]])

    def share(temperature: float) -> float:
        params = DecodingParams(1, temperature=temperature)
        picks = [
            int(choose(logits, [params], [uniform_number(seed, 1)], [[]])) == 5
            for seed in range(1000)
        ]
        return sum(picks) / 1000

    assert share(0.1) > 0.99
    assert share(100.0) == pytest.approx(0.5, abs=0.05)


@both
def test_greedy_takes_the_lowest_of_equal_tokens(choose: Choose) -> None:
    logits = torch.zeros(2, 8003)
    logits[1, [77, 5000]] = 3.0
    assert most_probable(logits).tolist() == [0, 77]
    assert choose(logits, [DecodingParams(1)] * 2, [0, 0], [[], []]).tolist() == [2, 77]


@both
@given(st.integers(0, 2**53 - 1), st.integers(0, 10**6))
def test_special_tokens_are_never_generated(choose: Choose, seed: int, position: int) -> None:
    logits = torch.full((1, SIZE), -5.0)
    logits[0, list(NEVER_GENERATED)] = 50.0
    for temperature in (0.0, 1.0, 100.0):
        params = DecodingParams(1, temperature=temperature)
        draw = uniform_number(seed, position)
        assert int(choose(logits, [params], [draw], [[]])) not in NEVER_GENERATED
    assert suppress_special(logits)[0, 0] == -math.inf
    assert logits[0, 0] == 50.0  # the caller's logits are left alone


@both
@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_no_penalty_lets_a_special_token_through(choose: Choose, penalty: float) -> None:
    for temperature in (0.0, 0.01, 1.0):
        params = DecodingParams(1, temperature=temperature, repetition_penalty=penalty)
        token = int(choose(torch.randn(1, SIZE), [params], [0.5], [range(SIZE)]))
        assert token not in NEVER_GENERATED
        assert token < SIZE


@both
def test_repetition_penalty_by_hand(choose: Choose) -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0]])
    seen = torch.tensor([[True, True, False, True]])
    assert penalise_repetition(logits, seen, torch.tensor([2.0])).tolist() == [
        [1.0, -4.0, 1.0, 0.0]
    ]
    params = DecodingParams(1, repetition_penalty=3.0)
    row = torch.tensor([[0.0] * 4 + [2.0, 1.9]])
    assert int(choose(row, [params], [0.0], [[]])) == 4
    assert int(choose(row, [params], [0.0], [[4]])) == 5


@both
@given(st.data())
def test_a_row_does_not_depend_on_its_batch(choose: Choose, data: st.DataObject) -> None:
    params_strategy = st.builds(
        DecodingParams,
        max_new_tokens=st.just(1),
        temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        top_k=st.integers(0, 5),
        top_p=st.sampled_from([0.2, 0.9, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.5]),
    )
    rows = data.draw(
        st.lists(
            st.tuples(
                logits_strategy,
                params_strategy,
                st.floats(0, 1, exclude_max=True),
                st.lists(st.integers(0, SIZE - 1), max_size=4),
            ),
            min_size=1,
            max_size=6,
        )
    )
    logits, params, draws, seen = (list(column) for column in zip(*rows, strict=True))
    together = choose(torch.tensor(logits), params, draws, seen).tolist()
    alone = [int(choose(torch.tensor([row]), [p], [u], [s])) for row, p, u, s in rows]
    assert together == alone


def test_any_number_of_tokens_may_be_asked_for() -> None:
    params = [DecodingParams(1, temperature=1.0, top_k=2**63 + 5)]
    assert 2 < int(choose_tokens(torch.zeros(1, 9), params, [0.5], [[]])) < 9


def test_the_kernel_and_the_operations_choose_the_same_tokens() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(40, 2003, generator=generator)
    params = [
        DecodingParams(
            1,
            temperature=(0.0, 0.7, 1.0, 1.6)[row % 4],
            top_k=(0, 3, 50, 600)[row // 4 % 4],
            top_p=(1.0, 0.9, 0.4)[row % 3],
            repetition_penalty=(1.0, 1.3)[row % 2],
        )
        for row in range(40)
    ]
    draws = [uniform_number(row, 3) for row in range(40)]
    seen = [list(range(row, 2003, 7)) for row in range(40)]
    tokens = choose_tokens(logits, params, draws, seen)
    assert torch.equal(tokens, choose_tokens_on_device(logits, params, draws, seen))
    rows = [31, 2, 17]
    some = choose_tokens(
        logits,
        [params[row] for row in rows],
        [draws[row] for row in rows],
        [seen[row] for row in rows],
        rows,
    )
    assert some.tolist() == tokens[rows].tolist()
