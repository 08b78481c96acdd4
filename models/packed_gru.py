"""The GRU over whole sequences on a CPU, with its gradient, in few and large operations.

``torch.gru`` on a CPU is a loop of small operations, each with a gradient of its own: that of
the weights is a product and a sum over all of them at every position. Here the backward pass
leaves to the loop what depends on the position behind, and does the rest for all at once.

Shape legend: ``N`` rows, ``T`` positions, ``P`` packed positions, ``I`` input size, ``H`` hidden
size.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.cells import GRUCell
from models.packing import sequence_mask

ROWS_OF_A_SHAPE = 128
"""Products of all positions at once are computed for a multiple of so many rows: oneDNN compiles
one for each number that it meets, which takes milliseconds."""
GROUP_ROWS = 16
"""Rows that go on together to the end of the longest of them, for the same reason."""


def run_gru(
    cell: GRUCell, inputs: Tensor, hidden: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run a cell over whole sequences, as :func:`models.recurrent.run_by_equations` does.

    Args:
        cell: whose weights are used.
        inputs: ``[N, T, I]``.
        hidden: ``[N, H]``, the states before.
        lengths: ``[N]`` int64, or None where no row is padded.

    Returns:
        The hidden states ``[N, T, H]`` and the states ``[N, H]`` after each row's own end.
    """
    rows, positions = inputs.shape[:2]
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    if lengths is None:
        by_position = inputs.transpose(0, 1).flatten(0, 1)
        outputs = packed_gru(by_position, [rows] * positions, hidden, *weights)
        outputs = outputs.view(positions, rows, -1)
        return outputs.transpose(0, 1), outputs[-1]
    ordered, order = lengths.sort(descending=True)
    together = ordered[::GROUP_ROWS].repeat_interleave(GROUP_ROWS)[:rows]
    longest = torch.empty_like(lengths).scatter_(0, order, together)
    packed = pack_padded_sequence(inputs, longest, batch_first=True, enforce_sorted=False)
    first = hidden.index_select(0, cast(Tensor, packed.sorted_indices))
    data = packed_gru(packed.data, packed.batch_sizes.tolist(), first, *weights)
    outputs, _ = pad_packed_sequence(
        packed._replace(data=data), batch_first=True, total_length=positions
    )
    final = outputs[torch.arange(rows), lengths - 1]
    return outputs.masked_fill(~sequence_mask(lengths, positions)[..., None], 0.0), final


def packed_gru(
    inputs: Tensor,
    active: Sequence[int],
    hidden: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> Tensor:
    """Run :class:`models.cells.GRUCell` over packed positions.

    Products are computed in the type that autocast says, everything else, the hidden state too,
    in that of ``hidden``.

    Args:
        inputs: ``[P, I]``, position by position.
        active: T numbers, falling: at position t the first ``active[t]`` rows go on.
        hidden: ``[N, H]``, the states before, with ``N = active[0]``.
        weight_ih: ``[3H, I]``.
        weight_hh: ``[3H, H]``.
        bias_ih: ``[3H]``.
        bias_hh: ``[3H]``.

    Returns:
        The hidden states ``[P, H]``. Their gradient may be asked for once.
    """
    enabled = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if enabled else hidden.dtype
    with torch.autocast("cpu", enabled=False):
        outputs: Tensor = _PackedGRU.apply(  # type: ignore[no-untyped-call]
            inputs.to(dtype),
            tuple(active),
            hidden,
            weight_ih.to(dtype),
            weight_hh.to(dtype),
            bias_ih,
            bias_hh,
        )
    return outputs


class _PackedGRU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        active: tuple[int, ...],
        hidden: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
    ) -> Tensor:
        size, positions = hidden.shape[1], len(inputs)
        inputs = functional.pad(inputs, (0, 0, 0, -positions % ROWS_OF_A_SHAPE))
        bias = bias_ih.clone()
        bias[: 2 * size] += bias_hh[: 2 * size]  # both act on these gates alike
        # Reset, update and candidate: first what they get of the inputs, then what they are.
        gates = functional.linear(inputs, weight_ih, bias.to(inputs.dtype)).to(hidden.dtype)
        outputs = hidden.new_empty(positions, size)
        before = inputs.new_zeros(len(inputs), size)
        recurrent = hidden.new_empty(positions, size)  # the candidate's share of the state
        bias_new = bias_hh[2 * size :]
        transposed = weight_hh.t()
        first = 0
        for rows in active:
            own = slice(first, first + rows)
            hidden = hidden[:rows]
            products = torch.mm(before[own].copy_(hidden), transposed)
            torch.add(bias_new, products[:, 2 * size :], out=recurrent[own])
            pair = gates[own, : 2 * size].add_(products[:, : 2 * size]).sigmoid_()
            new = gates[own, 2 * size :].addcmul_(pair[:, :size], recurrent[own]).tanh_()
            hidden = torch.lerp(new, hidden, pair[:, size:], out=outputs[own])
            first += rows
        ctx.save_for_backward(inputs, gates, before, recurrent, outputs, weight_ih, weight_hh)
        ctx.active = active
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, gates, before, recurrent, outputs, weight_ih, weight_hh = ctx.saved_tensors
        size, active = outputs.shape[1], ctx.active
        grad = grad.clone()
        positions = len(outputs)
        reset, update, new = gates[:positions].split(size, dim=1)
        # What the gradient of a hidden state is multiplied by, to become that of the sums in
        # front of reset gate, update gate and candidate, and of the product behind the reset gate.
        closed = 1 - update
        of_new = (1 - new * new).mul_(closed)
        factors = grad.new_empty(positions, 3, size)
        # H_{t-1} - N_t is (H_t - N_t) / Z_t, and the update gate is divided out.
        torch.mul(outputs - new, closed, out=factors[:, 1])
        of_product = torch.mul(of_new, reset, out=factors[:, 2])
        torch.mul(of_product, recurrent, out=factors[:, 0]).mul_(1 - reset)
        products = inputs.new_empty(len(inputs), 3, size)
        products[positions:] = 0
        ends = list(accumulate(active))
        grad_hidden = grad.new_zeros(active[0], size)
        for position in range(len(active) - 1, -1, -1):
            rows = active[position]
            own = slice(ends[position] - rows, ends[position])
            torch.mul(grad[own, None], factors[own], out=products[own])
            if position:
                earlier = ends[position - 1] - active[position - 1]
                into = grad[earlier : earlier + rows]
            else:
                into = grad_hidden
            into.addcmul_(grad[own], update[own])
            into.add_(torch.mm(products[own].view(rows, -1), weight_hh))
        flat = products.view(len(inputs), -1)
        # A product sums faster than a sum does, which would first make them wider.
        ones = flat.new_ones(1, len(flat))
        grad_hh, grad_bias_hh = flat.t().mm(before), ones.mm(flat)[0].to(grad.dtype)
        torch.mul(grad, of_new, out=products[:positions, 2])
        grad_bias_ih = grad_bias_hh.clone()
        grad_bias_ih[2 * size :] = ones.mm(products[:, 2])[0]
        return (
            flat.mm(weight_ih)[:positions],
            None,
            grad_hidden,
            flat.t().mm(inputs),
            grad_hh,
            grad_bias_ih,
            grad_bias_hh,
        )
