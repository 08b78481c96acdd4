"""One step's choices for a batch of all kinds, against each row chosen for alone."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.decoding.choice import (
    Choices,
    RowKinds,
    RowNeeds,
    choose,
    compute_choices,
    log_softmax,
)
from models.decoding.params import DecodingParams
from models.decoding.sampling import NEVER_GENERATED, choose_tokens

SIZE, SOURCE = 29, 16

params = st.builds(
    DecodingParams,
    max_new_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 0.3, 2.0]),
    top_k=st.sampled_from([0, 4]),
    top_p=st.sampled_from([0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
)
needs = st.builds(
    RowNeeds, params, st.floats(0, 1, exclude_max=True), st.lists(st.integers(0, SIZE - 1))
)


@st.composite
def batches(draw: Callable[..., Any]) -> tuple[Tensor, Tensor, RowKinds]:
    """Logits with ties, attention weights and what each row needs."""
    rows = draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    logits = (torch.randn(rows, SIZE, generator=generator) * 4).round() / 2
    attention = torch.rand(rows, SOURCE, generator=generator)
    kinds = RowKinds()
    for row in range(rows):
        kind = draw(st.sampled_from(["greedy", "special", "beam"]))
        if kind == "special":
            kinds.special[row] = draw(needs)
        elif kind == "beam":
            kinds.beam.append(row)
            kinds.beam_width = max(kinds.beam_width, draw(st.integers(2, 40)))
        if draw(st.booleans()):
            kinds.attended.append(row)
    return logits, attention, kinds


def alone(kinds: RowKinds, row: int) -> RowKinds:
    return RowKinds(
        special={0: kinds.special[row]} if row in kinds.special else {},
        beam=[0] if row in kinds.beam else [],
        beam_width=kinds.beam_width,
        attended=[0] if row in kinds.attended else [],
    )


@given(batches())
def test_log_probabilities_are_torchs(batch: tuple[Tensor, Tensor, RowKinds]) -> None:
    logits = batch[0] * 20
    expected = torch.log_softmax(logits.double(), -1).float()
    torch.testing.assert_close(log_softmax(logits), expected, atol=1e-6, rtol=1e-6)


@given(batches())
def test_a_gpu_would_choose_the_same(batch: tuple[Tensor, Tensor, RowKinds]) -> None:
    """The way over tensors, which a GPU takes, against the kernels of processors."""
    logits, attention, kinds = batch
    tokens, logprobs, *rest = compute_choices(logits.clone(), attention, kinds)
    choices = choose(logits.clone(), attention, kinds)
    for row in set(range(len(logits))) - set(kinds.beam):
        assert choices.tokens[row] == int(tokens[row])
        assert choices.logprobs[row] == pytest.approx(float(logprobs[row]), abs=1e-6)
    if kinds.beam:
        found = [choices.candidate_logprobs[row] for row in kinds.beam]
        assert np.ravel(found) == pytest.approx(rest[1].numpy(), abs=1e-6)


@given(batches())
def test_each_row_gets_what_it_would_get_alone(batch: tuple[Tensor, Tensor, RowKinds]) -> None:
    logits, attention, kinds = batch
    choices = choose(logits.clone(), attention, kinds)
    for row in range(len(logits)):
        one = choose(logits[row : row + 1].clone(), attention[row : row + 1], alone(kinds, row))
        assert_row(choices, row, one)
    assert set(choices.candidates) == set(choices.candidate_logprobs) == set(kinds.beam)
    assert set(choices.attention) == set(kinds.attended)


def assert_row(choices: Choices, row: int, one: Choices) -> None:
    for mapping, expected in (
        (choices.candidates, one.candidates),
        (choices.candidate_logprobs, one.candidate_logprobs),
        (choices.attention, one.attention),
    ):
        assert mapping.get(row) == expected.get(0)
    if 0 not in one.candidates:
        assert (choices.tokens[row], choices.logprobs[row]) == (one.tokens[0], one.logprobs[0])


@given(batches())
def test_each_row_gets_what_its_kind_asks_for(batch: tuple[Tensor, Tensor, RowKinds]) -> None:
    logits, attention, kinds = batch
    choices = choose(logits.clone(), attention, kinds)
    logprobs = log_softmax(logits).tolist()
    greedy = DecodingParams(1)
    for row in range(len(logits)):
        if row in kinds.attended:
            assert choices.attention[row] == attention[row].tolist()
        if row in kinds.beam:
            allowed = (token for token in range(SIZE) if token not in NEVER_GENERATED)
            best = sorted(allowed, key=lambda token: (-logprobs[row][token], token))
            count = min(kinds.beam_width, len(best))
            assert choices.candidates[row][:count] == best[:count]
            assert choices.candidate_logprobs[row][:count] == [
                logprobs[row][token] for token in best[:count]
            ]
            # What is never generated may follow, where there is nothing else.
            assert set(choices.candidate_logprobs[row][count:]) <= {-math.inf}
            continue
        need = kinds.special.get(row, RowNeeds(greedy, 0.0, ()))
        token = int(
            choose_tokens(logits[row : row + 1], [need.params], [need.uniform], [need.seen])
        )
        assert choices.tokens[row] == token
        assert choices.logprobs[row] == logprobs[row][token]


@pytest.mark.parametrize("kind", ["greedy", "special", "beam"])
def test_a_batch_of_one_kind_without_attention(kind: str) -> None:
    logits = torch.randn(3, 8003)
    need = RowNeeds(DecodingParams(1, temperature=1.0), 0.5, ())
    kinds = RowKinds(
        special=dict.fromkeys(range(3), need) if kind == "special" else {},
        beam=[0, 1, 2] if kind == "beam" else [],
        beam_width=5,
        attended=[0, 2],
    )
    choices = choose(logits, None, kinds)
    assert choices.attention == {}
    assert len(choices.candidates) == (3 if kind == "beam" else 0)
    assert all(len(tokens) == 5 for tokens in choices.candidates.values())
    assert all(isinstance(token, int) for token in choices.tokens)


@pytest.mark.parametrize("hostile", [math.nan, math.inf])
def test_a_row_that_is_no_number_harms_no_other(hostile: float) -> None:
    logits = torch.randn(4, 8003)
    expected = choose(logits.clone(), None, RowKinds(beam=[3], beam_width=4))
    broken = logits.clone()
    broken[0, 100], broken[1, 100], broken[2] = hostile, hostile, -hostile
    need = RowNeeds(DecodingParams(1, temperature=1.0, top_p=0.9), 0.5, ())
    choices = choose(broken, None, RowKinds(special={0: need}, beam=[2, 3], beam_width=4))
    assert all(math.isnan(choices.logprobs[row]) for row in (0, 1, 2))
    assert not any(logprob > -math.inf for logprob in choices.candidate_logprobs[2])
    assert choices.candidates[3] == expected.candidates[3]
    assert choices.candidate_logprobs[3] == expected.candidate_logprobs[3]
