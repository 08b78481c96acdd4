"""Steps in int8 as few kernels, and several of them as one: the same bits as the modules give.

Shape legend: ``N`` rows, ``K`` steps, ``V`` vocabulary size, ``A`` attention size.
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.config import LanguageModelConfig
from models.encoder_decoder import StepOutput
from models.kernels.decoders import begin_step, finish_step, step_gru_model, step_lstm_model
from models.kernels.multi_step import (
    decode_by_gru_decoder,
    decode_by_gru_model,
    decode_by_lstm_model,
)
from models.kernels.products import Weight
from models.kernels.team import BOARD
from models.language_model import LanguageModel
from models.quantization import Int8Attention, Int8Cell, Int8DotAttention, Int8Linear
from models.recurrent import RecurrentStack, StackState
from models.seq2seq import ParallelAttentionDecoder
from models.several_steps import Rules, SearchSteps, SeveralSteps
from models.state import AttentionMemory, DecodeState
from models.team import TEAM


class _Space:
    """What several steps need besides their model and its state.

    Args:
        state: before them.
        rules: how tokens are chosen.
        steps: K.
        size: V.
    """

    def __init__(self, state: DecodeState, rules: Rules, steps: int, size: int) -> None:
        rows, searches = state.rows, rules.searches
        # The live hypotheses of a search may become as many as it keeps.
        self.rows = rows + int(np.maximum(searches.widths - searches.counts, 0).sum())
        self.before = _arrays(state)
        self.spare = tuple(_like(self.before, self.rows) for _ in range(2))
        self.logits = np.empty((self.rows, size), np.float32)
        self.outcome = (
            np.empty((steps, rows), np.int64),
            np.empty((steps, rows), np.float32),
            np.zeros(rows, np.int64),
            np.zeros(steps, np.int64),
            _space_to_search(steps, *searches.scores.shape),
        )
        self.after = _like(self.before, rows + searches.scores.size)

    def result(self) -> SeveralSteps:
        """After the kernel."""
        return SeveralSteps(*self.outcome, DecodeState(_tensors(self.after)))


def _space_to_search(steps: int, searches: int, width: int) -> SearchSteps:
    shape = (steps, searches, width)
    return SearchSteps(
        np.zeros(searches, np.int64),
        np.zeros(searches, np.int64),
        np.zeros(shape[:2], np.int64),
        np.empty(shape, np.int64),
        np.empty(shape, np.int64),
        np.empty(shape),
        np.empty(shape),
    )


Layers = tuple[tuple[NDArray[np.float32], ...], ...]
"""Of a state, as kernels take it."""


def _arrays(state: DecodeState) -> Layers:
    return tuple(tuple(part.contiguous().numpy() for part in layer) for layer in state.layers)


def _like(layers: Layers, rows: int) -> Layers:
    """Others: whoever has the state before a step may still need it."""
    return tuple(
        tuple(np.empty((rows, part.shape[1]), np.float32) for part in layer) for layer in layers
    )


def _tensors(layers: Layers) -> StackState:
    return tuple(tuple(torch.from_numpy(part) for part in layer) for layer in layers)


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
        query, output = _linear(attention.query_projection), _linear(decoder.output_layer)
        self._query_size, self._size = query.outputs, output.outputs
        embedding = decoder.embedding.weight.detach().numpy()
        self._first = (embedding, *_weights_of(bottom), query.weight)
        narrow = output if bottleneck is None else _linear(bottleneck)
        narrow_size = 0 if bottleneck is None else narrow.outputs
        self._second = (
            tuple(_weights_of(cell) for cell in _cells(decoder.top)),
            *(_linear(decoder.combine).weight, narrow.weight, narrow_size, output.weight),
        )

    def __call__(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """See :class:`models.several_steps.WholeStep`."""
        TEAM.rouse()
        memory = cast(AttentionMemory, state.memory)
        before = _arrays(state)
        after = _like(before, len(tokens))
        hidden = after[0][0]
        queries = np.empty((len(hidden), self._query_size), np.float32)
        begin_step(tokens.numpy(), before[0][0], *self._first, hidden, queries)
        contexts, weights = self._attention.answer(torch.from_numpy(queries), memory)
        logits = np.empty((len(hidden), self._size), np.float32)
        finish_step(hidden, contexts.numpy(), before[1:], *self._second, after[1:], logits)
        return StepOutput(
            torch.from_numpy(logits), DecodeState(_tensors(after), memory=memory), weights
        )

    def can_decode(self, state: DecodeState) -> bool:
        """With dot attention, to sources that stand in one pool."""
        memory = cast(AttentionMemory, state.memory)
        return memory.rest is None and isinstance(self._attention, Int8DotAttention)

    def decode(
        self, tokens: Tensor, state: DecodeState, rules: Rules, steps: int, stop: int
    ) -> SeveralSteps:
        """See :class:`models.several_steps.WholeStep`."""
        TEAM.rouse()
        memory = cast(AttentionMemory, state.memory)
        stored = memory.arrays
        space = _Space(state, rules, steps, self._size)
        spaces = tuple(
            np.empty((space.rows, size), np.float32)
            for size in (self._query_size, memory.values.shape[2], memory.mask.shape[1])
        )
        decode_by_gru_decoder(
            tokens.numpy(), memory.sources, (self._first, self._second),
            (stored.keys, stored.key_strides, stored.key_scales, *stored.of_values), spaces,
            space.before, space.spare, rules, steps, stop, BOARD.address, space.logits,
            space.outcome, space.after,
        )  # fmt: skip
        return space.result()


class LanguageModelStep:
    """The step of a :class:`LanguageModel` of GRU or LSTM cells.

    Args:
        model: quantized.
    """

    def __init__(self, model: LanguageModel) -> None:
        cells = _cells(model.stack)
        has_memory = cells[0].num_states == 2
        self._step = step_lstm_model if has_memory else step_gru_model
        self._decode = decode_by_lstm_model if has_memory else decode_by_gru_model
        if model.embedding is None:
            embedding = np.eye(model.vocabulary_size, dtype=np.float32)
        else:
            embedding = model.embedding.weight.detach().numpy()
        output = _linear(model.output)
        self._weights = (embedding, tuple(_weights_of(cell) for cell in cells), output.weight)
        self._size = output.outputs

    def __call__(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """See :class:`models.several_steps.WholeStep`."""
        TEAM.rouse()
        before = _arrays(state)
        after = _like(before, len(tokens))
        logits = np.empty((len(tokens), self._size), np.float32)
        self._step(tokens.numpy(), before, *self._weights, after, logits)
        return StepOutput(torch.from_numpy(logits), DecodeState(_tensors(after)))

    def can_decode(self, state: DecodeState) -> bool:
        """Always."""
        return True

    def decode(
        self, tokens: Tensor, state: DecodeState, rules: Rules, steps: int, stop: int
    ) -> SeveralSteps:
        """See :class:`models.several_steps.WholeStep`."""
        TEAM.rouse()
        space = _Space(state, rules, steps, self._size)
        self._decode(
            tokens.numpy(), self._weights, space.before, space.spare, rules, steps, stop,
            BOARD.address, space.logits, space.outcome, space.after,
        )  # fmt: skip
        return space.result()


def _cells(stack: RecurrentStack) -> list[Int8Cell]:
    return [cast(Int8Cell, cell) for cell in stack.cells()]


def _linear(module: torch.nn.Module) -> Int8Linear:
    assert isinstance(module, Int8Linear)
    return module


def _weights_of(cell: Int8Cell) -> tuple[Weight, Weight]:
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
