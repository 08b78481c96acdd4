"""Deep and bidirectional stacks of cells, over whole sequences and over one step.

Shape legend: ``N`` rows, ``T`` positions, ``I`` input size, ``H`` hidden size of one
direction, ``D`` directions (1 or 2), ``L`` layers, ``P`` packed positions.
Sequences are batch-first, unless they are packed.

Padding: row ``n`` has ``lengths[n]`` real positions, the rest is padding behind them. A state
after a sequence is the state after each row's own last real position, the backward direction
starts at each row's own end, and outputs at padded positions are zero.
"""

from collections.abc import Callable, Generator
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from models.cells import CELLS, Cell, CellState, RecurrentCell, pair_cells
from models.config import CellName, Implementation
from models.dropout import dropout
from models.fused_layers import run_by_torch, run_packed_by_torch, starting_dominates
from models.packing import PackedLayout, sequence_mask
from models.placement import send

StackState = tuple[CellState, ...]
"""One :data:`~models.cells.CellState` for each layer, bottom first."""

PIECE_POSITIONS = 32
"""Positions that :meth:`RecurrentStack.read` computes between two pauses: long enough to be
worth a product of all of them, short enough that nobody notices the wait."""

LayerReading = Generator[None, None, tuple[Tensor, CellState]]
"""A layer that is being read: see :meth:`LayerReader.read`."""

RunCell = Callable[[Cell, Tensor, CellState, Tensor | None], tuple[Tensor, CellState]]


def reverse_sequences(inputs: Tensor, lengths: Tensor | None) -> Tensor:
    """Each row's real positions in reverse, padding left in place: ``[N, T, ...]`` to the same."""
    if lengths is None:
        return inputs.flip(1)
    positions = torch.arange(inputs.shape[1], device=inputs.device)
    reverse = lengths[:, None] - 1 - positions
    index = torch.where(reverse >= 0, reverse, positions)
    # Whole rows are moved, which takes far less than a gather of single numbers.
    rows = torch.arange(len(inputs), device=inputs.device)[:, None] * inputs.shape[1]
    moved: Tensor = _Exchange.apply(  # type: ignore[no-untyped-call]
        inputs.flatten(0, 1), (rows + index).flatten()
    )
    return moved.view_as(inputs)


class _Exchange(torch.autograd.Function):
    """Rows ``[M, ...]`` in an order that undoes itself, and so does for the gradient, too.

    That of a selection is added up in the general case, which takes several times as long.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return grad.index_select(0, order), None


def run_by_equations(
    cell: Cell, inputs: Tensor, state: CellState, lengths: Tensor | None = None
) -> tuple[Tensor, CellState]:
    """Run a cell over whole sequences, one position after the other.

    Args:
        cell: the cell.
        inputs: ``[N, T, I]``.
        state: the state before the first position.
        lengths: ``[N]`` int64, or None where no row is padded.

    Returns:
        The hidden states ``[N, T, H]`` and the state after each row's last real position.
    """
    projected = cell.project(inputs)
    mask = None if lengths is None else sequence_mask(lengths, inputs.shape[1])
    outputs = []
    for position in range(inputs.shape[1]):
        new = cell.step(projected[:, position], state)
        if mask is None:
            state = new
            outputs.append(new[0])
        else:
            real = mask[:, position, None]
            state = tuple(torch.where(real, n, old) for n, old in zip(new, state, strict=True))
            outputs.append(torch.where(real, new[0], 0.0))
    return torch.stack(outputs, dim=1), state


def run_packed(
    cell: Cell, inputs: Tensor, layout: PackedLayout, start: CellState | None = None
) -> LayerReading:
    """Run a cell over packed sequences ``[..., P, I]``, with pauses.

    Args:
        cell: the cell.
        inputs: packed.
        layout: of the packed positions.
        start: each sequence's first state ``[..., N, H]``, zeros if None.

    Returns:
        The hidden states ``[..., P, H]`` and each sequence's last state ``[..., N, H]``.
    """
    state = cell.initial_state(len(layout.lengths)) if start is None else start
    state = tuple(part.expand(*inputs.shape[:-2], -1, -1) for part in state)
    outputs = [inputs.new_empty(*inputs.shape[:-2], 0, cell.hidden_size)]
    for position in range(0, len(layout.active), PIECE_POSITIONS):
        if position:
            yield
        active = layout.active[position : position + PIECE_POSITIONS]
        first = layout.offsets[position]
        projected = cell.project(inputs[..., first : first + sum(active), :])
        piece, state = cell.run(projected, active, state)
        outputs.append(piece)
    return torch.cat(outputs, dim=-2), state


class LayerReader(Protocol):
    """Both directions of a layer."""

    def read(self, inputs: Tensor, layout: PackedLayout, reverse: Tensor) -> LayerReading:
        """Read packed sequences from both ends, from states of zeros, with pauses.

        Args:
            inputs: ``[P, I]``, packed.
            layout: of the packed positions.
            reverse: as :attr:`PackedLayout.reverse` has it, on the device of the inputs.

        Returns:
            Both directions' hidden states joined, ``[P, 2*H]``, and each sequence's last state of
            the one and first of the other, joined: ``[N, 2*H]``.
        """
        ...


class CellPair:
    """Two trained cells of one kind and size, which step side by side: see :class:`LayerReader`.

    Args:
        one: of the first direction.
        other: of the second.
    """

    def __init__(self, one: Cell, other: Cell) -> None:
        self._cell = pair_cells(one, other)

    def read(self, inputs: Tensor, layout: PackedLayout, reverse: Tensor) -> LayerReading:
        """See :meth:`LayerReader.read`."""
        both = torch.stack([inputs, inputs.index_select(0, reverse)])
        outputs, after = yield from run_packed(self._cell, both, layout)
        joined = torch.cat([outputs[0], outputs[1].index_select(0, reverse)], dim=-1)
        return joined, tuple(torch.cat([part[0], part[1]], dim=-1) for part in after)


class RecurrentStack(nn.Module):
    """Layers of cells, one above the other, with dropout between them.

    *Dive into Deep Learning*, sections 10.3 (deep) and 10.4 (bidirectional). In a bidirectional
    stack each layer reads the joined outputs of both directions below it.

    Args:
        cell: which cell.
        input_size: I of the bottom layer.
        hidden_size: H, of each direction.
        num_layers: L.
        bidirectional: whether a second cell reads every layer's input backwards.
        dropout: probability to drop an output between two layers, while training.
        implementation: who computes whole sequences.

    Raises:
        ValueError: torch was asked to compute a cell that it does not have.
    """

    def __init__(
        self,
        cell: CellName,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
        implementation: Implementation = "torch",
    ) -> None:
        super().__init__()
        if implementation == "torch" and cell == "gru_textbook":
            raise ValueError("torch has no textbook GRU; use implementation=equations")
        self.hidden_size = hidden_size
        self.num_directions = 2 if bidirectional else 1
        self.output_size = hidden_size * self.num_directions
        self.dropout = dropout
        self._run: RunCell = run_by_torch if implementation == "torch" else run_by_equations
        sizes = [input_size] + [self.output_size] * (num_layers - 1)
        self.forward_cells = nn.ModuleList(CELLS[cell](size, hidden_size) for size in sizes)
        self.backward_cells = nn.ModuleList(
            CELLS[cell](size, hidden_size) for size in sizes if bidirectional
        )
        self.pairs: list[LayerReader] = []  # no modules of the model: nothing to train or save

    def cells(self) -> list[Cell]:
        """Every cell, forward ones first."""
        return [cast(Cell, cell) for cell in (*self.forward_cells, *self.backward_cells)]

    def trained_cells(self) -> list[RecurrentCell]:
        """The same, before others took their places."""
        return [cell for cell in self.cells() if isinstance(cell, RecurrentCell)]

    def initial_state(self, rows: int) -> StackState:
        """Zeros for every layer; both directions' parts are joined: ``[rows, D*H]``."""
        state = []
        for cell in self.cells()[: len(self.forward_cells)]:
            parts = cell.initial_state(rows)
            state.append(tuple(part.repeat(1, self.num_directions) for part in parts))
        return tuple(state)

    def forward(
        self, inputs: Tensor, state: StackState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, StackState]:
        """Run over whole sequences.

        Args:
            inputs: ``[N, T, I]``.
            state: the state before the first position, zeros if None. The backward direction
                takes its part as the state behind each row's end.
            lengths: ``[N]`` int64, or None where no row is padded.

        Returns:
            The top layer's outputs ``[N, T, D*H]`` and each layer's state ``[N, D*H]`` after
            each row's own end (after its beginning, for the backward part).
        """
        return self._run_layers(self._run, inputs, state, lengths)

    def read(
        self, inputs: Tensor, layout: PackedLayout, start: StackState | None = None
    ) -> Generator[None, None, tuple[Tensor, StackState]]:
        """What :meth:`forward` computes, for serving.

        On a processor by the equations: decoding steps by them, so a prompt read this way leaves
        the state that the same tokens would have left one by one. On a GPU, where no two ways
        give the same bits, by torch's fused layer. No padding is computed, and there are pauses
        in which others may run.

        Args:
            inputs: ``[P, I]``, packed.
            layout: of the packed positions.
            start: the state before the first position of each sequence, in the layout's order;
                zeros if None. A bidirectional stack begins with zeros.

        Yields:
            Nothing, after every :data:`PIECE_POSITIONS` positions of a layer but the last
            (:data:`FUSED_PIECE_POSITIONS` of the fused layer).

        Returns:
            The top layer's outputs ``[P, D*H]``, packed, and each layer's state ``[N, D*H]``.
        """
        reverse = send(layout.reverse, inputs.device) if self.num_directions == 2 else None
        final: list[CellState] = []
        if self._run is run_by_torch and starting_dominates(inputs):
            return (yield from self._read_by_torch(inputs, layout, start, reverse))
        for layer in range(len(self.forward_cells)):
            if layer:
                yield
            if reverse is None:
                cell = self.cells()[layer]
                before = None if start is None else start[layer]
                inputs, after = yield from run_packed(cell, inputs, layout, before)
                final.append(after)
                continue
            inputs, after = yield from self._pair(layer).read(inputs, layout, reverse)
            final.append(after)
        return inputs, tuple(final)

    def _read_by_torch(
        self,
        inputs: Tensor,
        layout: PackedLayout,
        start: StackState | None,
        reverse: Tensor | None,
    ) -> Generator[None, None, tuple[Tensor, StackState]]:
        """:meth:`read` by the fused layer; ``reverse`` as the layout has it, or None."""
        cells, depth = self.trained_cells(), len(self.forward_cells)
        final: list[CellState] = []
        for layer in range(depth):
            if layer:
                yield
            before = None if start is None else start[layer]
            ahead, after = yield from run_packed_by_torch(cells[layer], inputs, layout, before)
            if reverse is None:
                inputs = ahead
                final.append(after)
                continue
            back, after_back = yield from run_packed_by_torch(
                cells[depth + layer], inputs.index_select(0, reverse), layout
            )
            inputs = torch.cat([ahead, back.index_select(0, reverse)], dim=-1)
            both = zip(after, after_back, strict=True)
            final.append(tuple(torch.cat(pair, dim=-1) for pair in both))
        return inputs, tuple(final)

    def _pair(self, layer: int) -> LayerReader:
        """What reads a layer in both directions."""
        if self.pairs:
            return self.pairs[layer]
        cells = self.cells()
        return CellPair(cells[layer], cells[len(self.forward_cells) + layer])

    def replace_cells(
        self, make: Callable[[RecurrentCell], Cell], pair: Callable[[Cell, Cell], LayerReader]
    ) -> None:
        """Have other cells compute everything from now on, always by the equations.

        The trained ones are given up: the stack can be neither trained nor saved any more.

        Args:
            make: a trained cell to the one that takes its place.
            pair: two of these to what reads a layer in both directions.
        """
        self._run = run_by_equations
        for cells in (self.forward_cells, self.backward_cells):
            for index, cell in enumerate(cells):
                cells[index] = make(cast(RecurrentCell, cell))
        self.pair_directions(pair)

    def pair_directions(self, pair: Callable[[Cell, Cell], LayerReader] = CellPair) -> None:
        """Keep what computes :meth:`read` of a bidirectional stack, from now on."""
        if self.num_directions == 2:
            cells, depth = self.cells(), len(self.forward_cells)
            self.pairs = [pair(*both) for both in zip(cells[:depth], cells[depth:], strict=True)]

    def _run_layers(
        self, run: RunCell, inputs: Tensor, state: StackState | None, lengths: Tensor | None
    ) -> tuple[Tensor, StackState]:
        state = self.initial_state(inputs.shape[0]) if state is None else state
        cells, depth = self.cells(), len(self.forward_cells)
        final = []
        for layer, before in enumerate(state):
            if layer and self.dropout:
                inputs = dropout(inputs, self.dropout, self.training)
            if self.num_directions == 1:
                inputs, after = run(cells[layer], inputs, before, lengths)
                final.append(after)
                continue
            halves = [part.chunk(2, dim=-1) for part in before]
            ahead, after_ahead = run(
                cells[layer], inputs, tuple(half[0].contiguous() for half in halves), lengths
            )
            back, after_back = run(
                cells[depth + layer],
                reverse_sequences(inputs, lengths),
                tuple(half[1].contiguous() for half in halves),
                lengths,
            )
            inputs = torch.cat([ahead, reverse_sequences(back, lengths)], dim=-1)
            pairs = zip(after_ahead, after_back, strict=True)
            final.append(tuple(torch.cat(pair, dim=-1) for pair in pairs))
        return inputs, tuple(final)

    def step(self, inputs: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        """One position of a one-directional stack, without dropout.

        Args:
            inputs: ``[N, I]``.
            state: the state before this position.

        Returns:
            The top layer's output ``[N, H]`` and the state after this position.

        Raises:
            ValueError: the stack is bidirectional: the future is not there yet.
        """
        if self.num_directions == 2:
            raise ValueError("a bidirectional stack cannot step: it would need the future")
        final = []
        for cell, before in zip(self.forward_cells, state, strict=True):
            after: CellState = cell(inputs, before)
            inputs = after[0]
            final.append(after)
        return inputs, tuple(final)
