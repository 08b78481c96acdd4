"""The ways that layers take on a GPU, taken here on the processor."""

from collections.abc import Generator

import pytest
import torch
from torch import Tensor

from models import fused_layers, recurrent
from models.config import CellName
from models.fused_layers import FUSED_PIECE_POSITIONS
from models.packing import PackedLayout
from models.recurrent import RecurrentStack, StackState
from tests.models.test_recurrent import INPUT, make_stack, pack, read

CELLS: tuple[CellName, ...] = ("rnn", "gru", "lstm")
LONG = FUSED_PIECE_POSITIONS + 9


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fused_layers, recurrent):
        monkeypatch.setattr(module, "starting_dominates", lambda _: True)


def trained(stack: RecurrentStack, inputs: Tensor, lengths: Tensor) -> list[Tensor]:
    """Outputs, final states, and gradients of something that depends on all of them."""
    outputs, final = stack(inputs, None, lengths)
    parts = [outputs, *(part for layer in final for part in layer)]
    total = torch.stack([(part + number).sin().sum() for number, part in enumerate(parts)]).sum()
    total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    gradients = [parameter.grad for parameter in stack.parameters()]
    stack.zero_grad()
    return [*parts, *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_training_without_packing_is_training(
    monkeypatch: pytest.MonkeyPatch, cell: CellName, bidirectional: bool
) -> None:
    stack = make_stack(cell, "torch", bidirectional=bidirectional)
    inputs, lengths = torch.randn(4, 9, INPUT, dtype=torch.float64), torch.tensor([9, 1, 5, 8])
    expected = trained(stack, inputs, lengths)
    on_a_gpu(monkeypatch)
    found = trained(stack, inputs, lengths)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("lengths", [[9, 8, 5, 1], [9, 9, 0, 0], [1], [0, 0], [LONG, 260, 256, 2]])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_prompts_are_read_as_the_equations_have_it(
    monkeypatch: pytest.MonkeyPatch, cell: CellName, bidirectional: bool, lengths: list[int]
) -> None:
    stack = make_stack(cell, "torch", bidirectional=bidirectional)
    layout = PackedLayout(lengths)
    inputs = torch.randn(len(lengths), max(lengths), INPUT, dtype=torch.float64)
    with torch.inference_mode():
        expected = read(stack, inputs, layout)
        on_a_gpu(monkeypatch)
        found = read(stack, inputs, layout)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_a_state_is_carried_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = make_stack("lstm", "torch")
    layout = PackedLayout([LONG, 3])
    inputs = torch.randn(2, LONG, INPUT, dtype=torch.float64)
    start = tuple(tuple(part + 0.5 for part in layer) for layer in stack.initial_state(2))
    expected = result_of(stack.read(pack(inputs, layout), layout, start))
    on_a_gpu(monkeypatch)
    found = result_of(stack.read(pack(inputs, layout), layout, start))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def result_of(reading: Generator[None, None, tuple[Tensor, StackState]]) -> object:
    while True:
        try:
            next(reading)
        except StopIteration as stop:
            return stop.value


def test_there_is_a_pause_after_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    stack = RecurrentStack("gru", INPUT, 5, 2)
    for length, pauses in [(0, 1), (FUSED_PIECE_POSITIONS, 1), (LONG, 3)]:
        layout = PackedLayout([length, 0])
        assert len(list(stack.read(torch.randn(length, INPUT), layout))) == pauses
