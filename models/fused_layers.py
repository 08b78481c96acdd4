"""Layers of cells over whole sequences, computed by the functions behind torch's own layers.

Shape legend: ``N`` rows, ``T`` positions, ``I`` input size, ``H`` hidden size, ``P`` packed
positions: see :mod:`models.packing`.
"""

import warnings
from collections.abc import Callable, Generator
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.cells import Cell, CellState, GRUCell, LSTMCell, RecurrentCell, RNNCell
from models.packed_gru import run_gru
from models.packing import PackedLayout, sequence_mask

TORCH_KERNELS: dict[type[Cell], Callable[..., tuple[Tensor, ...]]] = {
    RNNCell: torch.rnn_tanh,
    GRUCell: torch.gru,
    LSTMCell: torch.lstm,
}
"""The functions behind ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``, which take weights as arguments."""

FUSED_PIECE_POSITIONS = 256
"""Positions that are computed between two pauses while a prompt is read."""

# cuDNN wants the weights of a layer in one piece, and copies them there at every call: kilobytes.
# Ours are parameters of their own, which the gate equations and the quantization take one by one.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous")


def starting_dominates(inputs: Tensor) -> bool:
    """Whether a kernel costs more to start than to run, and the host must not be waited for."""
    return inputs.is_cuda


def run_by_torch(
    cell: Cell, inputs: Tensor, state: CellState, lengths: Tensor | None = None
) -> tuple[Tensor, CellState]:
    """The same as :func:`~models.recurrent.run_by_equations`, computed by torch's fused layer.

    A GRU on a CPU has :func:`~models.packed_gru.run_gru` in its place, which trains faster.

    Raises:
        ValueError: torch has no layer that computes this cell.
    """
    kernel = TORCH_KERNELS.get(type(cell))
    if kernel is None or not isinstance(cell, RecurrentCell):
        raise ValueError(f"torch has no layer that computes {type(cell).__name__}")
    if isinstance(cell, GRUCell) and not starting_dominates(inputs):
        outputs, hidden = run_gru(cell, inputs, state[0], lengths)
        return outputs, (hidden,)
    weights = _weights(cell)
    initial = tuple(part[None] for part in state)
    hx = initial if len(initial) > 1 else initial[0]
    if lengths is None or (starting_dominates(inputs) and len(state) == 1):
        # Biases, layers, dropout, training, bidirectional, batch-first.
        outputs, *final = kernel(inputs, hx, weights, True, 1, 0.0, cell.training, False, True)
        if lengths is None:
            return outputs, tuple(part[0] for part in final)
        return cut_padding(outputs, lengths)
    packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
    order = cast(Tensor, packed.sorted_indices)
    restore = cast(Tensor, packed.unsorted_indices)
    hx = tuple(part.index_select(1, order) for part in initial)
    data, *final = kernel(
        packed.data,
        packed.batch_sizes,
        hx if len(hx) > 1 else hx[0],
        weights,
        True,
        1,
        0.0,
        cell.training,
        False,
    )
    outputs, _ = pad_packed_sequence(
        packed._replace(data=data), batch_first=True, total_length=inputs.shape[1]
    )
    return outputs, tuple(part[0].index_select(0, restore) for part in final)


def cut_padding(outputs: Tensor, lengths: Tensor) -> tuple[Tensor, CellState]:
    """What a layer makes of padded sequences, from what it made of their padding as well.

    Only for cells whose output is their state. To pack the sequences the host would have to
    know the lengths, and so wait until a GPU has done all that it was asked for before.

    Args:
        outputs: ``[N, T, H]`` at all positions.
        lengths: ``[N]`` int64, at least 1.

    Returns:
        The outputs, zero at padding, and each row's state ``[N, H]`` after its own end.
    """
    rows, size, _ = outputs.shape
    index = torch.arange(rows, device=outputs.device) * size + lengths - 1
    final = outputs.flatten(0, 1).index_select(0, index)
    return outputs * sequence_mask(lengths, size)[..., None], (final,)


def run_packed_by_torch(
    cell: RecurrentCell, inputs: Tensor, layout: PackedLayout, start: CellState | None = None
) -> Generator[None, None, tuple[Tensor, CellState]]:
    """What :func:`~models.recurrent.run_packed` computes, by torch's fused layer.

    On a GPU, where each position by itself is several kernels, which take longer to start than to
    run. Torch's packed sequences stand as ours do.

    Args:
        cell: one that torch has a layer for.
        inputs: ``[P, I]``, packed.
        layout: of the packed positions.
        start: each sequence's first state ``[N, H]``, zeros if None.

    Yields:
        Nothing, after every :data:`FUSED_PIECE_POSITIONS` positions but the last.

    Returns:
        The hidden states ``[P, H]`` and each sequence's last state ``[N, H]``.
    """
    kernel, weights = TORCH_KERNELS[type(cell)], _weights(cell)
    state = cell.initial_state(len(layout.lengths)) if start is None else start
    outputs = [inputs.new_empty(0, cell.hidden_size)]
    for position in range(0, len(layout.active), FUSED_PIECE_POSITIONS):
        if position:
            yield
        active = layout.active[position : position + FUSED_PIECE_POSITIONS]
        first, rows = layout.offsets[position], active[0]
        hx = tuple(part[None, :rows].contiguous() for part in state)
        piece, *final = kernel(
            inputs[first : first + sum(active)],
            torch.tensor(active),
            hx if len(hx) > 1 else hx[0],
            weights,
            # Biases, layers, dropout, training, bidirectional.
            *(True, 1, 0.0, False, False),
        )
        outputs.append(piece)
        # Sequences that ended before this piece keep what they had.
        parts = zip(final, state, strict=True)
        state = tuple(torch.cat([after[0], before[rows:]]) for after, before in parts)
    return torch.cat(outputs), state


def _weights(cell: RecurrentCell) -> list[Tensor]:
    return [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
