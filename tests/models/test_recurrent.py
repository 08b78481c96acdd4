"""Stacks against torch's own deep and bidirectional layers, padded and not."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.config import CellName, Implementation
from models.packing import PackedLayout, sequence_mask
from models.quantization import quantize
from models.recurrent import (
    PIECE_POSITIONS,
    RecurrentStack,
    StackState,
    reverse_sequences,
)

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


def test_the_gradient_of_a_reversed_sequence_is_reversed() -> None:
    inputs = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    for lengths in (None, torch.tensor([4, 1, 3])):
        assert torch.autograd.gradcheck(partial(reverse_sequences, lengths=lengths), inputs)


def pack(inputs: Tensor, layout: PackedLayout) -> Tensor:
    """The real positions of padded sequences ``[N, T, I]``, one position after the other."""
    rows = [inputs[:active, t] for t, active in enumerate(layout.active)]
    return torch.cat([inputs.new_empty(0, inputs.shape[2]), *rows])


def read(stack: RecurrentStack, inputs: Tensor, layout: PackedLayout) -> tuple[Tensor, StackState]:
    """Outputs, padded, and states; without pauses."""
    reading = stack.read(pack(inputs, layout), layout)
    while True:
        try:
            next(reading)
        except StopIteration as stop:
            outputs, state = stop.value
            return layout.unpack(outputs), state


@pytest.mark.parametrize("lengths", [[9, 8, 5, 1], [9, 9, 0, 0], [1], [0, 0]])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["gru", "gru_textbook", "lstm", "rnn"])
def test_reading_equals_the_whole_sequence(
    cell: CellName, bidirectional: bool, lengths: list[int]
) -> None:
    implementation: Implementation = "equations" if cell == "gru_textbook" else "torch"
    stack = make_stack(cell, implementation, bidirectional=bidirectional)
    layout = PackedLayout(lengths)
    inputs = torch.randn(len(lengths), max(lengths), INPUT, dtype=torch.float64)
    outputs, final = read(stack, inputs, layout)
    real = [length for length in lengths if length]
    if real:
        expected, expected_final = stack(inputs[: len(real)], None, torch.tensor(real))
        torch.testing.assert_close(outputs[: len(real)], expected, atol=1e-12, rtol=0)
        kept = tuple(tuple(part[: len(real)] for part in layer) for layer in final)
        torch.testing.assert_close(kept, expected_final, atol=1e-12, rtol=0)
    # A row without tokens stays at zero.
    assert not any(part[len(real) :].any() for layer in final for part in layer)


def test_reading_pauses_after_every_piece() -> None:
    """The last piece of all comes with the result."""
    stack = RecurrentStack("gru", INPUT, HIDDEN, 2)
    for length, pauses in [(0, 1), (1, 1), (PIECE_POSITIONS, 1), (PIECE_POSITIONS + 1, 3)]:
        layout = PackedLayout([length, 0])
        assert len(list(stack.read(torch.randn(length, INPUT), layout))) == pauses


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["gru", "gru_textbook", "lstm", "rnn"])
def test_pieces_and_company_change_no_bit_in_int8(cell: CellName, bidirectional: bool) -> None:
    """Alone, among others, in pieces, in one go or one position at a time."""
    torch.manual_seed(2)
    whole = nn.ModuleList(
        [RecurrentStack(cell, 13, 15, 2, bidirectional=bidirectional, implementation="equations")]
    )
    quantize(whole)
    (stack,) = whole
    assert isinstance(stack, RecurrentStack)
    lengths = [2 * PIECE_POSITIONS + 7, PIECE_POSITIONS + 1, PIECE_POSITIONS, 18, 18, 1, 0]
    inputs = torch.randn(len(lengths), lengths[0], 13)
    outputs, final = read(stack, inputs, PackedLayout(lengths))
    for row, length in enumerate(lengths):
        alone, state = read(stack, inputs[row : row + 1], PackedLayout([length]))
        assert torch.equal(outputs[row, :length], alone[0])
        assert all(
            torch.equal(part[row], alone_part[0])
            for layer, alone_layer in zip(final, state, strict=True)
            for part, alone_part in zip(layer, alone_layer, strict=True)
        )
        if length:
            at_once, _ = stack(inputs[row : row + 1, :length])
            assert torch.equal(at_once, alone)
        if not bidirectional:
            state = stack.initial_state(1)
            for position in range(length):
                output, state = stack.step(inputs[row : row + 1, position], state)
                assert torch.equal(output, alone[:, position])


def test_packed_layout_by_hand() -> None:
    layout = PackedLayout([3, 1, 0])
    assert (layout.active, layout.offsets, layout.size) == ([2, 1, 1], [0, 2, 3, 4], 4)
    assert layout.pack([[5, 6, 7], [8], []]).tolist() == [5, 8, 6, 7]
    # The first of sequence 0 in the place of its last, and the other way round.
    assert layout.reverse.tolist() == [3, 1, 2, 0]
    rows = torch.tensor([[5.0], [8.0], [6.0], [7.0]])
    assert layout.unpack(rows).squeeze(-1).tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="lengths must fall"):
        PackedLayout([1, 2])


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
