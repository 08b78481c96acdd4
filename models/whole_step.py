"""Steps in int8 as few kernels: the same bits as the modules give, in less time.

Shape legend: ``N`` rows, ``V`` vocabulary size, ``A`` attention size.
"""

from typing import cast

import numpy as np
import torch
from torch import Tensor

from models.config import LanguageModelConfig
from models.encoder_decoder import StepOutput
from models.kernels.decoders import begin_step, finish_step, step_gru_model, step_lstm_model
from models.language_model import LanguageModel
from models.quantization import Int8Attention, Int8Cell, Int8Linear
from models.recurrent import RecurrentStack
from models.seq2seq import ParallelAttentionDecoder
from models.state import AttentionMemory, DecodeState
from models.team import TEAM


class DecoderStep:
    """The step of a :class:`ParallelAttentionDecoder` of GRU cells.

    Args:
        decoder: quantized.
    """

    def __init__(self, decoder: ParallelAttentionDecoder) -> None:
        (bottom,) = _cells(decoder.bottom)
        attention, bottleneck = decoder.attention, decoder.bottleneck
        assert isinstance(attention, Int8Attention)
        self._attention = attention
        self._embedding = decoder.embedding.weight.detach().numpy()
        self._bottom = _weights_of(bottom)
        self._query = _linear(attention.query_projection)
        self._above = tuple(_weights_of(cell) for cell in _cells(decoder.top))
        self._combine = _linear(decoder.combine)
        self._output = _linear(decoder.output_layer)
        narrow = self._output if bottleneck is None else _linear(bottleneck)
        narrow_size = 0 if bottleneck is None else narrow.outputs
        self._end = (narrow.weight, narrow_size, self._output.weight)

    def __call__(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """See :meth:`models.encoder_decoder.Decoder.step`."""
        TEAM.rouse()
        memory = cast(AttentionMemory, state.memory)
        bottom, *above = (layer[0].contiguous().numpy() for layer in state.layers)
        # Into other arrays: whoever has the state before the step may still need it.
        hidden, *after = (np.empty_like(bottom) for _ in state.layers)
        queries = np.empty((len(hidden), self._query.outputs), np.float32)
        begin_step(
            tokens.numpy(), self._embedding, bottom, *self._bottom, self._query.weight,
            hidden, queries,
        )  # fmt: skip
        contexts, weights = self._attention.answer(torch.from_numpy(queries), memory)
        logits = np.empty((len(hidden), self._output.outputs), np.float32)
        finish_step(
            hidden, contexts.numpy(), tuple(above), self._above, self._combine.weight, *self._end,
            tuple(after), logits,
        )  # fmt: skip
        layers = tuple((torch.from_numpy(part),) for part in (hidden, *after))
        return StepOutput(torch.from_numpy(logits), DecodeState(layers, memory=memory), weights)


class LanguageModelStep:
    """The step of a :class:`LanguageModel` of GRU or LSTM cells.

    Args:
        model: quantized.
    """

    def __init__(self, model: LanguageModel) -> None:
        cells = _cells(model.stack)
        self._kernel = step_lstm_model if cells[0].num_states == 2 else step_gru_model
        if model.embedding is None:
            self._embedding = np.eye(model.vocabulary_size, dtype=np.float32)
        else:
            self._embedding = model.embedding.weight.detach().numpy()
        self._cells = tuple(_weights_of(cell) for cell in cells)
        self._output = _linear(model.output)

    def __call__(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """See :meth:`models.encoder_decoder.StepModel.step`."""
        TEAM.rouse()
        before = tuple(tuple(part.contiguous().numpy() for part in layer) for layer in state.layers)
        after = tuple(tuple(np.empty_like(part) for part in layer) for layer in before)
        logits = np.empty((len(tokens), self._output.outputs), np.float32)
        self._kernel(
            tokens.numpy(), self._embedding, before, self._cells, self._output.weight,
            after, logits,
        )  # fmt: skip
        layers = tuple(tuple(torch.from_numpy(part) for part in layer) for layer in after)
        return StepOutput(torch.from_numpy(logits), DecodeState(layers))


def _cells(stack: RecurrentStack) -> list[Int8Cell]:
    return [cast(Int8Cell, cell) for cell in stack.cells()]


def _linear(module: torch.nn.Module) -> Int8Linear:
    assert isinstance(module, Int8Linear)
    return module


def _weights_of(cell: Int8Cell) -> tuple[object, object]:
    (recurrent,) = cell.weights
    return cell.projection.weight, recurrent


def join_kernels(model: torch.nn.Module) -> None:
    """Have what can make whole steps in a quantized model make them from now on."""
    for module in model.modules():
        if isinstance(module, ParallelAttentionDecoder) and module.config.cell == "gru":
            module.whole_step = DecoderStep(module)
        if isinstance(module, LanguageModel) and _can_step(module.config):
            module.whole_step = LanguageModelStep(module)


def _can_step(config: LanguageModelConfig) -> bool:
    return config.cell in ("gru", "lstm") and not config.bidirectional
