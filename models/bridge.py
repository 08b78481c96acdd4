"""From the encoder's final state to the decoder's initial state.

Shape legend: ``N`` rows, ``E`` size of an encoder output (both directions together), ``H`` hidden
size of the decoder, ``K`` layers of the encoder, ``L`` layers of the decoder. A state has one or
two parts (hidden, and memory for an LSTM) for each layer.
"""

import torch
from torch import Tensor, nn

from models.config import Seq2SeqConfig
from models.recurrent import StackState


class Bridge(nn.Module):
    """Turns the encoder's final state into the decoder's initial state: tanh(W s + b).

    Bahdanau et al. 2015, appendix A.2.2. Each decoder layer reads the encoder layer of its own
    depth, or the top one. Without a bridge the state is handed over as it is.
    """

    def __init__(self, config: Seq2SeqConfig, num_states: int) -> None:
        super().__init__()
        self.sources = [min(i, config.encoder_layers - 1) for i in range(config.decoder_layers)]
        self.num_states = num_states
        self.projections = nn.ModuleList(
            nn.Linear(config.encoder_size, config.hidden_size)
            for _ in range(config.decoder_layers * num_states)
        )
        self.tanh: nn.Module = nn.Tanh()

    def forward(self, state: StackState) -> StackState:
        """Encoder state, each part ``[N, E]``, to decoder state, each part ``[N, H]``."""
        projections = iter(self.projections)
        return tuple(
            tuple(self.tanh(next(projections)(part)) for part in state[layer])
            for layer in self.sources
        )


class JointBridge(nn.Module):
    """All layers' states together: relu(W [s_1; ...; s_K] + b), for each part of its own.

    The bridge of OpenNMT-py (Klein et al. 2017).
    """

    def __init__(self, config: Seq2SeqConfig, num_states: int) -> None:
        super().__init__()
        self.num_layers = config.decoder_layers
        self.projections = nn.ModuleList(
            nn.Linear(
                config.encoder_layers * config.encoder_size,
                config.decoder_layers * config.hidden_size,
            )
            for _ in range(num_states)
        )

    def forward(self, state: StackState) -> StackState:
        """K layers with parts ``[N, E]`` to L layers with parts ``[N, H]``."""
        columns = []
        for projection, parts in zip(self.projections, zip(*state, strict=True), strict=True):
            joined = torch.relu(projection(torch.cat(parts, dim=-1)))
            columns.append(joined.chunk(self.num_layers, dim=-1))
        return tuple(
            tuple(part.contiguous() for part in layer) for layer in zip(*columns, strict=True)
        )


class TopBridge(nn.Module):
    """tanh(W h + b) of the top layer's hidden state, the same for every layer and part.

    The bridge of Joey NMT (Kreutzer et al. 2019). Without ``learned`` the first H numbers of that
    hidden state as they are: those of the forward direction, where E is 2 H.
    """

    def __init__(self, config: Seq2SeqConfig, num_states: int, *, learned: bool) -> None:
        super().__init__()
        self.num_layers, self.num_states = config.decoder_layers, num_states
        self.hidden_size = config.hidden_size
        self.projection: nn.Module | None = (
            nn.Linear(config.encoder_size, config.hidden_size) if learned else None
        )
        self.tanh: nn.Module = nn.Tanh()

    def forward(self, state: StackState) -> StackState:
        """K layers with parts ``[N, E]`` to L layers with parts ``[N, H]``."""
        top = state[-1][0]
        initial: Tensor = (
            top[:, : self.hidden_size].contiguous()
            if self.projection is None
            else self.tanh(self.projection(top))
        )
        return ((initial,) * self.num_states,) * self.num_layers


def make_bridge(config: Seq2SeqConfig, num_states: int) -> nn.Module | None:
    """The bridge that a configuration asks for; None hands the state over as it is."""
    match config.initial_state:
        case "joint_bridge":
            return JointBridge(config, num_states)
        case "top_bridge" | "top":
            return TopBridge(config, num_states, learned=config.initial_state == "top_bridge")
        case "encoder":
            return None
    is_needed = config.bidirectional_encoder or (
        (config.encoder_layers, config.encoder_size) != (config.decoder_layers, config.hidden_size)
    )
    return Bridge(config, num_states) if is_needed else None
