"""Recurrent cells written from their gate equations, in plain tensor operations.

Shape legend for this module: ``N`` rows (one sequence each), ``T`` positions, ``I`` input
size, ``H`` hidden size, ``G`` number of gates (blocks of H in the weights). All tensors are
floating point and of the module's own dtype.

A cell works in two halves, so that the input products of many positions can be computed at
once while the recurrence still runs position by position::

    projected = cell.project(inputs)        # [..., I] -> [..., G * H], no recurrence
    state = cell.step(projected, state)     # one position

The parameters have the names, shapes and gate order of ``torch.nn.GRU``, ``LSTM`` and ``RNN``
(``weight_ih [G*H, I]``, ``weight_hh [G*H, H]``, ``bias_ih``, ``bias_hh [G*H]``), so that a
sequence can also be computed by torch's fused layers with the same weights.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import CellName

CellState = tuple[Tensor, ...]
"""What one cell remembers of one position: ``(hidden,)``, or ``(hidden, memory)`` for an LSTM,
each ``[N, H]``. The hidden state, which is also the cell's output, comes first."""


class Cell(nn.Module, ABC):
    """What a stack asks of a cell, whoever computes it.

    Args:
        hidden_size: H.
    """

    num_states: int = 1

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    @abstractmethod
    def project(self, inputs: Tensor) -> Tensor:
        """The input's share of every gate: ``[..., I] -> [..., G*H]``, without recurrence."""

    @abstractmethod
    def step(self, projected: Tensor, state: CellState) -> CellState:
        """One position.

        Args:
            projected: ``[N, G*H]``, from :meth:`project`.
            state: the state before this position.

        Returns:
            The state after it.
        """

    @abstractmethod
    def initial_state(self, rows: int) -> CellState:
        """A state of zeros: ``num_states`` tensors ``[rows, H]``."""

    def forward(self, inputs: Tensor, state: CellState) -> CellState:
        """One position: inputs ``[N, I]`` and a state to the next state."""
        return self.step(self.project(inputs), state)

    def run(
        self, projected: Tensor, active: Sequence[int], state: CellState
    ) -> tuple[Tensor, CellState]:
        """Several positions, packed: at each, the first rows go on and the others have ended.

        Args:
            projected: ``[..., P, G*H]``, from :meth:`project`.
            active: rows that have each position, ever fewer; their sum is P.
            state: of N rows, each part ``[..., N, H]``, before the first position.

        Returns:
            The hidden states ``[..., P, H]``, and each row's state after its own end.
        """
        outputs = [projected.new_empty(*projected.shape[:-2], 0, self.hidden_size)]
        rows, ended, first = state[0].shape[-2], [], 0
        for count in active:
            if count < rows:
                ended.append(tuple(part[..., count:, :] for part in state))
                state = tuple(part[..., :count, :] for part in state)
                rows = count
            state = self.step(projected[..., first : first + count, :], state)
            outputs.append(state[0])
            first += count
        parts = zip(state, *reversed(ended), strict=True)
        return torch.cat(outputs, dim=-2), tuple(torch.cat(part, dim=-2) for part in parts)


class RecurrentCell(Cell):
    """What every cell that can be trained shares: parameters in torch's layout.

    Args:
        input_size: I.
        hidden_size: H.
    """

    num_gates: ClassVar[int]
    hidden_blocks: ClassVar[tuple[tuple[int, int], ...]] = ((0, 1),)
    """Ranges of gates whose hidden products are computed together: see :meth:`recur`."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.input_size = input_size
        size = self.num_gates * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(size, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(size))
        self.bias_hh = nn.Parameter(torch.empty(size))
        bound = hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        self._pairs: list[nn.Module] | None = None

    def project(self, inputs: Tensor) -> Tensor:
        """See :meth:`Cell.project`."""
        if self._pairs is not None:
            return cast(Tensor, self._pairs[-1](inputs))
        return functional.linear(inputs, self.weight_ih, self.bias_ih)

    def recur(self, hidden: Tensor, block: int = 0) -> Tensor:
        """The hidden state's share of a block of gates: ``[N, H]`` to ``[N, gates * H]``."""
        if self._pairs is not None:
            return cast(Tensor, self._pairs[block](hidden))
        first, last = (gate * self.hidden_size for gate in self.hidden_blocks[block])
        return functional.linear(hidden, self.weight_hh[first:last], self.bias_hh[first:last])

    def products(self) -> list[tuple[Tensor, Tensor]]:
        """Weight ``[O, I]`` and bias ``[O]`` of every block of :meth:`recur`, then of the input."""
        size = self.hidden_size
        ranges = [slice(first * size, last * size) for first, last in self.hidden_blocks]
        blocks = [(self.weight_hh[block], self.bias_hh[block]) for block in ranges]
        return [*blocks, (self.weight_ih, self.bias_ih)]

    def initial_state(self, rows: int) -> CellState:
        """See :meth:`Cell.initial_state`."""
        zeros = self.bias_ih.new_zeros(rows, self.hidden_size)
        return (zeros,) * self.num_states

    @abstractmethod
    def set_gate_bias(self, value: float) -> None:
        """Set the initial bias of the gate that keeps the state (in total, over both biases).

        A large value makes the cell remember from the start of training (Gers et al. 2000;
        Jozefowicz et al. 2015, section 2.2).
        """


class RNNCell(RecurrentCell):
    """The plain recurrent network (Elman 1990): H_t = tanh(X_t W_x + H_{t-1} W_h + b)."""

    num_gates = 1

    def step(self, projected: Tensor, state: CellState) -> CellState:
        """See :meth:`Cell.step`."""
        (hidden,) = state
        return (torch.tanh(projected + self.recur(hidden)),)

    def set_gate_bias(self, value: float) -> None:
        """A plain RNN has no gate; only 0 is accepted.

        Raises:
            ValueError: the value is not 0.
        """
        if value:
            raise ValueError(f"a plain RNN has no gate whose bias could be {value}")


def _interpolate(candidate: Tensor, hidden: Tensor, update: Tensor) -> Tensor:
    """(1 - Z) * N + Z * H, in the type of H: under autocast the others may have a smaller one."""
    return torch.lerp(candidate.to(hidden.dtype), hidden, update.to(hidden.dtype))


class _GatedRecurrentUnit(RecurrentCell):
    """Parameters of both published forms of the GRU; gates in the order reset, update, new."""

    num_gates = 3
    hidden_blocks: ClassVar[tuple[tuple[int, int], ...]] = ((0, 3),)

    def set_gate_bias(self, value: float) -> None:
        """Set the bias of the update gate, which keeps the state when it is open."""
        update = slice(self.hidden_size, 2 * self.hidden_size)
        with torch.no_grad():
            self.bias_ih[update] = value
            self.bias_hh[update] = 0.0


class GRUCell(_GatedRecurrentUnit):
    """The GRU that ``torch.nn.GRU`` and cuDNN compute: the reset gate acts after the product.

    Cho et al. 2014 (version 3, appendix A.1.1 of the arXiv text gives both readings)::

        R_t = sigmoid(X_t W_xr + b_xr + H_{t-1} W_hr + b_hr)
        Z_t = sigmoid(X_t W_xz + b_xz + H_{t-1} W_hz + b_hz)
        N_t = tanh(X_t W_xn + b_xn + R_t * (H_{t-1} W_hn + b_hn))
        H_t = Z_t * H_{t-1} + (1 - Z_t) * N_t
    """

    def step(self, projected: Tensor, state: CellState) -> CellState:
        """See :meth:`Cell.step`."""
        (hidden,) = state
        size = 2 * self.hidden_size
        recurrent = self.recur(hidden)
        gates = torch.sigmoid(projected[..., :size] + recurrent[..., :size])
        reset, update = gates.chunk(2, dim=-1)
        candidate = torch.tanh(torch.addcmul(projected[..., size:], reset, recurrent[..., size:]))
        return (_interpolate(candidate, hidden, update),)


class TextbookGRUCell(_GatedRecurrentUnit):
    """The GRU of the textbook: the reset gate acts on the hidden state before its product.

    Cho et al. 2014, equations 5 to 8; *Dive into Deep Learning*, section 10.2::

        R_t = sigmoid(X_t W_xr + H_{t-1} W_hr + b_r)
        Z_t = sigmoid(X_t W_xz + H_{t-1} W_hz + b_z)
        N_t = tanh(X_t W_xn + (R_t * H_{t-1}) W_hn + b_n)
        H_t = Z_t * H_{t-1} + (1 - Z_t) * N_t
    """

    hidden_blocks = ((0, 2), (2, 3))

    def step(self, projected: Tensor, state: CellState) -> CellState:
        """See :meth:`Cell.step`."""
        (hidden,) = state
        size = 2 * self.hidden_size
        gates = torch.sigmoid(projected[..., :size] + self.recur(hidden))
        reset, update = gates.chunk(2, dim=-1)
        candidate = torch.tanh(projected[..., size:] + self.recur(reset * hidden, 1))
        return (_interpolate(candidate, hidden, update),)


class LSTMCell(RecurrentCell):
    """Long short-term memory with a forget gate (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    *Dive into Deep Learning*, section 10.1; gates in torch's order input, forget, candidate,
    output::

        I_t, F_t, O_t = sigmoid(X_t W_x. + H_{t-1} W_h. + b_.)
        G_t = tanh(X_t W_xg + H_{t-1} W_hg + b_g)
        C_t = F_t * C_{t-1} + I_t * G_t
        H_t = O_t * tanh(C_t)
    """

    num_gates = 4
    num_states = 2
    hidden_blocks = ((0, 4),)

    def step(self, projected: Tensor, state: CellState) -> CellState:
        """See :meth:`Cell.step`."""
        hidden, memory = state
        gates = projected + self.recur(hidden)
        size = self.hidden_size
        input_gate, forget_gate = torch.sigmoid(gates[..., : 2 * size]).chunk(2, dim=-1)
        candidate = torch.tanh(gates[..., 2 * size : 3 * size])
        memory = torch.addcmul(forget_gate * memory, input_gate, candidate)
        return (torch.sigmoid(gates[..., 3 * size :]) * torch.tanh(memory), memory)

    def set_gate_bias(self, value: float) -> None:
        """Set the bias of the forget gate."""
        forget = slice(self.hidden_size, 2 * self.hidden_size)
        with torch.no_grad():
            self.bias_ih[forget] = value
            self.bias_hh[forget] = 0.0


CELLS: dict[CellName, type[RecurrentCell]] = {
    "rnn": RNNCell,
    "gru": GRUCell,
    "gru_textbook": TextbookGRUCell,
    "lstm": LSTMCell,
}


class LinearPair(nn.Module):
    """Two linear layers side by side, over ``[2, M, I]``.

    Args:
        one: weight ``[O, I]`` and bias ``[O]`` of the first.
        other: of the second.
    """

    def __init__(self, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self._weight = torch.stack([one[0], other[0]]).transpose(1, 2)
        self._bias = torch.stack([one[1], other[1]])[:, None]

    def forward(self, inputs: Tensor) -> Tensor:
        """``[2, M, I]`` to ``[2, M, O]``."""
        return torch.baddbmm(self._bias, inputs, self._weight)


def pair_cells(one: Cell, other: Cell) -> Cell:
    """Two trained cells of one kind and size that step together, over ``[2, N, ...]``.

    A bidirectional layer's directions do not see each other: side by side they need half the
    operations.
    """
    assert isinstance(one, RecurrentCell)
    assert isinstance(other, RecurrentCell)
    both = zip(one.products(), other.products(), strict=True)
    pair = copy.copy(one)
    pair._pairs = [LinearPair(*products) for products in both]
    return pair
