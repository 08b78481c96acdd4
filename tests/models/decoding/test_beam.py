import torch
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
    expansion = expand(torch.tensor([row for row, _ in live]), [sum_ for _, sum_ in live], width)
    everything = sorted(
        (-(sum_ + logprob), parent, token)
        for parent, (row, sum_) in enumerate(live)
        for token, logprob in enumerate(row)
        if token not in NEVER_GENERATED
    )
    found = list(zip(expansion.cumulative, expansion.parents, expansion.tokens, strict=True))
    assert found == [(-score, parent, token) for score, parent, token in everything[:width]]


def test_sums_are_kept_in_double_precision() -> None:
    logprobs = torch.full((1, SIZE), -0.1)
    (best, *_), _, _ = expand(logprobs, [-1e8], 1)
    assert best == -1e8 + float(logprobs[0, 2])


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
