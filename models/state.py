"""The memory of decoding: everything that a model remembers between two steps.

A recurrent model's whole past is a few vectors of fixed size per row, so that joining a batch
is :meth:`DecodeState.concat` and leaving it, or reordering beams, is :meth:`DecodeState.select`.
The encoded sources of a model with attention are larger, never change, and are shared by the
rows of a beam: they stay where they are, in a :class:`MemoryPool`.

Shape legend: ``N`` rows, ``B`` sources, ``W`` rows of one source at most, ``S`` source positions,
``A`` attention size, ``E`` size of an encoder output, ``H`` hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import placement
from models.placement import on_device
from models.recurrent import StackState

MIN_STORED_SIZE = 16
"""Stored sources are padded to this at least: a softmax over fewer positions may round
differently with the padding, and few different shapes are quicker to plan for."""


@dataclass(frozen=True)
class RowLayout:
    """Which rows attend to which source, when several rows (a beam) share one.

    Rows stand in the cells of a grid ``[B, W]``: those of source b in the first cells of its
    line. Sharing makes a beam as cheap in memory as a single row.

    Attributes:
        width: W, the most rows of one source.
        cells: ``[N]`` int64, each row's cell ``b * W + i``; None where row n has cell n.
        lines: B, needed with cells.
    """

    width: int = 1
    cells: Tensor | None = None
    lines: int = 0

    @staticmethod
    def of(counts: Sequence[int], device: torch.device) -> "RowLayout":
        """The layout of so many rows for each source."""
        width = max(counts)
        if min(counts) == width:
            return RowLayout(width)
        cells = [line * width + i for line, count in enumerate(counts) for i in range(count)]
        return RowLayout(width, on_device(cells, device), len(counts))

    def spread(self, rows: Tensor) -> Tensor:
        """Rows ``[N, ...]`` to the grid ``[B, W, ...]``, zero in empty cells."""
        if self.cells is None:
            return rows.reshape(-1, self.width, *rows.shape[1:])
        grid = rows.new_zeros(self.lines * self.width, *rows.shape[1:])
        grid.index_copy_(0, self.cells, rows)
        return grid.view(self.lines, self.width, *rows.shape[1:])

    def gather(self, grid: Tensor) -> Tensor:
        """The rows' cells of a grid: ``[B, W, ...]`` to ``[N, ...]``."""
        cells = grid.flatten(0, 1)
        return cells if self.cells is None else cells.index_select(0, self.cells)


class MemoryArrays(NamedTuple):
    """Sources that are stored as integers, as :mod:`models.kernels.attention` takes them.

    Attributes:
        keys: ``[B * S * A]``, one number after the other.
        key_strides: how far apart sources and positions are.
        key_scales: ``[B, S]``.
        of_values: the same three of the values, whose scales are ``[B]``, and the mask ``[B, S]``.
    """

    keys: NDArray[Any]
    key_strides: tuple[int, int]
    key_scales: NDArray[Any]
    of_values: tuple[NDArray[Any], tuple[int, int], NDArray[Any], NDArray[Any]]


def _spread(part: Tensor) -> tuple[NDArray[Any], tuple[int, int]]:
    """The numbers of ``[B, S, X]`` one after the other, and the distances of both first places.

    Of a view that leaves out places, kernels could not know that numbers stand side by side.
    """
    if part.is_contiguous():
        return part.view(-1).numpy(), (part.stride(0), part.stride(1))
    reach = sum((size - 1) * step for size, step in zip(part.shape, part.stride(), strict=True))
    numbers = part.as_strided((reach + 1,), (1,)).numpy()
    return numbers, (part.stride(0), part.stride(1))


@dataclass(frozen=True)
class AttentionMemory:
    """What an attention looks at: ``B`` encoded sources, by default one for each row.

    Attributes:
        keys: ``[B, S, A]``, the values as the scoring function compares them.
        values: ``[B, S, E]``, the encoder's outputs.
        mask: ``[B, S]`` bool, True at real source positions.
        key_scales: ``[B, S]``, of keys that are stored as integers; else None.
        value_scales: ``[B]``, likewise of the values.
        layout: which rows attend to which source.
        rest: the sources of the rows behind these, padded to another size; or None.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None
    layout: RowLayout = RowLayout()
    rest: "AttentionMemory | None" = None

    @property
    def is_of_integers(self) -> bool:
        """Whether keys and values are integers: whoever attends to them passes padding over."""
        return self.value_scales is not None

    @property
    def rows(self) -> int:
        """N, of those that attend to these sources and not to the rest."""
        cells = self.layout.cells
        return len(self.mask) * self.layout.width if cells is None else cells.shape[0]

    @cached_property
    def sources(self) -> NDArray[np.int64]:
        """``[N]``, each row's: on the CPU."""
        cells = self.layout.cells
        places = np.arange(self.rows) if cells is None else cells.numpy()
        return places if self.layout.width == 1 else places // self.layout.width

    @cached_property
    def arrays(self) -> MemoryArrays:
        """Of integers: what is stored, for kernels."""
        assert self.key_scales is not None
        assert self.value_scales is not None
        keys, key_strides = _spread(self.keys)
        values, value_strides = _spread(self.values)
        mask = self.mask.contiguous().numpy()
        key_scales = self.key_scales.contiguous().numpy()
        of_values = (values, value_strides, self.value_scales.numpy(), mask)
        return MemoryArrays(keys, key_strides, key_scales, of_values)

    def parts(self) -> tuple[Tensor, ...]:
        """All tensors that have a line for each source."""
        every = (self.keys, self.values, self.mask, self.key_scales, self.value_scales)
        return tuple(part for part in every if part is not None)

    def with_parts(self, parts: Sequence[Tensor], layout: RowLayout) -> "AttentionMemory":
        """The same kind of memory with other tensors, in the order of :meth:`parts`."""
        keys, values, mask, *scales = parts
        key_scales, value_scales = scales or (None, None)
        return AttentionMemory(keys, values, mask, key_scales, value_scales, layout)

    def select(self, rows: Tensor) -> "AttentionMemory":
        """The memory of the rows ``[M]`` int64, in that order, a source for each.

        Raises:
            ValueError: the sources are of several sizes.
        """
        if self.rest is not None:
            raise ValueError("only sources of one size can be selected")
        cells = rows if self.layout.cells is None else self.layout.cells.index_select(0, rows)
        sources = cells.div(self.layout.width, rounding_mode="floor")
        return self.with_parts([p.index_select(0, sources) for p in self.parts()], RowLayout())


class MemoryPool:
    """The encoded sources of all running requests, in an order of their own.

    A source is written once when it joins: copying all of them whenever one joins or leaves would
    cost more than attending to them. Those of integers stay in their lines, of which some are
    empty, since whoever attends to them asks for the line of each row. The others are computed
    line by line: one that leaves has its gap closed, by the last one.
    """

    def __init__(self) -> None:
        self._stored: AttentionMemory | None = None
        self._lengths: list[int] = []
        self._lines: list[int] = []
        self._viewed: tuple[Sequence[int], AttentionMemory] | None = None

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def positions(self) -> int:
        """Positions that one attention to all sources looks at, padding included."""
        if self._stored is not None and self._stored.is_of_integers:
            return sum(self._lengths)
        return len(self) * stored_size(max(self._lengths, default=1))

    @property
    def padding(self) -> int:
        """How many of them are padding."""
        return self.positions - sum(self._lengths)

    def append(self, memory: AttentionMemory, lengths: Sequence[int]) -> None:
        """Put sources of these real lengths behind those that are there."""
        self._viewed = None
        stored = self._reserve(memory, len(self) + len(lengths), memory.mask.shape[1])
        taken = set(self._lines)
        empty = (line for line in range(len(stored.mask)) if line not in taken)
        lines = list(islice(empty, len(lengths)))
        self._lengths.extend(lengths)
        self._lines.extend(lines)
        to = on_device(lines, stored.mask.device)
        for old, new in zip(stored.parts(), memory.parts(), strict=True):
            if new.dim() == 1:
                _write_lines(old, to, new)
                continue
            if not self._is_passed_over(old):
                # What stood there before may not even have been a number: see _reserve.
                old.index_fill_(0, to, 0)
            _write_lines(old[:, : new.shape[1]], to, new)

    def keep(self, places: Sequence[int]) -> None:
        """Keep the sources of these places, in this order; those that stay cost nothing."""
        self._viewed = None
        self._lengths = [self._lengths[place] for place in places]
        self._lines = [self._lines[place] for place in places]
        if self._stored is None or self._stored.is_of_integers:
            return
        moves = [(to, line) for to, line in enumerate(self._lines) if to != line]
        self._lines = list(range(len(places)))
        if moves:
            to, origin = on_device(moves, self._stored.mask.device).unbind(1)
            for part in self._stored.parts():
                _write_lines(part, to, part.index_select(0, origin))

    def _is_passed_over(self, part: Tensor) -> bool:
        """Whether nobody looks at what stands in a part where the mask says padding."""
        assert self._stored is not None
        return self._stored.is_of_integers and part.dim() > 1 and part.dtype != torch.bool

    def view(self, counts: Sequence[int]) -> AttentionMemory:
        """The sources as rows see them, of which so many belong to each.

        Of integers it is all that is stored: rows know their lines, and masks how long these are.
        The others are no longer than the longest of them.
        """
        if self._viewed is None or self._viewed[0] != counts:  # as a rule nothing has changed
            self._viewed = counts, self._view(counts)
        return self._viewed[1]

    def _view(self, counts: Sequence[int]) -> AttentionMemory:
        assert self._stored is not None
        device = self._stored.mask.device
        if self._stored.is_of_integers:
            pairs = zip(self._lines, counts, strict=True)
            cells = [line for line, count in pairs for _ in range(count)]
            layout = RowLayout(1, on_device(cells, device), len(self._stored.mask))
            return replace(self._stored, layout=layout)
        size = stored_size(max(self._lengths, default=1))
        parts = [
            part[: len(self)] if part.dim() == 1 else part[: len(self), :size]
            for part in self._stored.parts()
        ]
        return self._stored.with_parts(parts, RowLayout.of(counts, device))

    def _reserve(self, like: AttentionMemory, count: int, size: int) -> AttentionMemory:
        """Storage for so many sources of this size, with what is stored already."""
        old = self._stored
        rows, positions = (0, 0) if old is None else old.mask.shape
        if old is not None and count <= rows and size <= positions:
            return old
        rows = max(rows, 2 ** (count - 1).bit_length())
        positions = max(positions, stored_size(size))
        parts = []
        for index, part in enumerate(like.parts()):
            shape = (rows, positions, *part.shape[2:]) if part.dim() > 1 else (rows,)
            # Zeros: a masked position has weight 0, and 0 times what memory happens to hold
            # must not be NaN.
            fresh = part.new_zeros(shape)
            if old is not None:
                kept = old.parts()[index]
                fresh[tuple(slice(n) for n in kept.shape)] = kept
            parts.append(fresh)
        self._stored = like.with_parts(parts, RowLayout())
        return self._stored


def _write_lines(part: Tensor, to: Tensor, lines: Tensor) -> None:
    """Put these into the lines ``part[to]``."""
    if not (placement.is_apart(part.device) or part.dtype == torch.bfloat16):  # NumPy has none
        part.numpy()[to.numpy()] = lines.numpy()  # PyTorch takes several times as long
    else:
        part.index_copy_(0, to, lines)


def stored_size(length: int) -> int:
    """Positions that a source of this length is padded to: 16, 32, 64, 128 ..."""
    return max(MIN_STORED_SIZE, 1 << (length - 1).bit_length())


def join_memories(memories: Sequence[AttentionMemory]) -> AttentionMemory | None:
    """Memories of different sizes one after the other, for the rows in this order."""
    joined = None
    for memory in reversed(memories):
        joined = replace(memory, rest=joined) if joined or memory.rest else memory
    return joined


@dataclass(frozen=True)
class DecodeState:
    """The state of ``N`` rows between two decoding steps.

    Attributes:
        layers: for each layer the cell's state, each part ``[N, H]``.
        context: ``[N, E]``, the fixed summary of the source of a textbook Seq2Seq, or None.
        memory: the encoded sources of a model with attention, or None.
    """

    layers: StackState
    context: Tensor | None = None
    memory: AttentionMemory | None = None

    @property
    def rows(self) -> int:
        """N."""
        return self.layers[0][0].shape[0]

    def flat(self) -> Tensor:
        """All parts of all layers of each row side by side, in order: ``[N, F]``, a copy."""
        return torch.cat([part for layer in self.layers for part in layer], dim=1)

    def with_layers(self, flat: Tensor) -> "DecodeState":
        """The state whose :meth:`flat` this is, ``[M, F]``, cut up like this state's layers."""
        sizes = [part.shape[1] for layer in self.layers for part in layer]
        parts = iter(torch.split(flat, sizes, dim=1))
        layers = tuple(tuple(next(parts).contiguous() for _ in layer) for layer in self.layers)
        return DecodeState(layers)

    def select_layers(self, rows: Tensor) -> "DecodeState":
        """The state of the rows ``[M]`` int64 without its memory, which stands in a pool."""
        context = None if self.context is None else self.context.index_select(0, rows)
        layers = tuple(tuple(part.index_select(0, rows) for part in layer) for layer in self.layers)
        return DecodeState(layers, context)

    def close_gaps(self, rows: Sequence[int]) -> "DecodeState":
        """:meth:`select_layers`, perhaps into this state's own tensors: it is given up.

        When rows leave, the last ones take their places, and all others need not be copied.
        """
        moves = [(to, row) for to, row in enumerate(rows) if to != row]
        device = self.layers[0][0].device
        # On a GPU the next step may write over what this one has brought.
        if placement.is_apart(device) or len(rows) > self.rows or 2 * len(moves) > len(rows):
            return self.select_layers(on_device(list(rows), device))

        def move(part: Tensor) -> Tensor:
            if moves:
                _write_lines(part, to, part.index_select(0, origin))
            return part[: len(rows)]

        if moves:
            to, origin = on_device(moves, device).unbind(1)
        layers = tuple(tuple(move(part) for part in layer) for layer in self.layers)
        return DecodeState(layers, None if self.context is None else move(self.context))

    def select(self, rows: Tensor) -> "DecodeState":
        """The state of the rows ``[M]`` int64, in that order; rows may repeat or be missing."""
        state = self.select_layers(rows)
        return state if self.memory is None else replace(state, memory=self.memory.select(rows))

    @staticmethod
    def concat(states: Sequence["DecodeState"]) -> "DecodeState":
        """All rows of all states, in order; without their memory.

        Raises:
            ValueError: no state was given, or the states are of different models.
        """
        if not states:
            raise ValueError("concat needs at least one state")
        if any(state.memory is not None for state in states):
            raise ValueError("encoded sources are joined in a MemoryPool")
        contexts = [state.context for state in states if state.context is not None]
        depths = {len(state.layers) for state in states}
        if len(depths) > 1 or 0 < len(contexts) < len(states):
            raise ValueError("concat needs states of one model")
        columns = zip(*(state.layers for state in states), strict=True)
        return DecodeState(
            layers=tuple(
                tuple(torch.cat(parts) for parts in zip(*column, strict=True)) for column in columns
            ),
            context=torch.cat(contexts) if contexts else None,
        )
