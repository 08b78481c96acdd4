"""Cells against torch's own, and against what their equations promise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.cells import (
    CELLS,
    CellState,
    GRUCell,
    LSTMCell,
    RecurrentCell,
    RNNCell,
    TextbookGRUCell,
    pair_cells,
)
from models.config import CellName
from models.recurrent import RecurrentStack, run_by_equations

ROWS, LENGTH, INPUT, HIDDEN = 3, 11, 7, 5
ALL_CELLS: list[CellName] = ["rnn", "gru", "gru_textbook", "lstm"]


def random_state(cell: RecurrentCell) -> CellState:
    return tuple(torch.randn_like(part) for part in cell.initial_state(ROWS))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "reference_type"), [("gru", nn.GRU), ("lstm", nn.LSTM), ("rnn", nn.RNN)]
)
def test_equals_torch_with_the_same_weights(
    name: CellName, reference_type: Callable[..., nn.RNNBase]
) -> None:
    cell = CELLS[name](INPUT, HIDDEN).double()
    reference = reference_type(INPUT, HIDDEN, batch_first=True).double()
    reference.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    inputs = torch.randn(ROWS, LENGTH, INPUT, dtype=torch.float64)
    state = random_state(cell)

    outputs, final = run_by_equations(cell, inputs, state)

    initial = tuple(part[None] for part in state)
    expected, expected_final = reference(inputs, initial if len(initial) > 1 else initial[0])
    if isinstance(expected_final, Tensor):
        expected_final = (expected_final,)
    torch.testing.assert_close(outputs, expected, atol=1e-10, rtol=0)
    for part, expected_part in zip(final, expected_final, strict=True):
        torch.testing.assert_close(part, expected_part[0], atol=1e-10, rtol=0)


def test_lstm_by_hand() -> None:
    cell = LSTMCell(1, 1)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.bias_ih.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        hidden, memory = cell(torch.zeros(1, 1), (torch.zeros(1, 1), torch.full((1, 1), 0.5)))
    # memory = sigmoid(1) * 0.5 + sigmoid(0) * tanh(2); hidden = sigmoid(3) * tanh(memory)
    assert float(memory) == pytest.approx(0.73105858 * 0.5 + 0.5 * 0.96402758, abs=1e-6)
    assert float(hidden) == pytest.approx(0.95257413 * 0.68977743, abs=1e-5)


def test_the_two_grus_differ_only_by_where_the_reset_gate_acts() -> None:
    after, before = GRUCell(INPUT, HIDDEN), TextbookGRUCell(INPUT, HIDDEN)
    before.load_state_dict(after.state_dict())
    inputs, state = torch.randn(ROWS, INPUT), random_state(after)
    assert not torch.allclose(after(inputs, state)[0], before(inputs, state)[0])
    # With an open reset gate both compute the same candidate.
    for cell in (after, before):
        set_gate(cell, gate=0, bias=1e3)
    torch.testing.assert_close(after(inputs, state)[0], before(inputs, state)[0])


def set_gate(cell: RecurrentCell, *, gate: int, bias: float) -> None:
    """Force a gate open (large bias) or shut (large negative bias), whatever its input."""
    block = slice(gate * HIDDEN, (gate + 1) * HIDDEN)
    with torch.no_grad():
        for weight in (cell.weight_ih, cell.weight_hh):
            weight[block] = 0
        cell.bias_ih[block], cell.bias_hh[block] = bias, 0


@pytest.mark.parametrize("kind", [GRUCell, TextbookGRUCell])
def test_update_gate_at_one_keeps_the_state_for_ever(kind: type[RecurrentCell]) -> None:
    cell = kind(INPUT, HIDDEN)
    set_gate(cell, gate=1, bias=1e3)
    state = random_state(cell)
    _, final = run_by_equations(cell, torch.randn(ROWS, 200, INPUT), state)
    assert torch.equal(final[0], state[0])


@pytest.mark.parametrize("kind", [GRUCell, TextbookGRUCell])
def test_open_reset_and_shut_update_gate_give_the_plain_rnn(kind: type[RecurrentCell]) -> None:
    cell, plain = kind(INPUT, HIDDEN).double(), RNNCell(INPUT, HIDDEN).double()
    set_gate(cell, gate=0, bias=1e3)
    set_gate(cell, gate=1, bias=-1e3)
    plain.load_state_dict({k: v[2 * HIDDEN :] for k, v in cell.state_dict().items()})
    inputs = torch.randn(ROWS, LENGTH, INPUT, dtype=torch.float64)
    state = (torch.randn(ROWS, HIDDEN, dtype=torch.float64),)
    outputs, _ = run_by_equations(cell, inputs, state)
    expected, _ = run_by_equations(plain, inputs, state)
    torch.testing.assert_close(outputs, expected, atol=1e-12, rtol=0)
    # Not both shut, as some notes have it: then the past has no way in at all.
    set_gate(cell, gate=0, bias=-1e3)
    shut, _ = run_by_equations(cell, inputs, state)
    assert not torch.allclose(shut, expected)


def gradient_over_100_steps(cell: RecurrentCell) -> float:
    state = tuple(part.requires_grad_() for part in random_state(cell))
    _, final = run_by_equations(cell, torch.randn(ROWS, 100, INPUT), state)
    # The state that carries the past: the memory of an LSTM, else the hidden state.
    (gradient,) = torch.autograd.grad(final[-1].sum(), state[-1])
    return float(gradient.abs().mean())


@pytest.mark.parametrize("name", ["gru", "gru_textbook", "lstm"])
def test_a_gate_bias_of_five_lets_the_gradient_live(name: CellName) -> None:
    cell = CELLS[name](INPUT, HIDDEN)
    cell.set_gate_bias(5.0)
    assert gradient_over_100_steps(cell) > 0.05
    plain = gradient_over_100_steps(RNNCell(INPUT, HIDDEN))
    assert plain < 1e-9


def test_a_plain_rnn_has_no_gate() -> None:
    with pytest.raises(ValueError, match="no gate"):
        RNNCell(INPUT, HIDDEN).set_gate_bias(1.0)


@pytest.mark.parametrize("name", ALL_CELLS)
def test_shapes_and_gradients(name: CellName) -> None:
    cell = CELLS[name](INPUT, HIDDEN)
    inputs = torch.randn(ROWS, INPUT)
    assert cell.project(inputs).shape == (ROWS, cell.num_gates * HIDDEN)
    state = cell(inputs, cell.initial_state(ROWS))
    assert len(state) == cell.num_states
    assert all(part.shape == (ROWS, HIDDEN) for part in state)
    state[0].sum().backward()
    assert all(parameter.grad is not None for parameter in cell.parameters())


@pytest.mark.parametrize("name", ALL_CELLS)
def test_gradients_equal_finite_differences(name: CellName) -> None:
    cell = CELLS[name](3, 2).double()
    inputs = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    state = tuple(
        torch.randn(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(cell.num_states)
    )
    assert torch.autograd.gradcheck(lambda x, *s: cell(x, s), (inputs, *state))


def as_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear


@pytest.mark.parametrize("name", ALL_CELLS)
def test_the_products_hold_all_weights(name: CellName) -> None:
    cell = CELLS[name](INPUT, HIDDEN)
    *blocks, (weight, bias) = cell.products()
    assert torch.equal(torch.cat([block for block, _ in blocks]), cell.weight_hh)
    assert torch.equal(torch.cat([bias for _, bias in blocks]), cell.bias_hh)
    assert weight is cell.weight_ih
    assert bias is cell.bias_ih


@pytest.mark.parametrize("name", ALL_CELLS)
def test_a_pair_steps_two_cells_side_by_side(name: CellName) -> None:
    one, other = CELLS[name](INPUT, HIDDEN), CELLS[name](INPUT, HIDDEN)
    pair = pair_cells(one, other)
    inputs = torch.randn(2, ROWS, INPUT)
    states = [random_state(one), random_state(other)]
    both = tuple(torch.stack(parts) for parts in zip(*states, strict=True))
    found = pair(inputs, both)
    for index, cell in enumerate((one, other)):
        expected = cell(inputs[index], states[index])
        torch.testing.assert_close(tuple(part[index] for part in found), expected)


def test_a_gate_bias_is_set_in_total() -> None:
    cell = RecurrentStack("lstm", INPUT, HIDDEN).trained_cells()[0]
    cell.set_gate_bias(2.0)
    total = (cell.bias_ih + cell.bias_hh)[HIDDEN : 2 * HIDDEN]
    assert torch.equal(total, torch.full((HIDDEN,), 2.0))


@pytest.mark.parametrize("name", ALL_CELLS)
def test_a_state_stays_float32_where_products_are_bfloat16(name: CellName) -> None:
    cell = CELLS[name](INPUT, HIDDEN)
    inputs, state = torch.randn(ROWS, INPUT), random_state(cell)
    exact = cell(inputs, state)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = cell(inputs, state)
    if name.startswith("gru"):  # what is kept of the state is not rounded
        assert narrow[0].dtype == torch.float32
    for part, wanted in zip(narrow, exact, strict=True):
        torch.testing.assert_close(part.float(), wanted, atol=0.05, rtol=0.05)
