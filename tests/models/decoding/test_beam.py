import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.decoding.beam import BeamSearch, BeamStep, LiveBeams, can_improve, expand, rank
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
beams = st.tuples(
    st.lists(
        st.tuples(st.lists(values, min_size=SIZE, max_size=SIZE), st.sampled_from([-1.0, -2.0])),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 40),
)
Live = list[tuple[list[float], float]]


def expand_all(searches: list[tuple[Live, int]]) -> list[BeamStep]:
    """Of each search the live hypotheses, log-probabilities and sum, and how many it keeps."""
    rows = [one for live, _ in searches for one in live]
    together = LiveBeams(
        list(range(len(rows))),
        [total for _, total in rows],
        [len(live) for live, _ in searches],
        [width for _, width in searches],
    )
    best = [best_tokens(row, together.width) for row, _ in rows]
    logprobs = [[row[t] for t in tokens] for (row, _), tokens in zip(rows, best, strict=True)]
    return expand(together, np.array(best), np.array(logprobs, np.float32))


def best_tokens(logprobs: list[float], width: int) -> list[int]:
    """Those of one row, best first, as the batched decoder hands them over."""
    allowed = (token for token in range(len(logprobs)) if token not in NEVER_GENERATED)
    return sorted(allowed, key=lambda token: (-logprobs[token], token))[:width]


@given(st.lists(beams, min_size=1, max_size=3))
def test_expansion_equals_sorting_every_continuation(searches: list[tuple[Live, int]]) -> None:
    """Score first, then the parent, then the lowest token: ties are common here."""
    for (live, width), step in zip(searches, expand_all(searches), strict=True):
        everything = sorted(
            (-(total + logprob), parent, token)
            for parent, (row, total) in enumerate(live)
            for token, logprob in enumerate(row)
            if token not in NEVER_GENERATED
        )
        found = zip(step.totals, step.parents, step.tokens, strict=True)
        assert [(-total, *rest) for total, *rest in found] == everything[:width]
        for parent, token, logprob, _ in zip(*step, strict=True):
            assert logprob == live[parent][0][token]


def expand_one(totals: list[float], logprobs: list[list[float]], width: int) -> BeamStep:
    """Of one search, whose candidates have the tokens 9, 8, 7 ..."""
    ids = np.array([range(9, 9 - len(row), -1) for row in logprobs])
    live = LiveBeams(list(range(len(totals))), totals, [len(totals)], [width])
    (step,) = expand(live, ids, np.array(logprobs, np.float32))
    return step


def test_sums_are_kept_in_double_precision() -> None:
    assert expand_one([-1e8], [[-0.125]], 1).totals == [-1e8 - 0.125]


def test_sums_that_round_to_the_same_go_to_the_lower_token() -> None:
    assert expand_one([-1e17], [[-0.1, -0.2, -0.3]], 3).tokens == [7, 8, 9]


def test_what_one_search_keeps_does_not_depend_on_the_width_of_others() -> None:
    """Candidates that only a wider beam needs could come in where sums round to the same."""
    ids, logprobs = np.array([[9, 8, 7]] * 2), np.array([[-0.1, -0.2, -0.3]] * 2, np.float32)
    step, _ = expand(LiveBeams([0, 1], [-1e17] * 2, [1, 1], [2, 3]), ids, logprobs)
    assert step.tokens == [8, 9]


def test_what_has_no_probability_is_no_continuation() -> None:
    """The special tokens come as candidates too where few others are left."""
    step = expand_one([-1.0, -2.0], [[-0.5, -math.inf], [-math.inf] * 2], 4)
    assert step == BeamStep([0], [9], [-0.5], [-1.5])


def test_a_hypothesis_whose_probabilities_are_no_numbers_ends_its_search_alone() -> None:
    ids = np.array([[9, 8]] * 3)
    logprobs = np.array([[-1.0, -2.0], [math.nan, math.nan], [-1.0, -2.0]], np.float32)
    broken, sound = expand(LiveBeams([0, 1, 2], [0.0] * 3, [2, 1], [2, 2]), ids, logprobs)
    assert broken.tokens == []
    assert sound.tokens == [9, 8]


def test_a_search_finds_its_way_back() -> None:
    search = BeamSearch(DecodingParams(9, beam_size=2))
    search.go_on(BeamStep([0, 0], [5, 6], [-1.0, -2.0], [-1.0, -2.0]), [(0.5,), (0.25,)])
    search.go_on(BeamStep([1, 0], [7, 8], [-0.5, -3.0], [-2.5, -4.0]), [(0.75,), (1.0,)])
    tokens = search.tokens(BeamStep([1, 0], [3, 2], [-0.1, -0.2], [-4.1, -2.7]), 1, (0.0,))
    assert tokens == (
        GeneratedToken(6, -2.0, (0.25,)),
        GeneratedToken(7, -0.5, (0.75,)),
        GeneratedToken(2, -0.2, (0.0,)),
    )


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


def test_only_the_hypotheses_that_are_wanted_have_to_be_beaten() -> None:
    """A search that went on until it beat the worst of all would take longer for nothing."""
    finished = [finish_at(-1.0), finish_at(-4.0), finish_at(-2.0)]
    for num_outputs, improves in ((1, False), (2, False), (3, True), (4, True)):
        params = DecodingParams(10, beam_size=4, num_outputs=num_outputs, length_penalty=0.0)
        assert can_improve(-3.0, finished, params) is improves


def finish_at(score: float) -> Hypothesis:
    return Hypothesis((GeneratedToken(3, score),), FinishReason.END, score)
