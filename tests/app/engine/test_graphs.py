"""Steps as graphs: their shapes, their padding, and that they change nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engine.graphs import (
    MAX_GRAPHS,
    MAX_SOURCE_POSITIONS,
    USES_BEFORE_REPLACING,
    Compute,
    GraphedModel,
    GraphKey,
    StaticInputs,
    bucket,
    graph_key,
    padded_cells,
)
from models import fused_layers, placement, recurrent
from models.config import CellName
from models.decoding.params import DecodingParams, Emission, StateReturn
from models.decoding.step import BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import StepModel, read_at_once
from models.precision import Precision, set_precision
from models.state import AttentionMemory, DecodeState, RowLayout, join_memories
from models.tokenizers import BOS_ID
from tests.app.engine.graph_cases import (
    CheckedModel,
    RecordingCapture,
    at_once,
    cell_of,
    decode,
    flatten,
    make_tasks,
)
from tests.models.decoding.test_continuation import decode as decode_one
from tests.models.decoding.toy_models import FORMS, make_model, random_language_model
from tests.models.meta_device import META, meta_device


def make_memory(
    lines: int, size: int, width: int = 1, counts: Sequence[int] | None = None
) -> AttentionMemory:
    """Sources, with so many rows each where they are not all full."""
    layout = RowLayout(width)
    if counts is not None:
        cells = [line * width + i for line, count in enumerate(counts) for i in range(count)]
        layout = RowLayout(width, torch.tensor(cells), lines)
    mask = torch.ones(lines, size, dtype=torch.bool)
    keys, values = torch.randn(lines, size, 5), torch.randn(lines, size, 7)
    return AttentionMemory(keys, values, mask, layout=layout)


def make_state(rows: int, memory: AttentionMemory | None = None) -> DecodeState:
    return DecodeState(((torch.randn(rows, 3),), (torch.randn(rows, 3),)), memory=memory)


# ---------------------------------------------------------------- states that come back


def test_a_text_goes_on_from_its_state_with_graphs_too() -> None:
    """A state is taken out before the next step overwrites it."""
    model = random_language_model()
    graphed = GraphedModel(model, RecordingCapture())
    prompt, params = (BOS_ID, 5, 6), DecodingParams(9, temperature=1.0, seed=1)
    each_token = replace(params, return_state=StateReturn.EACH_TOKEN)
    whole = decode_one(model, prompt, params)[0]
    for length in range(1, len(whole.tokens)):
        first = replace(each_token, max_new_tokens=length)
        part = decode_one(graphed, prompt, first, stream=True)[0]
        assert part.state is not None
        rest = replace(params, max_new_tokens=9 - length)
        last = decode_one(graphed, part.state.window[-1:], rest, resume=part.state)[0]
        assert (*part.tokens, *last.tokens) == whole.tokens
    with pytest.raises(ValueError, match="only a language model's state"):
        GraphedModel(make_model("additive", "gru", 29), RecordingCapture()).initial_state(1)


# ---------------------------------------------------------------- shapes


@given(st.integers(1, 3000))
def test_a_bucket_holds_its_rows_and_little_more(count: int) -> None:
    size = bucket(count)
    assert count <= size < max(2 * count, count + 32)
    assert bucket(size) == size
    assert bucket(count + 1) >= size


def test_there_are_few_buckets() -> None:
    assert sorted({bucket(count) for count in range(1, 129)}) == [
        1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128,
    ]  # fmt: skip


def test_the_key_without_sources_is_the_bucket_alone() -> None:
    assert graph_key(make_state(3)) == GraphKey(rows=4)
    assert graph_key(make_state(65)) == graph_key(make_state(96)) == GraphKey(rows=96)


def test_the_key_with_a_source_for_each_row() -> None:
    key = GraphKey(rows=4, lines=4, width=1, size=16)
    assert graph_key(make_state(3, make_memory(3, 16))) == key
    # A source that was not stored yet is as short as it is.
    assert graph_key(make_state(3, make_memory(3, 5))) == key
    assert graph_key(make_state(3, make_memory(3, 17))) == key._replace(size=32)


def test_rows_that_share_sources_have_one_key_full_or_not() -> None:
    # 8 rows need no padding, 7 need a line for the one that is padding.
    key = GraphKey(rows=8, lines=2, width=4, size=16, has_cells=True)
    assert graph_key(make_state(8, make_memory(2, 16, 4))) == key
    assert graph_key(make_state(7, make_memory(2, 16, 4, [4, 3]))) == key._replace(lines=4)
    assert graph_key(make_state(5, make_memory(3, 16, 4, [4, 0, 1]))) == key._replace(lines=4)
    # Spread over cells though each has one: another graph than that of a row for each source.
    spread = graph_key(make_state(2, make_memory(2, 16, 1, [1, 1])))
    assert spread == GraphKey(rows=2, lines=2, width=1, size=16, has_cells=True)


def test_what_has_no_graph() -> None:
    several = join_memories([make_memory(2, 16), make_memory(1, 32)])
    assert graph_key(make_state(3, several)) is None
    size = MAX_SOURCE_POSITIONS // 8
    assert graph_key(make_state(8, make_memory(8, size))) is not None
    assert graph_key(make_state(9, make_memory(9, size))) is None
    assert graph_key(make_state(8, make_memory(8, size + 1))) is None


counts_of_rows = st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any)


@given(counts=counts_of_rows, is_full=st.booleans())
def test_no_two_rows_share_a_cell_and_padding_meets_no_real_source(
    counts: list[int], is_full: bool
) -> None:
    width = max(counts)
    if is_full:
        counts = [width] * len(counts)
    memory = make_memory(len(counts), 16, width, None if is_full else counts)
    state = make_state(sum(counts), memory)
    key = graph_key(state)
    assert key is not None
    cells = padded_cells(memory, key.rows).tolist()
    expected = [line * width + i for line, count in enumerate(counts) for i in range(count)]
    assert cells[: state.rows] == expected
    assert len(set(cells)) == key.rows
    assert all(cell >= len(counts) * width for cell in cells[state.rows :])
    assert max(cells) < key.lines * key.width or not key.has_cells


# ---------------------------------------------------------------- inputs


def test_inputs_are_put_in_front_and_every_line_has_a_position() -> None:
    short, long = make_memory(2, 16), make_memory(3, 9)
    short.mask[:, 4:] = False
    first, second = make_state(2, short), make_state(3, long)
    key = GraphKey(rows=4, lines=4, width=1, size=16)
    inputs = StaticInputs(key, first)
    static = inputs.state.memory
    assert static is not None
    assert static.mask.sum(-1).tolist() == [1, 1, 1, 1]
    inputs.write(torch.tensor([7, 8]), first)
    assert static.mask.sum(-1).tolist() == [4, 4, 1, 1]
    inputs.write(torch.tensor([4, 5, 6]), second)
    assert inputs.tokens.tolist() == [4, 5, 6, 0]
    assert static.mask.sum(-1).tolist() == [9, 9, 9, 1]
    assert torch.equal(static.mask[:3, :9], long.mask)
    assert torch.equal(static.values[:3, :9], long.values)
    assert torch.equal(inputs.state.layers[1][0][:3], second.layers[1][0])
    inputs.write(torch.tensor([1]), make_state(1, make_memory(1, 3)))
    assert static.mask.sum(-1).tolist() == [3, 9, 9, 1]


# ---------------------------------------------------------------- the same answers


def written(emitted: Mapping[int, Sequence[Emission]]) -> dict[int, list[tuple[int, list[int]]]]:
    """The tokens that each request was told, by output."""
    return {
        key: [(one.output_index, [token.token for token in one.tokens]) for one in emissions]
        for key, emissions in emitted.items()
    }


def graphed(model: StepModel, *, records: bool = True) -> GraphedModel:
    return GraphedModel(model, RecordingCapture(records=records))


@pytest.mark.parametrize("form", FORMS)
def test_a_recorded_step_is_the_same_bits_as_a_padded_one(form: str) -> None:
    model = make_model(form, cell_of(form), 29)
    tasks = make_tasks(form, 7, seed=list(FORMS).index(form))
    computed = GraphedModel(model, at_once)
    assert repr(decode(graphed(model), tasks)) == repr(decode(computed, tasks))


@pytest.mark.parametrize("form", FORMS)
def test_every_way_that_a_gpu_takes_leads_to_the_same_tokens(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs, torch's layers, rows that are selected at every step, choices by tensors."""
    cells: tuple[CellName, ...] = ("gru", "lstm", "rnn")  # those that torch has
    cell = cells[list(FORMS).index(form) % len(cells)]
    model = make_model(form, cell, 29, sharpness=2, implementation="torch")
    tasks = make_tasks(form, 14, seed=list(FORMS).index(form))
    here = decode(model, tasks)
    monkeypatch.setattr(placement, "is_apart", lambda _: True)
    for module in (fused_layers, recurrent):
        monkeypatch.setattr(module, "starting_dominates", lambda _: True)
    there = decode(graphed(model), tasks)
    assert written(there) == written(here)


@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_no_bit_in_int8(form: str) -> None:
    model = set_precision(make_model(form, cell_of(form), 29), "int8")
    tasks = make_tasks(form, 7, seed=list(FORMS).index(form))
    with_graphs = graphed(model, records=False)
    assert repr(decode(with_graphs, tasks)) == repr(decode(model, tasks))
    assert len({key.rows for key in with_graphs.keys}) > 1
    # Of integers each row knows its source.
    assert {key.width for key in with_graphs.keys} == {1 if "attention" in FORMS[form] else 0}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_every_step_is_that_of_the_model_but_for_rounding(form: str, precision: Precision) -> None:
    model = set_precision(make_model(form, cell_of(form), 29, sharpness=1), precision)
    checked = CheckedModel(model, at_once, 1e-5 if precision == "float32" else 0.02)
    decode(checked, make_tasks(form, 6, seed=1))
    assert checked.steps > 5
    widths = {key.width for key in checked.keys}
    assert len(widths) > 1 if "attention" in FORMS[form] else widths == {0}


def test_a_shape_is_captured_once_and_its_results_stay_in_place() -> None:
    captured: list[Compute] = []

    def capture(compute: Compute) -> Compute:
        captured.append(compute)
        return RecordingCapture()(compute)

    model = GraphedModel(random_language_model(), capture)
    tokens, state = read_at_once(model, [[5, 6], [7], [8, 9, 10]])
    first = model.step(tokens, state)
    second = model.step(tokens, state)
    assert first.logits.data_ptr() == second.logits.data_ptr()
    assert first.logits.shape == (3, 29)
    model.step(tokens[:1], state.select(torch.tensor([0])))
    assert len(captured) == 2
    assert model.keys == [GraphKey(4), GraphKey(1)]


@pytest.mark.parametrize("form", FORMS)
def test_a_state_that_was_just_read_steps_too(form: str) -> None:
    """As the heartbeat does it: sources are not padded yet, and shorter than any graph's."""
    model = make_model(form, "gru", 29)
    with torch.inference_mode():
        tokens, state = read_at_once(model, [[5, 6, 2]])
        plain = model.step(tokens, state)
        output = graphed(model).step(tokens, state)
    for one, other in zip(flatten(output), flatten(plain), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_sources_of_several_sizes_are_computed_without_a_graph() -> None:
    model = make_model("additive", "gru", 29)
    with_graphs = graphed(model)
    tasks = [DecodingTask(key, [5] * (3 + 20 * key), DecodingParams(4)) for key in range(2)]
    found = []
    for each in (model, with_graphs):
        decoder = BatchedDecoder(each)
        decoder.admit(tasks)
        results = []
        while decoder.rows:
            results.append(decoder.step().emissions)
        found.append(repr(results))
    assert found[0] == found[1]


@pytest.mark.parametrize("form", FORMS)
def test_padding_is_done_on_the_device(form: str) -> None:
    model = set_precision(make_model(form, cell_of(form), 29).to(META), "bfloat16")
    with_graphs = GraphedModel(model, at_once)
    with meta_device(answer=5.0):
        decode(with_graphs, make_tasks(form, 7, seed=1))
    assert len(with_graphs.keys) > 2


# ---------------------------------------------------------------- how many graphs


def step_rows(model: GraphedModel, rows: int) -> None:
    """One step of so many rows, checked against the model without graphs."""
    tokens, state = read_at_once(model, [[5 + row % 7] for row in range(rows)])
    output = model.step(tokens, state)
    expected = random_language_model().step(tokens, state).logits
    torch.testing.assert_close(output.logits, expected, atol=1e-4, rtol=0)


def test_a_shape_that_comes_often_replaces_the_one_not_used_for_longest() -> None:
    model = GraphedModel(random_language_model(), at_once, max_graphs=2)
    for rows in (1, 2, 1):
        step_rows(model, rows)
    assert model.keys == [GraphKey(2), GraphKey(1)]
    for _ in range(USES_BEFORE_REPLACING - 1):
        step_rows(model, 4)
        step_rows(model, 8)
    assert model.keys == [GraphKey(2), GraphKey(1)]
    step_rows(model, 4)
    assert model.keys == [GraphKey(1), GraphKey(4)]
    # The others are counted anew: steps without a graph always outnumber recordings.
    step_rows(model, 8)
    step_rows(model, 2)
    assert model.keys == [GraphKey(1), GraphKey(4)]


def test_a_step_whose_graph_finds_no_memory_goes_without_one() -> None:
    tried: list[int] = []

    def capture(compute: Compute) -> Compute:
        rows = len(compute().logits)
        tried.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute

    model = GraphedModel(random_language_model(), capture)
    for rows in (1, 4, 4, 2, 4):
        step_rows(model, rows)
    assert tried == [1, 4, 2]
    assert model.keys == [GraphKey(1), GraphKey(2)]


def test_one_row_budget_needs_few_of_the_graphs_of_a_model_without_sources() -> None:
    assert len({bucket(rows) for rows in range(1, 1025)}) < MAX_GRAPHS


def test_a_graphed_model_says_of_itself_what_the_model_does() -> None:
    for form in ("embedded", "additive"):
        model = make_model(form, "gru", 29)
        with_graphs = GraphedModel(model, at_once)
        assert with_graphs.vocabulary_size == model.vocabulary_size == 29
        assert with_graphs.continues_prompt is model.continues_prompt
