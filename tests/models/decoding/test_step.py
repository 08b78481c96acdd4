"""The batched decoder against the reference, alone and in every company."""

import itertools
from collections.abc import Sequence
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoding.choice import choose_on_device
from models.decoding.corpus import decode_corpus
from models.decoding.params import DecodingParams, Emission, Hypothesis, collect_hypotheses
from models.decoding.reference import decode_reference
from models.decoding.step import BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import StepModel
from models.precision import set_precision
from models.state import DecodeState
from models.tokenizers import BOS_ID, EOS_ID
from tests.models.decoding.toy_models import (
    SOURCE_VOCABULARY_SIZE,
    TableModel,
    make_model,
    random_language_model,
    random_table,
    random_translation_model,
    uniform_table,
)

LANGUAGE_MODEL = random_language_model()
TRANSLATION_MODEL = random_translation_model()

sampled = st.builds(
    DecodingParams,
    max_new_tokens=st.integers(1, 9),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([0.8, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    seed=st.integers(0, 1000),
    num_outputs=st.integers(1, 3),
)
beams = st.integers(2, 5).flatmap(
    lambda width: st.builds(
        DecodingParams,
        max_new_tokens=st.integers(1, 9),
        beam_size=st.just(width),
        num_outputs=st.integers(1, width),
        length_penalty=st.sampled_from([0.0, 0.75, 1.5]),
        return_attention=st.booleans(),
    )
)
prompts = st.lists(st.integers(4, 22), min_size=1, max_size=8)
requests = st.lists(st.tuples(prompts, sampled | beams), min_size=1, max_size=6)


def expected(model: StepModel, prompt: list[int], params: DecodingParams) -> list[Hypothesis]:
    emissions = itertools.chain.from_iterable(decode_reference(model, prompt, params))
    return collect_hypotheses(emissions, params.length_penalty)


def assert_same(found: list[Hypothesis], reference: list[Hypothesis]) -> None:
    """The same tokens; log-probabilities within float32 rounding, which batching changes."""
    assert [h.token_ids for h in found] == [h.token_ids for h in reference]
    assert [h.finish_reason for h in found] == [h.finish_reason for h in reference]
    assert [h.score for h in found] == pytest.approx([h.score for h in reference], abs=1e-4)
    for one, other in zip(found, reference, strict=True):
        for token, other_token in zip(one.tokens, other.tokens, strict=True):
            assert (token.attention is None) == (other_token.attention is None)
            if token.attention is not None and other_token.attention is not None:
                assert token.attention == pytest.approx(other_token.attention, abs=1e-4)


def drain(decoder: BatchedDecoder, emitted: dict[int, list[Emission]]) -> list[int]:
    complete = []
    while decoder.rows:
        result = decoder.step()
        for key, emissions in result.emissions.items():
            emitted.setdefault(key, []).extend(emissions)
        complete += result.complete
    return complete


@pytest.mark.parametrize("model", [LANGUAGE_MODEL, TRANSLATION_MODEL], ids=["lm", "seq2seq"])
@settings(max_examples=60)
@given(data=st.data())
def test_requests_that_join_at_any_time_equal_the_reference(
    model: StepModel, data: st.DataObject
) -> None:
    check_any_company(BatchedDecoder(model), model, data, requests)


@pytest.mark.parametrize("kind", [sampled, beams], ids=["sampled", "beams"])
@settings(max_examples=60)
@given(data=st.data())
def test_the_way_of_choosing_on_a_gpu_equals_the_reference(
    kind: st.SearchStrategy[DecodingParams], data: st.DataObject
) -> None:
    """Without others, whose rows would have these selected: that is done for some rows alone."""
    batch = st.lists(st.tuples(prompts, kind), min_size=3, max_size=6)
    with mock.patch("models.decoding.step.choose", choose_on_device):
        decoder = BatchedDecoder(TRANSLATION_MODEL, single_lane=True)
        check_any_company(decoder, TRANSLATION_MODEL, data, batch)


def check_any_company(
    decoder: BatchedDecoder,
    model: StepModel,
    data: st.DataObject,
    requests: st.SearchStrategy[list[tuple[list[int], DecodingParams]]],
) -> None:
    batch = data.draw(requests)
    joins = data.draw(st.lists(st.integers(0, 4), min_size=len(batch), max_size=len(batch)))
    emitted: dict[int, list[Emission]] = {}
    complete = []
    for tick in range(5):
        decoder.admit(
            [
                DecodingTask(key, prompt, params)
                for key, (prompt, params) in enumerate(batch)
                if joins[key] == tick
            ]
        )
        result = decoder.step()
        for key, emissions in result.emissions.items():
            emitted.setdefault(key, []).extend(emissions)
        complete += result.complete
    complete += drain(decoder, emitted)
    assert sorted(complete) == list(range(len(batch)))
    for key, (prompt, params) in enumerate(batch):
        found = collect_hypotheses(emitted[key], params.length_penalty)
        assert_same(found, expected(model, prompt, params))


@settings(max_examples=60)
@given(batch=requests, data=st.data())
def test_removing_requests_changes_nobody_else(
    batch: list[tuple[list[int], DecodingParams]], data: st.DataObject
) -> None:
    removed = data.draw(st.sets(st.integers(0, len(batch))))
    after = data.draw(st.integers(0, 3))
    decoder = BatchedDecoder(TRANSLATION_MODEL)
    decoder.admit([DecodingTask(key, *request) for key, request in enumerate(batch)])
    emitted: dict[int, list[Emission]] = {}
    for _ in range(after):
        for key, emissions in decoder.step().emissions.items():
            emitted.setdefault(key, []).extend(emissions)
    decoder.remove(removed)
    assert removed.isdisjoint(decoder.keys)
    drain(decoder, emitted)
    for key, (prompt, params) in enumerate(batch):
        if key not in removed:
            found = collect_hypotheses(emitted[key], params.length_penalty)
            assert_same(found, expected(TRANSLATION_MODEL, prompt, params))


def test_rows_are_one_for_each_running_output_or_live_hypothesis() -> None:
    model = uniform_table(9)
    model.table[:, EOS_ID] = -50.0
    decoder = BatchedDecoder(model)
    decoder.admit([DecodingTask(0, [BOS_ID], DecodingParams(9, temperature=1.0, num_outputs=3))])
    assert decoder.rows == 3
    decoder.admit([DecodingTask(1, [BOS_ID], DecodingParams(2, beam_size=4))])
    assert decoder.rows == 7  # with room for all that the beam may come to have
    result = decoder.step()
    assert (result.rows, result.begun, result.complete) == ([4], [0, 1], [])  # it begins with one
    assert decoder.rows == 7
    result = decoder.step()
    assert (result.rows, result.begun, result.complete) == ([7], [], [1])
    assert decoder.rows == 3
    decoder.remove([0, 99])  # nobody has the key 99
    assert decoder.rows == 0
    assert decoder.step().rows == []


@pytest.mark.parametrize("form", ["embedded", "parallel dot"])
def test_the_books_of_steps_are_the_same_however_many_are_made_at_once(form: str) -> None:
    model = set_precision(make_model(form, "gru", 29, sharpness=1.5), "int8")

    def sums(max_steps: int) -> tuple[int, ...]:
        decoder = BatchedDecoder(model)
        results = []
        for key in range(9):
            prompt = [BOS_ID, *([5 + key] * (key + 1)), EOS_ID]
            decoder.admit([DecodingTask(key, prompt, DecodingParams(3 + 2 * key))])
            results.append(decoder.step(max_steps))
        while decoder.rows:
            results.append(decoder.step(max_steps))
        assert any(len(result.rows) > 1 for result in results) == (max_steps > 1)
        begun = [key for result in results for key in result.begun]
        complete = [key for result in results for key in result.complete]
        assert sorted(begun) == sorted(complete) == list(range(9))
        return (
            sum(sum(result.rows) for result in results),
            sum(result.positions_read for result in results),
            sum(result.positions_attended for result in results),
            sum(result.padding_attended for result in results),
        )

    assert sums(1) == sums(2) == sums(8)


def test_a_finished_hypothesis_gives_its_row_back() -> None:
    decoder = BatchedDecoder(uniform_table(9))
    decoder.admit([DecodingTask(0, [BOS_ID], DecodingParams(9, beam_size=4, num_outputs=4))])
    rows = []
    while decoder.rows:
        rows.append((decoder.step().rows[0], decoder.rows))
    # Among equals <eos> comes first, so that one hypothesis ends with every step.
    assert rows == [(1, 3), (3, 2), (2, 1), (1, 0)]


def test_ties_are_broken_as_in_the_reference() -> None:
    for width in (2, 4, 6):
        params = DecodingParams(4, beam_size=width, num_outputs=width)
        found = dict(decode_corpus(uniform_table(8), [[BOS_ID]], params))
        reference = expected(uniform_table(8), [BOS_ID], params)
        assert [h.token_ids for h in found[0]] == [h.token_ids for h in reference]
        assert found[0] == reference


@pytest.mark.parametrize("max_rows", [1, 3, 64])
@pytest.mark.parametrize("width", [1, 4])
def test_a_corpus_comes_back_whole(max_rows: int, width: int) -> None:
    model = random_table(11, 0)
    prompts = [[4 + index % 7] for index in range(23)]
    params = DecodingParams(6, beam_size=width)
    found = dict(decode_corpus(model, prompts, params, max_rows=max_rows))
    assert sorted(found) == list(range(23))
    for index, prompt in enumerate(prompts):
        assert_same(found[index], expected(model, prompt, params))
    assert list(decode_corpus(model, [], params)) == []


def test_each_prompt_of_a_corpus_may_have_parameters_of_its_own() -> None:
    model = random_table(11, 0)
    prompts = [[4 + index % 7] for index in range(12)]
    each = [
        DecodingParams(1 + index, beam_size=1 + index % 4, length_penalty=index / 10)
        for index in range(12)
    ]
    found = dict(decode_corpus(model, prompts, each, max_rows=8))
    assert sorted(found) == list(range(12))
    for index, prompt in enumerate(prompts):
        assert_same(found[index], expected(model, prompt, each[index]))


def test_a_key_names_one_request() -> None:
    decoder = BatchedDecoder(LANGUAGE_MODEL)
    decoder.admit([DecodingTask(7, [BOS_ID, 5], DecodingParams(2))])
    with pytest.raises(ValueError, match="a key of its own"):
        decoder.admit([DecodingTask(7, [BOS_ID, 6], DecodingParams(2))])


def test_a_long_prompt_holds_nobody_up() -> None:
    """Who runs gets a token from every step, however long the others' prompts are."""
    decoder = BatchedDecoder(LANGUAGE_MODEL)
    decoder.admit([DecodingTask(0, [BOS_ID, 5], DecodingParams(40), stream=True)])
    assert decoder.step().emissions.keys() == {0}
    decoder.admit([DecodingTask(1, [BOS_ID, *[7] * 2000], DecodingParams(1))])
    decoder.admit([DecodingTask(2, [BOS_ID, 8], DecodingParams(1))])
    begun: dict[int, int] = {}
    for step in range(20):
        result = decoder.step()
        assert 0 in result.emissions
        begun |= dict.fromkeys(result.begun, step)
    assert begun[2] == 0  # nor does the short one wait for the long one
    assert begun[1] > 3


def test_what_is_read_is_counted_once() -> None:
    decoder = BatchedDecoder(TRANSLATION_MODEL)
    assert decoder.step().positions_read == 0
    prompts = [[5] * 7, [6] * 40, [7]]
    decoder.admit([DecodingTask(i, p, DecodingParams(3)) for i, p in enumerate(prompts)])
    counts = [decoder.step().positions_read for _ in range(3)]
    assert counts == [48, 0, 0]


@pytest.mark.parametrize("params", [DecodingParams(9), DecodingParams(9, beam_size=2)])
def test_numbers_that_are_none_end_the_request_that_has_them(params: DecodingParams) -> None:
    """Token 5 leads to a row of the table that is not a number."""
    model = random_table(9, 0)
    model.table[5] = float("nan")
    model.table[4:, 5] = -50.0
    decoder = BatchedDecoder(model)
    decoder.admit([DecodingTask(key, [key], params) for key in (4, 5, 6)])
    emitted: dict[int, list[Emission]] = {}
    result = decoder.step()
    assert result.failed == {5: "the model's probabilities are not numbers"}
    assert result.begun == [4, 6]
    assert 5 not in decoder.keys
    for key, emissions in result.emissions.items():
        emitted.setdefault(key, []).extend(emissions)
    drain(decoder, emitted)
    assert set(emitted) == {4, 6}
    for key in (4, 6):
        found = collect_hypotheses(emitted[key], params.length_penalty)
        assert_same(found, expected(model, [key], params))


def test_a_request_may_be_dropped_while_its_prompt_is_read() -> None:
    decoder = BatchedDecoder(LANGUAGE_MODEL)
    decoder.admit([DecodingTask(key, [BOS_ID, *[5] * 1000], DecodingParams(2)) for key in (1, 2)])
    decoder.step()
    assert decoder.keys == [1, 2]
    decoder.remove([1])
    assert (decoder.keys, decoder.rows) == ([2], 1)
    emitted: dict[int, list[Emission]] = {}
    assert drain(decoder, emitted) == [2]
    assert emitted.keys() == {2}


def test_decoding_needs_no_gradient() -> None:
    decoder = BatchedDecoder(LANGUAGE_MODEL)
    decoder.admit([DecodingTask(0, [BOS_ID, 5], DecodingParams(2))])
    decoder.step()
    assert torch.is_grad_enabled()


def test_rows_that_stay_where_they_are_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[list[int]] = []
    close_gaps = DecodeState.close_gaps

    def spy(self: DecodeState, rows: Sequence[int]) -> DecodeState:
        moves.append(list(rows))
        return close_gaps(self, rows)

    logits = torch.zeros(9, 9)
    logits[:, 5] = 1.0  # so that nothing ends before its length
    decoder = BatchedDecoder(TableModel(logits))
    lengths = {1: 6, 2: 3}
    decoder.admit([DecodingTask(key, [5], DecodingParams(n)) for key, n in lengths.items()])
    decoder.step()
    monkeypatch.setattr(DecodeState, "close_gaps", spy)
    for _ in range(5):
        decoder.step()
    assert moves == [[0]], "the second request leaves with the third step"


@pytest.mark.parametrize(
    ("model", "size"), [(TRANSLATION_MODEL, SOURCE_VOCABULARY_SIZE), (LANGUAGE_MODEL, 29)]
)
def test_a_prompt_of_tokens_that_there_are_not_is_refused(model: StepModel, size: int) -> None:
    """In int8 nothing else would stop it: whatever is there in memory would be read."""
    decoder = BatchedDecoder(model)
    decoder.check(DecodingTask(1, (size - 1, EOS_ID), DecodingParams(2)))
    for token in (-1, size, 2**40):
        with pytest.raises(ValueError, match="outside the model's vocabulary"):
            decoder.check(DecodingTask(1, (EOS_ID, token), DecodingParams(2)))
