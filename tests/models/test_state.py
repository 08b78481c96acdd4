import pytest
import torch
from torch import Tensor

from models.state import AttentionMemory, DecodeState


def make_state(rows: int, source_length: int, first: float = 0.0) -> DecodeState:
    """A state whose every number tells its row."""
    row = torch.arange(rows, dtype=torch.float32) + first

    def filled(*shape: int) -> Tensor:
        return row.view(-1, *[1] * len(shape)).expand(rows, *shape).clone()

    return DecodeState(
        layers=((filled(3), filled(3)), (filled(3), filled(3))),
        context=filled(4),
        memory=AttentionMemory(
            keys=filled(source_length, 2),
            values=filled(source_length, 5),
            mask=torch.ones(rows, source_length, dtype=torch.bool),
        ),
    )


def rows_of(state: DecodeState) -> list[float]:
    """The row numbers, after checking that all parts agree on them."""
    assert state.context is not None
    assert state.memory is not None
    numbers: list[float] = state.context[:, 0].tolist()
    for part in [*state.layers[0], *state.layers[1]]:
        assert part[:, 0].tolist() == numbers
    assert state.memory.keys[:, 0, 0].tolist() == numbers
    assert state.memory.values[:, 0, 0].tolist() == numbers
    return numbers


def test_select_reorders_repeats_and_drops() -> None:
    state = make_state(4, 6).select(torch.tensor([2, 2, 0]))
    assert rows_of(state) == [2, 2, 0]
    assert state.rows == 3


def test_concat_pads_sources_and_masks_the_padding() -> None:
    state = DecodeState.concat([make_state(2, 3), make_state(1, 5, first=7)])
    assert rows_of(state) == [0, 1, 7]
    assert state.memory is not None
    assert state.memory.mask.sum(1).tolist() == [3, 3, 5]
    assert not state.memory.values[:2, 3:].any()


def test_concat_then_select_gives_each_back() -> None:
    parts = [make_state(2, 5), make_state(3, 4, first=2)]
    whole = DecodeState.concat(parts)
    again = whole.select(torch.tensor([0, 1]))
    for layer, expected in zip(again.layers, parts[0].layers, strict=True):
        for part, expected_part in zip(layer, expected, strict=True):
            assert torch.equal(part, expected_part)


def test_states_of_different_models_do_not_mix() -> None:
    plain = DecodeState(layers=make_state(1, 1).layers)
    for states in ([], [plain, make_state(1, 2)], [plain, DecodeState(plain.layers[:1])]):
        with pytest.raises(ValueError, match="concat needs"):
            DecodeState.concat(states)
