import math

from hypothesis import given
from hypothesis import strategies as st

from models.decoding.beam import can_improve, expand, rank
from models.decoding.params import (
    DecodingParams,
    FinishReason,
    GeneratedToken,
    Hypothesis,
    normalised_score,
)
from models.decoding.sampling import NEVER_GENERATED

SIZE = 9
values = st.sampled_from([-4.0, -2.0, -1.0, -1.0, -0.5])


@given(
    st.lists(
        st.tuples(st.lists(values, min_size=SIZE, max_size=SIZE), st.sampled_from([-1.0, -2.0])),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 40),
)
def test_expansion_equals_sorting_every_continuation(
    live: list[tuple[list[float], float]], width: int
) -> None:
    """Score first, then the parent, then the lowest token: ties are common here."""
    best = [best_tokens(row, width) for row, _ in live]
    expansion = expand(
        [sum_ for _, sum_ in live],
        [[row[token] for token in tokens] for (row, _), tokens in zip(live, best, strict=True)],
        best,
        width,
    )
    everything = sorted(
        (-(sum_ + logprob), parent, token)
        for parent, (row, sum_) in enumerate(live)
        for token, logprob in enumerate(row)
        if token not in NEVER_GENERATED
    )
    assert [candidate[:3] for candidate in expansion] == everything[:width]
    for candidate in expansion:
        assert candidate.logprob == live[candidate.parent][0][candidate.token]


def best_tokens(logprobs: list[float], width: int) -> list[int]:
    """Those of one row, best first, as the batched decoder hands them over."""
    allowed = (token for token in range(SIZE) if token not in NEVER_GENERATED)
    return sorted(allowed, key=lambda token: (-logprobs[token], token))[:width]


def test_sums_are_kept_in_double_precision() -> None:
    (best,) = expand([-1e8], [[-0.1]], [[2]], 1)
    assert best.negative_total == 1e8 + 0.1


def test_sums_that_round_to_the_same_go_to_the_lower_token() -> None:
    best = expand([-1e17], [[-0.1, -0.2, -0.3]], [[7, 6, 5]], 2)
    assert [candidate.token for candidate in best] == [5, 6]


def test_what_has_no_probability_is_no_continuation() -> None:
    """The special tokens come as candidates too where few others are left."""
    candidates = expand([-1.0, -2.0], [[-0.5, -math.inf], [-math.inf] * 2], [[5, 0], [0, 1]], 4)
    assert [candidate.token for candidate in candidates] == [5]


def finished(score: float) -> Hypothesis:
    return Hypothesis((GeneratedToken(2, score),), FinishReason.END, score)


def test_the_search_goes_on_while_a_live_hypothesis_can_still_win() -> None:
    params = DecodingParams(10, beam_size=4, num_outputs=2, length_penalty=0.75)
    bound = normalised_score(-4.0, 10, 0.75)
    assert can_improve(-4.0, [], params)
    assert can_improve(-4.0, [finished(-0.01)], params)  # a second place is still free
    assert can_improve(-4.0, [finished(-0.01), finished(bound - 0.01)], params)
    assert not can_improve(-4.0, [finished(-0.01), finished(bound + 0.01)], params)
    # Reaching the same score later is not enough.
    assert not can_improve(-4.0, [finished(-0.01), finished(bound)], params)


def test_ranking_keeps_the_earlier_of_equals_first() -> None:
    first, second, best = finished(-1.0), finished(-1.0), finished(-0.5)
    ranked = rank([first, second, best], 2)
    assert ranked[0] is best
    assert ranked[1] is first
