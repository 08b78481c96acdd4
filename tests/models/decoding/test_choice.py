"""One step's choices for a batch of all kinds, against each row chosen for alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.decoding.beam import BeamStep, LiveBeams
from models.decoding.choice import (
    RowKinds,
    RowNeeds,
    choose,
    choose_on_device,
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
    RowNeeds,
    params,
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=1),
    st.lists(st.integers(0, SIZE - 1)),
)


def flat(beams: Sequence[Sequence[BeamStep]]) -> list[BeamStep]:
    """The only step of each search."""
    return [step for (step,) in beams]


@st.composite
def batches(draw: Callable[..., Any]) -> tuple[Tensor, Tensor, RowKinds]:
    """Logits with ties, attention weights and what each row needs."""
    rows = draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    logits = (torch.randn(rows, SIZE, generator=generator) * 4).round() / 2
    attention = torch.rand(rows, SOURCE, generator=generator)
    kinds = RowKinds()
    # As it happens in a batch that some have left: rows are not described in their order.
    for row in draw(st.permutations(range(rows))):
        kind = draw(st.sampled_from(["greedy", "special", "beam"]))
        if kind == "special":
            kinds.special[row] = draw(needs)
        elif kind == "beam":
            add_beam(kinds, row, draw(st.integers(2, 40)))
        if draw(st.booleans()):
            kinds.attended.append(row)
    return logits, attention, kinds


def add_beam(kinds: RowKinds, row: int, width: int) -> None:
    """A search with one live hypothesis."""
    beams = kinds.beams
    beams.rows.append(row)
    beams.totals.append(-float(row))
    beams.counts.append(1)
    beams.widths.append(width)


def beams_of(width: int, *rows: int) -> LiveBeams:
    kinds = RowKinds()
    for row in rows:
        add_beam(kinds, row, width)
    return kinds.beams


def alone(kinds: RowKinds, row: int) -> RowKinds:
    one = RowKinds(special={0: kinds.special[row]} if row in kinds.special else {})
    if row in kinds.beams.rows:
        place = kinds.beams.rows.index(row)
        one.beams = LiveBeams([0], [kinds.beams.totals[place]], [1], [kinds.beams.widths[place]])
    if row in kinds.attended:
        one.attended = [0]
    return one


@given(batches())
def test_log_probabilities_are_torchs(batch: tuple[Tensor, Tensor, RowKinds]) -> None:
    logits = batch[0] * 20
    expected = torch.log_softmax(logits.double(), -1).float()
    torch.testing.assert_close(log_softmax(logits), expected, atol=1e-6, rtol=1e-6)


@given(batches())
def test_a_gpu_would_choose_the_same(batch: tuple[Tensor, Tensor, RowKinds]) -> None:
    """The way over tensors, which a GPU takes, against the kernels of processors."""
    logits, attention, kinds = batch
    there = choose_on_device(logits.clone(), attention, kinds)
    here = choose(logits.clone(), attention, kinds)
    for row in set(range(len(logits))) - set(kinds.beams.rows):
        assert there.tokens[row] == here.tokens[row]
        assert there.logprobs[row] == pytest.approx(here.logprobs[row], abs=1e-6)
    for one, other in zip(*(flat(choices.beams) for choices in (there, here)), strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-6)
    assert there.attention == here.attention


@given(batches())
def test_each_row_gets_what_it_would_get_alone(batch: tuple[Tensor, Tensor, RowKinds]) -> None:
    logits, attention, kinds = batch
    choices = choose(logits.clone(), attention, kinds)
    for row in range(len(logits)):
        one = choose(logits[row : row + 1].clone(), attention[row : row + 1], alone(kinds, row))
        assert choices.attention.get(row) == one.attention.get(0)
        if row in kinds.beams.rows:
            assert choices.beams[kinds.beams.rows.index(row)] == one.beams[0]
        else:
            assert (choices.tokens[row], choices.logprobs[row]) == (
                one.tokens[0],
                one.logprobs[0],
            )
    assert set(choices.attention) == set(kinds.attended)


@given(batches())
def test_each_row_gets_what_its_kind_asks_for(batch: tuple[Tensor, Tensor, RowKinds]) -> None:
    logits, attention, kinds = batch
    choices = choose(logits.clone(), attention, kinds)
    logprobs = log_softmax(logits).tolist()
    greedy = DecodingParams(1)
    for row in range(len(logits)):
        if row in kinds.attended:
            assert choices.attention[row] == attention[row].tolist()
        if row in kinds.beams.rows:
            place = kinds.beams.rows.index(row)
            allowed = (token for token in range(SIZE) if token not in NEVER_GENERATED)
            best = sorted(allowed, key=lambda token: (-logprobs[row][token], token))
            best = best[: kinds.beams.widths[place]]
            assert flat(choices.beams)[place] == BeamStep(
                [0] * len(best),
                best,
                [logprobs[row][token] for token in best],
                [kinds.beams.totals[place] + logprobs[row][token] for token in best],
            )
            continue
        need = kinds.special.get(row, RowNeeds(greedy, [0.0], ()))
        token = int(choose_tokens(logits[row : row + 1], [need.params], need.uniforms, [need.seen]))
        assert choices.tokens[row] == token
        assert choices.logprobs[row] == logprobs[row][token]


@pytest.mark.parametrize("kind", ["greedy", "special", "beam"])
def test_a_batch_of_one_kind_without_attention(kind: str) -> None:
    logits = torch.randn(3, 8003)
    need = RowNeeds(DecodingParams(1, temperature=1.0), [0.5], ())
    kinds = RowKinds(
        special=dict.fromkeys(range(3), need) if kind == "special" else {},
        beams=beams_of(5, 0, 1, 2) if kind == "beam" else LiveBeams(),
        attended=[0, 2],
    )
    choices = choose(logits, None, kinds)
    assert choices.attention == {}
    assert [len(step.tokens) for step in flat(choices.beams)] == ([5] * 3 if kind == "beam" else [])
    assert all(isinstance(token, int) for token in choices.tokens)


@pytest.mark.parametrize("hostile", [math.nan, math.inf])
def test_a_row_that_is_no_number_harms_no_other(hostile: float) -> None:
    logits = torch.randn(4, 8003)
    expected = choose(logits.clone(), None, RowKinds(beams=beams_of(4, 3)))
    broken = logits.clone()
    broken[0, 100], broken[1, 100], broken[2] = hostile, hostile, -hostile
    need = RowNeeds(DecodingParams(1, temperature=1.0, top_p=0.9), [0.5], ())
    choices = choose(broken, None, RowKinds(special={0: need}, beams=beams_of(4, 2, 3)))
    assert all(math.isnan(choices.logprobs[row]) for row in (0, 1, 2))
    assert flat(choices.beams)[0].tokens == []
    assert choices.beams[1] == expected.beams[0]
