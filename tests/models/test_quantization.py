"""int8: near to float32, exact in its integers, and the same bits whatever stands beside a row."""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.attention import ATTENTIONS, Attention
from models.cells import CELLS, CellState
from models.config import CellName
from models.encoder_decoder import read_at_once
from models.kernels.products import LEVELS
from models.packing import PackedLayout
from models.quantization import Int8Cell, Int8CellPair, Int8Linear, Tanh, quantize, quantize_rows
from models.recurrent import LayerReading
from models.state import AttentionMemory, RowLayout
from tests.models.decoding.toy_models import FORMS, make_model
from tests.models.teams import team_of

SIZES = [(1, 1), (30, 29), (15, 90), (31, 64), (64, 100), (1040, 7), (1041, 33), (3125, 31)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with team_of(request.param):
        yield


def random_rows(count: int, size: int) -> Tensor:
    """Rows of very different scales, one of them zero and one of equal numbers."""
    rows = torch.randn(count, size) * torch.logspace(-8, 8, count)[:, None]
    rows[count // 2] = 0.0
    rows[count // 3] = -0.3
    return rows


def random_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.mul_(torch.logspace(-2, 2, outputs)[:, None])
    return linear


def as_int8(linear: nn.Linear) -> Int8Linear:
    return Int8Linear(linear.weight, linear.bias)


# ---------------------------------------------------------------- the linear layer


def test_quantized_rows_are_integers_within_half_a_level() -> None:
    rows = random_rows(40, 33)
    values, scales = quantize_rows(rows)
    assert values.dtype == torch.int8
    assert values.abs().amax() == LEVELS
    torch.testing.assert_close(values * scales, rows, atol=0, rtol=1)
    assert ((values * scales - rows).abs() <= scales * 0.5001).all()
    assert not values[20].any()  # the row of zeros


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_the_layer_is_as_near_to_float_as_its_levels_allow(inputs: int, outputs: int) -> None:
    linear, rows = random_linear(inputs, outputs).double(), random_rows(50, inputs)
    expected = linear(rows.double())
    found = as_int8(linear)(rows)
    assert found.dtype == torch.float32
    # Each factor is off by at most half a level of its own row.
    half_rows = rows.abs().amax(-1, keepdim=True).double() / LEVELS / 2
    half_weights = linear.weight.abs().amax(-1) / LEVELS / 2
    bound = (
        half_rows * linear.weight.abs().sum(-1)
        + half_weights * rows.abs().sum(-1, keepdim=True)
        + half_rows * half_weights * inputs
    )
    rounding = 1e-5 * (expected.abs() + linear.bias.abs() + bound)
    assert ((found - expected).abs() <= bound + rounding).all()


@pytest.mark.parametrize("inputs", [1, 30, 1040, 1041, 4097])
def test_integers_are_multiplied_exactly(inputs: int) -> None:
    """Rows and weights that reach 127 are their own integers, up to the rounding of the scale."""
    rows = torch.randint(-LEVELS, LEVELS + 1, (37, inputs)).float()
    weight = torch.randint(-LEVELS, LEVELS + 1, (19, inputs)).float()
    for extreme in (rows, weight):
        extreme[0], extreme[1] = LEVELS, -LEVELS
        extreme[:, 0] = LEVELS
    for tensor in (rows, weight):
        values, scales = quantize_rows(tensor)
        assert torch.equal(values.float(), tensor)
        assert torch.equal(scales, torch.ones_like(scales))
    exact = rows.long() @ weight.long().t()
    assert torch.equal(Int8Linear(weight, None)(rows), exact.float())


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_a_row_does_not_depend_on_its_batch(inputs: int, outputs: int) -> None:
    linear, rows = random_linear(inputs, outputs), random_rows(150, inputs)
    layer = as_int8(linear)
    together = layer(rows)
    for first, count in [(0, 1), (149, 1), (3, 2), (10, 7), (50, 9), (1, 130)]:
        assert torch.equal(layer(rows[first : first + count]), together[first : first + count])
    assert torch.equal(layer(rows.view(10, 15, inputs)), together.view(10, 15, outputs))


@pytest.mark.usefixtures("_threads")
def test_a_row_of_a_large_vocabulary_does_not_depend_on_its_batch() -> None:
    """So many numbers that threads share them out in the middle of a row."""
    layer, rows = as_int8(random_linear(30, 8003)), torch.randn(33, 30)
    logits = layer(rows)
    logprobs = torch.log_softmax(logits, -1)
    for row in range(0, 33, 2):
        alone = layer(rows[row : row + 1])
        assert torch.equal(alone[0], logits[row])
        assert torch.equal(torch.log_softmax(alone, -1)[0], logprobs[row])


@pytest.mark.parametrize("hostile", [torch.nan, torch.inf])
def test_a_row_that_is_no_number_stays_so_and_harms_no_other(hostile: float) -> None:
    layer, rows = as_int8(random_linear(30, 29)), torch.randn(9, 30)
    expected = layer(rows)
    rows[4, 7] = hostile
    found = layer(rows)
    assert not found[4].isfinite().any()
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(found[others], expected[others])


# ---------------------------------------------------------------- tanh

WIDTHS = [1, 15, 30, 31, 32, 60, 64, 90, 96, 1024]


@pytest.mark.parametrize("width", WIDTHS)
def test_tanh_is_accurate(width: int) -> None:
    inputs = torch.cat(
        [torch.linspace(-20, 20, 40_000), torch.linspace(-1e-3, 1e-3, 4001), torch.randn(5000)]
    )
    inputs = inputs[: len(inputs) // width * width].view(-1, width)
    assert (Tanh()(inputs) - inputs.double().tanh()).abs().max() <= 2**-22
    ends = torch.tensor([[-torch.inf, -3e38, -200.0, -100.0, 0.0, 100.0, 200.0, 3e38, torch.inf]])
    ends = ends[:, torch.arange(width) % 9]
    assert torch.equal(Tanh()(ends), ends.tanh())
    assert Tanh()(torch.full((3, width), torch.nan)).isnan().all()


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("width", WIDTHS)
def test_a_number_is_the_same_in_every_row_and_batch(width: int) -> None:
    rows, function = torch.randn(200_000 // width + 3, width) * 4, Tanh()
    together = function(rows)
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        count = int(torch.randint(1, 40, (), generator=generator))
        first = int(torch.randint(0, len(rows) - 40, (), generator=generator))
        part = rows[first : first + count]
        assert torch.equal(function(part), together[first : first + count])
    # As a slice of wider rows: gates that stand side by side.
    wide = torch.cat([torch.randn(len(rows), 7), rows, torch.randn(len(rows), 3)], dim=1)
    assert torch.equal(function(wide[:, 7:-3]), together)
    assert torch.equal(function(wide[100:103, 7:-3]), together[100:103])
    assert torch.equal(function(rows[:100].view(2, 5, 10, width)).view(100, -1), together[:100])


# ---------------------------------------------------------------- cells


def random_state(cell: Int8Cell, rows: int) -> CellState:
    return tuple(torch.randn_like(part) for part in cell.initial_state(rows))


@pytest.mark.parametrize("hidden", [5, 30, 64])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_near_to_the_trained_one(name: CellName, hidden: int) -> None:
    trained = CELLS[name](7, hidden)
    cell = Int8Cell(trained)
    inputs, state = torch.randn(9, 7), random_state(cell, 9)
    before = [part.clone() for part in state]
    with torch.inference_mode():
        for found, expected in zip(cell(inputs, state), trained(inputs, state), strict=True):
            torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
    for part, unchanged in zip(state, before, strict=True):
        assert torch.equal(part, unchanged)


@pytest.mark.parametrize("hidden", [5, 30, 64])
@pytest.mark.parametrize("name", CELLS)
def test_many_positions_are_the_same_as_one_after_the_other(name: CellName, hidden: int) -> None:
    cells = [Int8Cell(CELLS[name](7, hidden)) for _ in range(2)]
    active = [6, 6, 4, 1, 1]
    inputs = torch.randn(sum(active), 7)
    for cell in cells:
        state = random_state(cell, 6)
        outputs, after = cell.run(cell.project(inputs), active, state)
        rows = [tuple(part[n : n + 1] for part in state) for n in range(6)]
        place = 0
        for count in active:
            for n in range(count):
                rows[n] = cell(inputs[place : place + 1], rows[n])
                assert torch.equal(outputs[place], rows[n][0][0])
                place += 1
        for index, part in enumerate(after):
            assert torch.equal(part, torch.cat([row[index] for row in rows]))


def result_of(reading: LayerReading) -> tuple[Tensor, CellState]:
    while True:
        try:
            next(reading)
        except StopIteration as stop:
            return cast(tuple[Tensor, CellState], stop.value)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("positions", [5, 70])
@pytest.mark.parametrize("name", CELLS)
def test_both_directions_are_the_same_as_each_by_itself(name: CellName, positions: int) -> None:
    one, other = cells = [Int8Cell(CELLS[name](7, 30)) for _ in range(2)]
    layout = PackedLayout([positions, positions, 4, 3, 1])
    inputs = torch.randn(layout.size, 7)
    reading = Int8CellPair(one, other).read(inputs, layout, layout.reverse)
    outputs, after = result_of(reading)
    for direction, cell in enumerate(cells):
        turned = inputs if direction == 0 else inputs[layout.reverse]
        found, state = cell.run(cell.project(turned), layout.active, cell.initial_state(5))
        expected = found if direction == 0 else found[layout.reverse]
        columns = slice(30 * direction, 30 * (direction + 1))
        assert torch.equal(outputs[:, columns], expected)
        for part, whole in zip(state, after, strict=True):
            assert torch.equal(whole[:, columns], part)


# ---------------------------------------------------------------- attention


def random_memory(
    attention: Attention, lengths: Sequence[int], values: Tensor, size: int
) -> AttentionMemory:
    """Sources of these lengths, padded to ``size`` positions as encoders pad: with zeros."""
    mask = torch.arange(size) < torch.tensor(lengths)[:, None]
    padded = torch.zeros(len(lengths), size, values.shape[2])
    padded[:, : values.shape[1]] = values[:, :size]
    return attention.memory(padded * mask[..., None], mask)


def both_attentions(kind: type[Attention], size: int) -> tuple[Attention, Attention]:
    """The attention in float32, and the same in int8."""
    plain = kind(size, size, size)
    whole = nn.ModuleDict({"attention": plain})
    quantize(whole)
    return plain, cast(Attention, whole["attention"])


LENGTHS = [40, 1, 7, 16, 17]


@pytest.mark.parametrize("size", [30, 64])
@pytest.mark.parametrize("kind", ATTENTIONS.values())
def test_integer_attention_is_near_to_float(kind: type[Attention], size: int) -> None:
    values, queries = torch.randn(len(LENGTHS), 40, size), torch.randn(len(LENGTHS), 3, size)
    torch.manual_seed(1)
    plain = kind(size, size, size)
    expected, expected_weights = plain(queries, random_memory(plain, LENGTHS, values, 40))
    torch.manual_seed(1)
    _, integer = both_attentions(kind, size)
    memory = random_memory(integer, LENGTHS, values, 40)
    context, weights = integer(queries, memory)
    torch.testing.assert_close(weights, expected_weights, atol=5e-3, rtol=0.05)
    torch.testing.assert_close(context, expected, atol=0.05, rtol=0)
    assert not weights.masked_select(~memory.mask[:, None]).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(LENGTHS), 3))
    # A source of one position leaves no choice.
    assert torch.equal(weights[1, :, 0], torch.ones(3))


@pytest.mark.parametrize("size", [30, 64, 2082])
@pytest.mark.parametrize("kind", ATTENTIONS.values())
def test_attending_does_not_depend_on_padding_batch_or_layout(
    kind: type[Attention], size: int
) -> None:
    _, attention = both_attentions(kind, size)
    values, queries = torch.randn(len(LENGTHS), 40, size), torch.randn(len(LENGTHS), 3, size)
    together = random_memory(attention, LENGTHS, values, 48)
    context, weights = attention(queries, together)
    counts = [1, 3, 0, 2, 3]
    for row, length in enumerate(LENGTHS):
        for padded in (length, 40, 64):
            alone = random_memory(attention, [length], values[row : row + 1], padded)
            for query in range(3):
                one, one_weights = attention.attend(queries[row, query : query + 1], alone)
                assert torch.equal(one[0], context[row, query])
                assert torch.equal(one_weights[0, :length], weights[row, query, :length])
                assert not one_weights[0, length:].any()
    # A grid in which some cells are empty.
    cells = [3 * row + i for row, count in enumerate(counts) for i in range(count)]
    layout = RowLayout(3, torch.tensor(cells), len(LENGTHS))
    shared, shared_weights = attention.attend(
        queries.flatten(0, 1)[cells], dataclasses.replace(together, layout=layout)
    )
    assert torch.equal(shared, context.flatten(0, 1)[cells])
    assert torch.equal(shared_weights, weights.flatten(0, 1)[cells])


@pytest.mark.parametrize("kind", ATTENTIONS.values())
def test_nobody_looks_at_what_stands_in_padding(kind: type[Attention]) -> None:
    """Pools leave there what another source was, which may not have been a number."""
    _, attention = both_attentions(kind, 30)
    values, queries = torch.randn(len(LENGTHS), 40, 30), torch.randn(len(LENGTHS), 30)
    memory = random_memory(attention, LENGTHS, values, 48)
    expected = attention.attend(queries, memory)
    for part in (memory.keys, memory.values, memory.key_scales):
        assert part is not None
        part[~memory.mask] = float("nan") if part.is_floating_point() else 99
    found = attention.attend(queries, memory)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@settings(max_examples=20)
@given(st.integers(1, 3000), st.floats(0.0, 60.0), st.integers(0, 1000))
def test_weights_over_a_source_of_any_length_sum_to_one(
    length: int, spread: float, seed: int
) -> None:
    _, attention = both_attentions(ATTENTIONS["dot"], 3)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1, length, 3, generator=generator) * spread
    values[..., 0] = 1.0
    memory = random_memory(attention, [length], values, length)
    context, weights = attention.attend(torch.randn(1, 3, generator=generator), memory)
    assert float(weights.double().sum()) == pytest.approx(1.0, abs=1e-4)
    # Half a level of the largest value.
    bound = float(values.abs().max()) / LEVELS / 2
    assert float(context[0, 0]) == pytest.approx(1.0, abs=bound + 1e-4)


# ---------------------------------------------------------------- whole models


class NoProducts(TorchFunctionMode):
    """Refuses what adds in an order that depends on the batch."""

    NAMES = frozenset(
        {"_int_mm", "addbmm", "addmm", "addmv", "baddbmm", "bilinear", "bmm", "dot", "einsum"}
        | {"gru", "linear", "lstm", "matmul", "__matmul__", "mm", "mv", "rnn_tanh", "tensordot"}
        | {"sigmoid", "tanh", "softmax"}
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        assert func.__name__ not in self.NAMES
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
@pytest.mark.parametrize(("form", "cell"), list(product(FORMS, CELLS)))
def test_torch_multiplies_nothing_in_a_quantized_model(form: str, cell: CellName) -> None:
    model = make_model(form, cell, 29)
    quantize(model)
    kinds = {type(module) for module in model.modules()}
    assert not kinds & {nn.Linear, nn.Tanh, *CELLS.values()}
    assert Int8Linear in kinds
    assert Int8Cell in kinds
    with NoProducts():
        tokens, state = read_at_once(model, [[5, 6, 7, 2], [8, 2]])
        model.step(tokens, state)


@torch.inference_mode()
@pytest.mark.parametrize(("form", "cell"), list(product(FORMS, CELLS)))
def test_a_quantized_model_is_near_to_the_float_one(form: str, cell: CellName) -> None:
    plain, model = (make_model(form, cell, 29, sharpness=1) for _ in range(2))
    quantize(model)
    prompts = [[5, 6, 7, 9, 2], [8, 2]]
    expected = plain.step(*read_at_once(plain, prompts)).logits
    logits = model.step(*read_at_once(model, prompts)).logits
    torch.testing.assert_close(logits, expected, atol=0.02, rtol=0)
    assert expected.std() > 0.08
