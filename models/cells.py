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

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import CellName

CellState = tuple[Tensor, ...]
"""What one cell remembers of one position: ``(hidden,)``, or ``(hidden, memory)`` for an LSTM,
each ``[N, H]``. The hidden state, which is also the cell's output, comes first."""


class RecurrentCell(nn.Module, ABC):
    """What every cell shares: parameters in torch's layout and the input projection.

    Args:
        input_size: I.
        hidden_size: H.
    """

    num_gates: ClassVar[int]
    num_states: ClassVar[int] = 1

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        size = self.num_gates * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(size, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(size))
        self.bias_hh = nn.Parameter(torch.empty(size))
        bound = hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def project(self, inputs: Tensor) -> Tensor:
        """The input's share of every gate: ``[..., I] -> [..., G*H]``, without recurrence."""
        return functional.linear(inputs, self.weight_ih, self.bias_ih)

    def initial_state(self, rows: int) -> CellState:
        """A state of zeros: ``num_states`` tensors ``[rows, H]``."""
        zeros = self.weight_hh.new_zeros(rows, self.hidden_size)
        return (zeros,) * self.num_states

    def forward(self, inputs: Tensor, state: CellState) -> CellState:
        """One position: inputs ``[N, I]`` and a state to the next state."""
        return self.step(self.project(inputs), state)

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
    def set_gate_bias(self, value: float) -> None:
        """Set the initial bias of the gate that keeps the state (in total, over both biases).

        A large value makes the cell remember from the start of training (Gers et al. 2000;
        Jozefowicz et al. 2015, section 2.2).
        """


class RNNCell(RecurrentCell):
    """The plain recurrent network (Elman 1990): H_t = tanh(X_t W_x + H_{t-1} W_h + b)."""

    num_gates = 1

    def step(self, projected: Tensor, state: CellState) -> CellState:
        """See :meth:`RecurrentCell.step`."""
        (hidden,) = state
        return (torch.tanh(projected + functional.linear(hidden, self.weight_hh, self.bias_hh)),)

    def set_gate_bias(self, value: float) -> None:
        """A plain RNN has no gate; only 0 is accepted.

        Raises:
            ValueError: the value is not 0.
        """
        if value:
            raise ValueError(f"a plain RNN has no gate whose bias could be {value}")


class _GatedRecurrentUnit(RecurrentCell):
    """Parameters of both published forms of the GRU; gates in the order reset, update, new."""

    num_gates = 3

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
        """See :meth:`RecurrentCell.step`."""
        (hidden,) = state
        recurrent = functional.linear(hidden, self.weight_hh, self.bias_hh)
        input_reset, input_update, input_new = projected.chunk(3, dim=-1)
        hidden_reset, hidden_update, hidden_new = recurrent.chunk(3, dim=-1)
        reset = torch.sigmoid(input_reset + hidden_reset)
        update = torch.sigmoid(input_update + hidden_update)
        candidate = torch.tanh(input_new + reset * hidden_new)
        return (update * hidden + (1 - update) * candidate,)


class TextbookGRUCell(_GatedRecurrentUnit):
    """The GRU of the textbook: the reset gate acts on the hidden state before its product.

    Cho et al. 2014, equations 5 to 8; *Dive into Deep Learning*, section 10.2::

        R_t = sigmoid(X_t W_xr + H_{t-1} W_hr + b_r)
        Z_t = sigmoid(X_t W_xz + H_{t-1} W_hz + b_z)
        N_t = tanh(X_t W_xn + (R_t * H_{t-1}) W_hn + b_n)
        H_t = Z_t * H_{t-1} + (1 - Z_t) * N_t
    """

    def step(self, projected: Tensor, state: CellState) -> CellState:
        """See :meth:`RecurrentCell.step`."""
        (hidden,) = state
        size = self.hidden_size
        gates = functional.linear(hidden, self.weight_hh[: 2 * size], self.bias_hh[: 2 * size])
        reset, update = torch.sigmoid(projected[..., : 2 * size] + gates).chunk(2, dim=-1)
        product = functional.linear(
            reset * hidden, self.weight_hh[2 * size :], self.bias_hh[2 * size :]
        )
        candidate = torch.tanh(projected[..., 2 * size :] + product)
        return (update * hidden + (1 - update) * candidate,)


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

    def step(self, projected: Tensor, state: CellState) -> CellState:
        """See :meth:`RecurrentCell.step`."""
        hidden, memory = state
        gates = projected + functional.linear(hidden, self.weight_hh, self.bias_hh)
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=-1)
        memory = torch.sigmoid(forget_gate) * memory + torch.sigmoid(input_gate) * torch.tanh(
            candidate
        )
        return (torch.sigmoid(output_gate) * torch.tanh(memory), memory)

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
