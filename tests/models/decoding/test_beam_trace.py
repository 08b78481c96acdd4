"""The trace of a search: what it says is what the search did, in every company."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoding.params import (
    BeamTrace,
    DecodingParams,
    Emission,
    FinishReason,
    Hypothesis,
    collect_hypotheses,
    normalised_score,
)
from models.decoding.step import BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import StepModel
from models.precision import set_precision
from models.tokenizers import EOS_ID
from tests.models.decoding.toy_models import make_model, random_table, uniform_table

SOURCES = st.lists(st.integers(4, 22), min_size=1, max_size=8)
BEAMS = st.integers(1, 5).flatmap(
    lambda width: st.builds(
        DecodingParams,
        max_new_tokens=st.integers(1, 9),
        beam_size=st.just(width),
        num_outputs=st.integers(1, width),
        length_penalty=st.sampled_from([0.0, 0.75, 1.5]),
        return_beam_trace=st.just(True),
    )
)


@pytest.fixture(scope="module")
def translator() -> StepModel:
    """In int8, where a row's result is the same bits in every batch."""
    model: StepModel = set_precision(make_model("additive", "gru", 29), "int8")
    return model


def run(
    model: StepModel, *requests: tuple[list[int], DecodingParams]
) -> tuple[list[list[Hypothesis]], dict[int, BeamTrace]]:
    """The hypotheses of each request and the traces, all decoded together."""
    decoder = BatchedDecoder(model)
    decoder.admit([DecodingTask(key, *request) for key, request in enumerate(requests)])
    emitted: dict[int, list[Emission]] = {}
    traces: dict[int, BeamTrace] = {}
    while decoder.rows:
        result = decoder.step()
        for key, emissions in result.emissions.items():
            emitted.setdefault(key, []).extend(emissions)
        traces.update(result.traces)
    found = [
        collect_hypotheses(emitted[key], params.length_penalty)
        for key, (_, params) in enumerate(requests)
    ]
    return found, traces


def path(trace: BeamTrace, step: int, place: int) -> list[tuple[int, float]]:
    """Tokens and log-probabilities of a candidate from the first step on."""
    kept = trace[step][place]
    before = [] if kept.parent is None else path(trace, step - 1, kept.parent)
    return [*before, (kept.token, kept.logprob)]


@settings(max_examples=60)
@given(source=SOURCES, params=BEAMS)
def test_the_complete_candidates_are_the_hypotheses(
    translator: StepModel, source: list[int], params: DecodingParams
) -> None:
    ([hypotheses], traces) = run(translator, (source, params))
    trace = traces[0]
    complete = [
        (kept, path(trace, step, place))
        for step, candidates in enumerate(trace)
        for place, kept in enumerate(candidates)
        if kept.finish_reason is not None
    ]
    complete.sort(key=lambda entry: -entry[0].score)
    for (kept, tokens), hypothesis in zip(complete, hypotheses, strict=False):
        assert kept.score == hypothesis.score
        assert kept.finish_reason == hypothesis.finish_reason
        assert tokens == [(token.token, token.logprob) for token in hypothesis.tokens]
    assert len(complete) >= len(hypotheses)


@settings(max_examples=60)
@given(source=SOURCES, params=BEAMS)
def test_every_step_keeps_the_rules(
    translator: StepModel, source: list[int], params: DecodingParams
) -> None:
    _, traces = run(translator, (source, params))
    finished = 0
    for step, kept in enumerate(traces[0]):
        assert 1 <= len(kept) <= params.beam_size - finished
        scores = [candidate.score for candidate in kept]
        assert scores == sorted(scores, reverse=True)
        at_limit = step + 1 == params.max_new_tokens
        for place, candidate in enumerate(kept):
            total = sum(logprob for _, logprob in path(traces[0], step, place))
            assert candidate.score == normalised_score(total, step + 1, params.length_penalty)
            if candidate.token == EOS_ID:
                assert candidate.finish_reason is FinishReason.END
            else:
                assert candidate.finish_reason is (FinishReason.LENGTH if at_limit else None)
            if candidate.parent is not None:
                assert traces[0][step - 1][candidate.parent].finish_reason is None
        finished += sum(candidate.finish_reason is not None for candidate in kept)


@settings(max_examples=40)
@given(batch=st.lists(st.tuples(SOURCES, BEAMS), min_size=2, max_size=5), data=st.data())
def test_a_trace_does_not_depend_on_who_else_runs(
    translator: StepModel, batch: list[tuple[list[int], DecodingParams]], data: st.DataObject
) -> None:
    silent = data.draw(st.sets(st.integers(0, len(batch) - 1)))
    mixed = [
        (source, replace(params, return_beam_trace=key not in silent))
        for key, (source, params) in enumerate(batch)
    ]
    found, traces = run(translator, *mixed)
    assert set(traces) == set(range(len(batch))) - silent
    for key, request in enumerate(batch):
        (alone, traces_alone) = run(translator, request)
        # Bit for bit, asked for or not.
        assert found[key] == alone[0]
        if key not in silent:
            assert traces[key] == traces_alone[0]


def test_a_beam_of_one_is_the_greedy_search(translator: StepModel) -> None:
    params = DecodingParams(max_new_tokens=9, return_beam_trace=True)
    ([[hypothesis]], traces) = run(translator, ([5, 9, 13, 2], params))
    assert all(len(kept) == 1 for kept in traces[0])
    tokens = [(kept[0].token, kept[0].logprob) for kept in traces[0]]
    assert tokens == [(token.token, token.logprob) for token in hypothesis.tokens]
    assert [kept[0].parent for kept in traces[0]] == [None, *[0] * (len(tokens) - 1)]
    assert traces[0][-1][0].score == hypothesis.score
    assert traces[0][-1][0].finish_reason == hypothesis.finish_reason


def test_ties_go_to_the_earlier_parent_and_the_lower_token() -> None:
    _, traces = run(
        uniform_table(9),
        ([4], DecodingParams(3, beam_size=3, num_outputs=3, return_beam_trace=True)),
    )
    first, second, _ = traces[0]
    assert [kept.token for kept in first] == [EOS_ID, 4, 5]
    # The first one is complete: the second step continues those behind it.
    assert [(kept.parent, kept.token) for kept in second] == [(1, EOS_ID), (1, 4)]


def test_the_numbers_are_those_of_the_model() -> None:
    model = random_table(11, seed=4)
    _, traces = run(model, ([4], DecodingParams(5, beam_size=3, return_beam_trace=True)))
    tokens_before = [4]
    for kept in traces[0]:
        for candidate in kept:
            row = model.table[tokens_before[candidate.parent or 0]]
            logprob = torch.log_softmax(row, dim=-1)[candidate.token].item()
            assert candidate.logprob == pytest.approx(logprob, abs=1e-6)
        tokens_before = [candidate.token for candidate in kept]


def test_there_is_no_trace_of_samples() -> None:
    with pytest.raises(ValueError, match="a beam trace is that of one search"):
        DecodingParams(9, temperature=1.0, return_beam_trace=True)
    with pytest.raises(ValueError, match="a beam trace is that of one search"):
        DecodingParams(9, num_outputs=2, return_beam_trace=True)
