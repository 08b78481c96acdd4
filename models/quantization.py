"""Serving in int8 on the CPU: fast, and the same bits whoever shares the batch.

A float32 matrix product adds in an order that depends on how many rows it has, so that a row's
result changes with its batch-mates. Here every product multiplies integers, whose sums are exact
in any order, and every row has a scale of its own. Everything else is computed row by row by
:mod:`models.kernels`.

Shape legend: ``M`` rows, ``I`` inputs, ``O`` outputs, ``N`` rows of a batch, ``B`` sources, ``T``
queries of each, ``S`` source positions, ``A`` attention size, ``E`` size of an encoder output,
``H`` hidden size, ``G`` gates, ``P`` packed positions.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.attention import AdditiveAttention, Attention, DotAttention
from models.cells import (
    Cell,
    CellState,
    GRUCell,
    LSTMCell,
    RecurrentCell,
    RNNCell,
    TextbookGRUCell,
)
from models.kernels.attention import attend_additively, attend_by_dot
from models.kernels.gates import apply_tanh, run_gru, run_lstm, run_rnn, run_textbook_gru
from models.kernels.products import (
    Weight,
    linear,
    linear_of,
    pack_weight,
    store_groups,
    store_rows,
)
from models.kernels.team import BOARD
from models.packing import PackedLayout
from models.recurrent import PIECE_POSITIONS, LayerReading, RecurrentStack
from models.state import AttentionMemory
from models.team import TEAM

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

KERNELS: dict[type[Cell], Callable[..., None]] = {
    RNNCell: run_rnn,
    GRUCell: run_gru,
    TextbookGRUCell: run_textbook_gru,
    LSTMCell: run_lstm,
}


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to integers with a scale of its own.

    Args:
        rows: ``[..., I]`` float32.

    Returns:
        Integers from -127 to 127 as int8 ``[..., I]``, and the scales ``[..., 1]`` that multiply
        them.
    """
    flat = rows.reshape(-1, rows.shape[-1]).contiguous()
    values, scales = torch.empty(flat.shape, dtype=torch.int8), torch.empty(len(flat))
    store_rows(flat.numpy(), np.arange(len(flat)), values.numpy(), scales.numpy())
    return values.view(rows.shape), scales.view(*rows.shape[:-1], 1)


def _pack(weight: Tensor, bias: Tensor | None) -> Weight:
    values, scales = quantize_rows(weight.detach().float())
    added = torch.zeros(len(weight)) if bias is None else bias.detach().float()
    return pack_weight(values.numpy(), scales[:, 0].numpy(), added.numpy())


class Int8Linear(nn.Module):
    """A linear layer that multiplies int8 by int8, with a scale for each row and each output.

    ``outputs = bias + row_scale * (scale * sum(integers))``, in this order and each operation
    rounded by itself.

    Args:
        weight: ``[O, I]``.
        bias: ``[O]``, or None.

    Attributes:
        weight: as kernels take it, the bias included.
        outputs: O.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = _pack(weight, bias)
        self.outputs = len(weight)
        self.bias = torch.from_numpy(self.weight.biases)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs ``[..., I]`` float32 to ``[..., O]`` float32."""
        if inputs.dim() != 2:
            outputs: Tensor = self(inputs.reshape(-1, inputs.shape[-1]))
            return outputs.view(*inputs.shape[:-1], self.outputs)
        products = torch.empty(inputs.shape[0], self.outputs)
        self.multiply_into(products, inputs)
        return products

    def multiply_into(self, products: Tensor, inputs: Tensor) -> None:
        """:meth:`forward` of inputs ``[M, I]`` into a tensor ``[M, O]`` that is there."""
        TEAM.rouse()
        linear(inputs.contiguous().numpy(), self.weight, products.numpy())

    def multiply_rows(self, inputs: Floats, order: Integers) -> Floats:
        """:meth:`forward` of ``inputs[order]``, which is not made: ``order [M]`` to ``[M, O]``."""
        products = np.empty((len(order), self.outputs), np.float32)
        TEAM.rouse()
        linear_of(inputs, order, self.weight, products)
        return products


class Int8Cell(Cell):
    """A trained cell whose products are of int8, computed many positions at once.

    Args:
        cell: whose weights it takes over.

    Attributes:
        projection: of the inputs.
        weights: of the hidden states, a block of gates after the other.
    """

    def __init__(self, cell: RecurrentCell) -> None:
        super().__init__(cell.hidden_size)
        self.num_states = cell.num_states
        *blocks, inputs = cell.products()
        self.weights = [_pack(*block) for block in blocks]
        self._kernel = KERNELS[type(cell)]
        self.projection = Int8Linear(*inputs)

    def project(self, inputs: Tensor) -> Tensor:
        """See :meth:`Cell.project`."""
        projected: Tensor = self.projection(inputs)
        return projected

    def initial_state(self, rows: int) -> CellState:
        """See :meth:`Cell.initial_state`."""
        return (torch.zeros(rows, self.hidden_size),) * self.num_states

    def step(self, projected: Tensor, state: CellState) -> CellState:
        """See :meth:`Cell.step`."""
        return self.run(projected, [projected.shape[0]], state)[1]

    def run(
        self, projected: Tensor, active: Sequence[int], state: CellState
    ) -> tuple[Tensor, CellState]:
        """See :meth:`Cell.run`."""
        after = tuple(part.clone(memory_format=torch.contiguous_format) for part in state)
        outputs = torch.empty(projected.shape[0], self.hidden_size)
        order = np.arange(projected.shape[0])
        inputs = projected.contiguous().numpy()
        self.run_into(outputs.numpy(), inputs, order, np.array(active, np.int64), after, 0)
        return outputs, after

    def run_into(
        self,
        outputs: Floats,
        projected: Floats,
        order: Integers,
        active: Integers,
        state: CellState,
        column: int,
    ) -> None:
        """The same into an array that is there.

        Args:
            outputs: ``[P, D * H]``, where the hidden states go.
            projected: ``[P, G * H]``.
            order: ``[P]``, the row of ``outputs`` that belongs to each packed place.
            active: as for :meth:`run`.
            state: parts ``[N, D * H]``, changed in place.
            column: where this direction begins in ``outputs`` and ``state``.
        """
        parts = [part.numpy() for part in state]
        TEAM.rouse()
        self._kernel(projected, order, active, *parts, *self.weights, outputs, column)


class Int8CellPair:
    """Both directions of a layer: see :class:`models.recurrent.LayerReader`.

    Nothing is copied to be in another order: kernels are told it.

    Args:
        one: of the first.
        other: of the second.
    """

    def __init__(self, one: Cell, other: Cell) -> None:
        assert isinstance(one, Int8Cell)
        assert isinstance(other, Int8Cell)
        self._cells = (one, other)

    def read(self, inputs: Tensor, layout: PackedLayout, reverse: Tensor) -> LayerReading:
        """See :meth:`models.recurrent.LayerReader.read`."""
        (one, _), rows = self._cells, inputs.contiguous().numpy()
        size = 2 * one.hidden_size
        outputs = torch.empty(len(rows), size)
        state = tuple(torch.zeros(len(layout.lengths), size) for _ in range(one.num_states))
        orders = (np.arange(len(rows)), reverse.numpy())
        for position in range(0, len(layout.active), PIECE_POSITIONS):
            if position:
                yield
            active = np.array(layout.active[position : position + PIECE_POSITIONS], np.int64)
            first = layout.offsets[position]
            for direction, cell in enumerate(self._cells):
                order = orders[direction][first : first + active.sum()]
                projected = cell.projection.multiply_rows(rows, order)
                column = direction * cell.hidden_size
                cell.run_into(outputs.numpy(), projected, order, active, state, column)
        return outputs, state


class Tanh(nn.Module):
    """2 sigmoid(2x) - 1, to an absolute 2^-22: several times as fast as ``torch.tanh``."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Any shape, float32."""
        rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
        outputs = torch.empty_like(rows)
        apply_tanh(rows.numpy(), outputs.numpy())
        return outputs.view(inputs.shape)


class Int8Attention(Attention):
    """Attention over sources that are stored as integers, and that looks at no padding.

    Args:
        attention: whose projections it takes over.
    """

    def __init__(self, attention: Attention) -> None:
        nn.Module.__init__(self)
        self.query_projection = attention.query_projection
        self.key_projection = attention.key_projection

    def memory(self, values: Tensor, mask: Tensor) -> AttentionMemory:
        """See :meth:`Attention.memory`. Nothing is computed of padding."""
        places = np.flatnonzero(mask.numpy())
        stored, scales = torch.zeros(values.shape, dtype=torch.int8), torch.empty(len(values))
        rows = values.contiguous().numpy()
        store_groups(rows, places, stored.numpy(), scales.numpy())
        key_projection = cast(Int8Linear, self.key_projection)
        projected = key_projection.multiply_rows(rows.reshape(-1, rows.shape[2]), places)
        keys, key_scales = self.store_keys(projected, places, mask.numel())
        keys, key_scales = keys.view(*mask.shape, -1), key_scales.view(mask.shape)
        return AttentionMemory(keys, stored, mask, key_scales, scales)

    @abstractmethod
    def store_keys(self, keys: Floats, places: Integers, count: int) -> tuple[Tensor, Tensor]:
        """Projected keys as they are kept.

        Args:
            keys: ``[P, A]``.
            places: ``[P]``, where they go.
            count: how many places there are.

        Returns:
            The keys ``[count, A]``, zeros where none goes, and their scales ``[count]``.
        """

    @abstractmethod
    def look(
        self, queries: Tensor, sources: NDArray[np.int64], memory: AttentionMemory
    ) -> tuple[Tensor, Tensor]:
        """Projected queries ``[N, A]`` of rows to contexts ``[N, E]`` and weights ``[N, S]``.

        Args:
            queries: contiguous.
            sources: ``[N]``, each row's.
            memory: of all sources.
        """

    def weigh(self, queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """See :meth:`Attention.weigh`."""
        count, width = queries.shape[:2]
        rows = queries.reshape(count * width, -1).contiguous()
        context, weights = self.look(rows, np.arange(count * width) // width, memory)
        return context.view(count, width, -1), weights.view(count, width, -1)

    def _attend(self, projected: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        return self.look(projected, memory.sources, memory)


def _results(queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
    rows = len(queries)
    return torch.empty(rows, memory.values.shape[2]), torch.empty(rows, memory.mask.shape[1])


class Int8AdditiveAttention(Int8Attention):
    """:class:`AdditiveAttention`."""

    def __init__(self, attention: AdditiveAttention) -> None:
        super().__init__(attention)
        self._vector = attention.score.weight.detach().float()[0].clone().numpy()

    def store_keys(self, keys: Floats, places: Integers, count: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Int8Attention.store_keys`."""
        kept = torch.zeros(count, keys.shape[1])
        kept.numpy()[places] = keys
        return kept, torch.ones(count)

    def look(
        self, queries: Tensor, sources: NDArray[np.int64], memory: AttentionMemory
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Int8Attention.look`."""
        contexts, weights = _results(queries, memory)
        stored = memory.arrays
        attend_additively(
            queries.numpy(), sources, self._vector, stored.keys, stored.key_strides,
            *stored.of_values, weights.numpy(), contexts.numpy(), BOARD.address,
        )  # fmt: skip
        return contexts, weights


class Int8DotAttention(Int8Attention):
    """:class:`DotAttention` over keys that are stored as integers, a scale for each position."""

    def store_keys(self, keys: Floats, places: Integers, count: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Int8Attention.store_keys`."""
        kept, scales = torch.zeros(count, keys.shape[1], dtype=torch.int8), torch.zeros(count)
        store_rows(keys, places, kept.numpy(), scales.numpy())
        return kept, scales / math.sqrt(keys.shape[1])

    def look(
        self, queries: Tensor, sources: NDArray[np.int64], memory: AttentionMemory
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Int8Attention.look`."""
        contexts, weights = _results(queries, memory)
        stored = memory.arrays
        attend_by_dot(
            queries.numpy(), sources, stored.keys, stored.key_strides, stored.key_scales,
            *stored.of_values, weights.numpy(), contexts.numpy(), BOARD.address,
        )  # fmt: skip
        return contexts, weights


def quantize(model: nn.Module) -> None:
    """Have a model compute in int8 from now on, in place. It can no longer be trained or saved.

    Args:
        model: in float32, on the CPU.
    """
    for name, child in list(model.named_children()):
        if isinstance(child, RecurrentStack):
            child.replace_cells(Int8Cell, Int8CellPair)
        elif isinstance(child, nn.Linear):
            setattr(model, name, Int8Linear(child.weight, child.bias))
        elif isinstance(child, nn.Tanh):
            setattr(model, name, Tanh())
        else:
            wrapped = _quantize_attention(child) if isinstance(child, Attention) else child
            setattr(model, name, wrapped)
            quantize(wrapped)


def _quantize_attention(attention: Attention) -> Attention:
    if isinstance(attention, AdditiveAttention):
        return Int8AdditiveAttention(attention)
    assert isinstance(attention, DotAttention)
    return Int8DotAttention(attention)
