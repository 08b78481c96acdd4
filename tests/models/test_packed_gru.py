"""The GRU's own gradient against torch's, and what it leaves out."""

import pytest
import torch
from torch import Tensor

from models.packed_gru import ROWS_OF_A_SHAPE, packed_gru
from models.recurrent import RecurrentStack

ACTIVE = [5, 5, 4, 1]
SIZES = (4, 3)  # of input and hidden state


def _leaves(active: list[int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(len(active))
    inputs, hidden = SIZES
    shapes = [
        (sum(active), inputs),
        (active[0], hidden),
        (3 * hidden, inputs),
        (3 * hidden, hidden),
        (3 * hidden,),
        (3 * hidden,),
    ]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def _by_torch(active: list[int], leaves: list[Tensor]) -> Tensor:
    inputs, hidden, *weights = leaves
    counts = torch.tensor(active)
    return torch.gru(inputs, counts, hidden[None], weights, True, 1, 0.0, True, False)[0]


@pytest.mark.parametrize("active", [ACTIVE, [1], [3, 3], [200] * 3])
def test_states_and_gradients_are_torchs(active: list[int]) -> None:
    leaves = _leaves(active)
    ours = packed_gru(leaves[0], active, *leaves[1:])
    theirs = _by_torch(active, leaves)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    for own, other in zip(
        torch.autograd.grad((ours * weight).sum(), leaves),
        torch.autograd.grad((theirs * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


def test_a_position_that_nothing_is_asked_of_has_no_gradient() -> None:
    leaves = _leaves(ACTIVE)
    outputs = packed_gru(leaves[0], ACTIVE, *leaves[1:])
    (grad,) = torch.autograd.grad(outputs[: ACTIVE[0]].sum(), leaves[:1])
    assert grad[: ACTIVE[0]].abs().min() > 0
    assert (grad[ACTIVE[0] :] == 0).all()


def test_autocast_rounds_products_only() -> None:
    leaves = _leaves([ROWS_OF_A_SHAPE + 1] * 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = packed_gru(leaves[0], [ROWS_OF_A_SHAPE + 1] * 4, *leaves[1:])
    exact = packed_gru(leaves[0], [ROWS_OF_A_SHAPE + 1] * 4, *leaves[1:])
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1
    for leaf, grad in zip(leaves, torch.autograd.grad(rounded.square().sum(), leaves), strict=True):
        assert grad.dtype == leaf.dtype
        assert grad.shape == leaf.shape


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_a_padded_batch_has_the_gradients_of_its_rows(rows: int) -> None:
    """Rows that end together are run to the end of the longest: nobody may notice."""
    torch.manual_seed(rows)
    stack = RecurrentStack("gru", 4, 3, 2, bidirectional=True).double()
    lengths = torch.randint(1, 9, (rows,))
    inputs = torch.randn(rows, 9, 4, dtype=torch.float64, requires_grad=True)
    outputs, final = stack(inputs, None, lengths)
    weight, final_weight = torch.randn_like(outputs), torch.randn_like(final[-1][0])
    together = torch.autograd.grad(
        (outputs * weight).sum() + (final[-1][0] * final_weight).sum(),
        [inputs, *stack.parameters()],
    )
    total = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        alone, last = stack(inputs[row : row + 1, :length], None, None)
        total = total + (alone[0] * weight[row, :length]).sum()
        total = total + (last[-1][0][0] * final_weight[row]).sum()
        torch.testing.assert_close(outputs[row, :length], alone[0])
        assert (outputs[row, length:] == 0).all()
    apart = torch.autograd.grad(total, [inputs, *stack.parameters()])
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)
