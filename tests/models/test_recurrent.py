"""Stacks against torch's own deep and bidirectional layers, padded and not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.config import CellName, Implementation
from models.recurrent import RecurrentStack, StackState, reverse_sequences, sequence_mask

ROWS, LENGTH, INPUT, HIDDEN, LAYERS = 4, 9, 6, 5, 3
LENGTHS = torch.tensor([9, 1, 5, 8])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_stack(
    cell: CellName, implementation: Implementation, *, bidirectional: bool = False
) -> RecurrentStack:
    torch.manual_seed(1)
    return RecurrentStack(
        cell, INPUT, HIDDEN, LAYERS, bidirectional=bidirectional, implementation=implementation
    ).double()


def as_torch(stack: RecurrentStack, cell: CellName) -> nn.RNNBase:
    kinds: dict[CellName, Callable[..., nn.RNNBase]] = {
        "gru": nn.GRU,
        "lstm": nn.LSTM,
        "rnn": nn.RNN,
    }
    reference = kinds[cell](
        INPUT,
        HIDDEN,
        LAYERS,
        batch_first=True,
        bidirectional=stack.num_directions == 2,
    ).double()
    weights = {}
    for direction, suffix in ((stack.forward_cells, ""), (stack.backward_cells, "_reverse")):
        for layer, module in enumerate(direction):
            for name, value in module.state_dict().items():
                weights[f"{name}_l{layer}{suffix}"] = value
    reference.load_state_dict(weights)
    return reference


def torch_final(final: Tensor | tuple[Tensor, ...], directions: int) -> StackState:
    """torch's [layers * directions, rows, hidden] to our layers with joined directions."""
    parts = final if isinstance(final, tuple) else (final,)
    shaped = [part.view(LAYERS, directions, ROWS, HIDDEN) for part in parts]
    return tuple(tuple(torch.cat(list(part[i]), dim=-1) for part in shaped) for i in range(LAYERS))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("implementation", ["equations", "torch"])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_equals_torch(
    cell: CellName, implementation: Implementation, bidirectional: bool, padded: bool
) -> None:
    stack = make_stack(cell, implementation, bidirectional=bidirectional)
    inputs = torch.randn(ROWS, LENGTH, INPUT, dtype=torch.float64)
    outputs, final = stack(inputs, None, LENGTHS if padded else None)
    reference = as_torch(stack, cell)
    if padded:
        packed = pack_padded_sequence(inputs, LENGTHS, batch_first=True, enforce_sorted=False)
        packed_outputs, expected_final = reference(packed)
        expected, _ = pad_packed_sequence(packed_outputs, batch_first=True)
    else:
        expected, expected_final = reference(inputs)
    torch.testing.assert_close(outputs, expected, atol=1e-10, rtol=0)
    expected_state = torch_final(expected_final, stack.num_directions)
    for layer, expected_layer in zip(final, expected_state, strict=True):
        for part, expected_part in zip(layer, expected_layer, strict=True):
            torch.testing.assert_close(part, expected_part, atol=1e-10, rtol=0)


@pytest.mark.parametrize("cell", ["gru", "gru_textbook", "lstm", "rnn"])
def test_steps_equal_the_whole_sequence(cell: CellName) -> None:
    stack = make_stack(cell, "equations")
    inputs = torch.randn(ROWS, LENGTH, INPUT, dtype=torch.float64)
    whole, final = stack(inputs)
    state = stack.initial_state(ROWS)
    for position in range(LENGTH):
        output, state = stack.step(inputs[:, position], state)
        torch.testing.assert_close(output, whole[:, position], atol=1e-12, rtol=0)
    torch.testing.assert_close(state, final, atol=1e-12, rtol=0)


@pytest.mark.parametrize("cell", ["gru", "gru_textbook", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_changes_nothing(cell: CellName, bidirectional: bool) -> None:
    stack = make_stack(cell, "equations", bidirectional=bidirectional)
    inputs = torch.randn(ROWS, LENGTH, INPUT, dtype=torch.float64)
    outputs, final = stack(inputs, None, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone, alone_final = stack(inputs[row : row + 1, :length])
        torch.testing.assert_close(outputs[row, :length], alone[0], atol=1e-12, rtol=0)
        assert not outputs[row, length:].any()
        for layer, alone_layer in zip(final, alone_final, strict=True):
            for part, alone_part in zip(layer, alone_layer, strict=True):
                torch.testing.assert_close(part[row], alone_part[0], atol=1e-12, rtol=0)


def test_prefill_allows_rows_without_tokens() -> None:
    stack = make_stack("gru", "torch")
    state = tuple((torch.randn(2, HIDDEN, dtype=torch.float64),) for _ in range(LAYERS))
    inputs = torch.randn(2, 3, INPUT, dtype=torch.float64)
    _, final = stack.prefill(inputs, state, torch.tensor([0, 3]))
    for (before,), (after,) in zip(state, final, strict=True):
        assert torch.equal(before[0], after[0])
        assert not torch.equal(before[1], after[1])


def test_a_state_carries_a_sequence_on() -> None:
    stack = make_stack("lstm", "torch")
    inputs = torch.randn(ROWS, LENGTH, INPUT, dtype=torch.float64)
    whole, final = stack(inputs)
    first, state = stack(inputs[:, :4])
    second, carried = stack(inputs[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-12, rtol=0)
    torch.testing.assert_close(carried, final, atol=1e-12, rtol=0)


def test_dropout_acts_between_layers_and_only_in_training() -> None:
    deep = RecurrentStack("gru", INPUT, HIDDEN, 2, dropout=0.5)
    single = RecurrentStack("gru", INPUT, HIDDEN, 1, dropout=0.5)
    inputs = torch.randn(ROWS, LENGTH, INPUT)
    assert not torch.equal(deep(inputs)[0], deep(inputs)[0])
    assert torch.equal(single(inputs)[0], single(inputs)[0])
    deep.eval()
    assert torch.equal(deep(inputs)[0], deep(inputs)[0])


def test_a_bidirectional_stack_cannot_step() -> None:
    stack = RecurrentStack("gru", INPUT, HIDDEN, bidirectional=True)
    with pytest.raises(ValueError, match="future"):
        stack.step(torch.randn(ROWS, INPUT), stack.initial_state(ROWS))


def test_torch_has_no_textbook_gru() -> None:
    with pytest.raises(ValueError, match="equations"):
        RecurrentStack("gru_textbook", INPUT, HIDDEN, implementation="torch")


def test_masks_and_reversal() -> None:
    assert sequence_mask(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]
    rows = torch.tensor([[[1], [2], [3]], [[4], [5], [9]]])
    assert reverse_sequences(rows, torch.tensor([3, 2])).squeeze(-1).tolist() == [
        [3, 2, 1],
        [5, 4, 9],
    ]
