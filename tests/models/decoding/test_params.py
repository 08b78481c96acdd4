import dataclasses
import math
from typing import Any

import pytest

from models.decoding.params import (
    MAX_SEED,
    DecodingParams,
    Emission,
    FinishReason,
    GeneratedToken,
    collect_hypotheses,
    complete_hypothesis,
    emit_hypotheses,
    normalised_score,
    total_logprob,
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("temperature", 0.001),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-30),
        ("repetition_penalty", 1e30),
        ("repetition_penalty", math.nan),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("num_outputs", 0),
        ("beam_size", 0),
        ("length_penalty", -1.0),
        ("length_penalty", math.nan),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        dataclasses.replace(DecodingParams(5), **{name: value})


def test_a_beam_refuses_what_it_cannot_honour() -> None:
    refused: list[dict[str, Any]] = [{"temperature": 0.5}, {"repetition_penalty": 1.2}]
    for values in refused:
        with pytest.raises(ValueError, match="beam_size above 1"):
            dataclasses.replace(DecodingParams(5, beam_size=2), **values)
    with pytest.raises(ValueError, match=r"num_outputs \(3\) is above beam_size \(2\)"):
        DecodingParams(5, beam_size=2, num_outputs=3)


def test_output_seeds_count_on_from_the_request_seed() -> None:
    params = DecodingParams(5, temperature=1.0, seed=MAX_SEED - 1, num_outputs=4)
    assert [params.output_seed(i) for i in range(4)] == [MAX_SEED - 1, MAX_SEED, 0, 1]
    assert params.output_seed(0) == params.seed


def test_normalised_score_by_hand() -> None:
    # The book's example: 4 tokens with alpha 0.75 divide by 4^0.75 = 2.828...
    assert normalised_score(-2.0, 4, 0.75) == pytest.approx(-2.0 / 2.8284271)
    assert normalised_score(-2.0, 4, 0.0) == -2.0
    assert normalised_score(-2.0, 4, 1.0) == -0.5


def test_log_probabilities_are_added_one_by_one() -> None:
    """As searches add them: a sum that compensates for rounding, as Python's own since 3.12,
    would be -1 here.
    """
    assert total_logprob([-0.1] * 10) == -0.9999999999999999
    hypothesis = complete_hypothesis((GeneratedToken(5, -0.1),) * 10, FinishReason.END, 0.0)
    assert hypothesis.score == hypothesis.logprob == -0.9999999999999999


def test_over_fixed_candidates_a_larger_alpha_never_picks_a_shorter_one() -> None:
    candidates = [(-1.0, 2), (-1.4, 3), (-2.1, 5), (-3.0, 9), (-9.0, 10)]

    def picked_length(alpha: float) -> int:
        return max(candidates, key=lambda c: normalised_score(c[0], c[1], alpha))[1]

    lengths = [picked_length(alpha / 20) for alpha in range(61)]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_emissions_and_hypotheses_are_two_views_of_one_thing() -> None:
    tokens = tuple(GeneratedToken(token, -0.5 * token) for token in (4, 5, 2))
    hypotheses = [
        complete_hypothesis(tokens, FinishReason.END, 0.75),
        complete_hypothesis(tokens[:2], FinishReason.LENGTH, 0.75),
    ]
    emissions = emit_hypotheses(hypotheses)
    assert emissions == [
        Emission(0, tokens, FinishReason.END),
        Emission(1, tokens[:2], FinishReason.LENGTH),
    ]
    assert collect_hypotheses(emissions, 0.75) == hypotheses
    # Token by token, or some at a time, they make the same whole, outputs mixed or not.
    streamed = [
        Emission(0, tokens[:1], None),
        Emission(1, tokens[:1], None),
        Emission(0, tokens[1:], FinishReason.END),
        Emission(1, tokens[1:2], FinishReason.LENGTH),
    ]
    assert collect_hypotheses(streamed, 0.75) == hypotheses
    assert hypotheses[0].logprob == -5.5
    assert hypotheses[0].score == normalised_score(-5.5, 3, 0.75)
    assert hypotheses[0].token_ids == (4, 5, 2)
    assert collect_hypotheses([Emission(0, tokens[:1], None)], 0.75) == []
