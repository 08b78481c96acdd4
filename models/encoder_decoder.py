"""The interfaces of encoders and decoders, and of every model that generates step by step.

*Dive into Deep Learning*, section 10.6. Shape legend: ``N`` rows, ``S`` source
positions, ``T`` target positions, ``E`` size of an encoder output, ``F`` size of a decoder feature,
``V`` vocabulary size. Token ids are int64.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from models.placement import on_device
from models.recurrent import StackState
from models.state import DecodeState
from models.tokenizers import PAD_ID


class StepOutput(NamedTuple):
    """What one decoding step gives.

    Attributes:
        logits: ``[N, V]`` float32, unnormalised scores of the next token.
        state: the state after the step.
        attention: ``[N, S]`` weights over the source positions, or None without attention.
    """

    logits: Tensor
    state: DecodeState
    attention: Tensor | None = None


Reading = Generator[None, None, tuple[Tensor, DecodeState]]
"""Prompts being read: see :meth:`StepModel.read`."""


class StepModel(Protocol):
    """A model that generates one token a step: all that decoding needs to know of it."""

    @property
    def vocabulary_size(self) -> int:
        """V, of the tokens that are generated."""
        ...

    @property
    def prompt_vocabulary_size(self) -> int:
        """How many tokens there are that a prompt may have."""
        ...

    @property
    def continues_prompt(self) -> bool:
        """Whether the output goes on from the prompt, in the prompt's vocabulary."""
        ...

    def read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        """Read prompts (source sentences, for a translation model), one a row, with pauses.

        Returns:
            A generator that yields nothing after every piece of work, and returns the first
            token to feed ``[N]`` int64, which no state has seen yet, and the state.
        """
        ...

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """Feed one token a row, ``[N]`` int64."""
        ...


@runtime_checkable
class ResumableModel(StepModel, Protocol):
    """A model whose texts can go on from a state: all of its past is in the state's layers."""

    def initial_state(self, rows: int) -> DecodeState:
        """The state of rows before their first token."""
        ...

    def resume(self, prompts: Sequence[Sequence[int]], state: DecodeState) -> Reading:
        """Read prompts as :meth:`read` does, each from a state of its own.

        Args:
            prompts: token ids that follow what the states have seen.
            state: of a row for each prompt. :meth:`read` begins with :meth:`initial_state`.
        """
        ...


def require_resumable(model: StepModel) -> ResumableModel:
    """The model itself.

    Raises:
        ValueError: its state holds a source, and does not travel.
    """
    if not isinstance(model, ResumableModel):
        raise ValueError("only a language model's state can be kept and gone on from")
    return model


def read_at_once(model: StepModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DecodeState]:
    """Read prompts without pauses: see :meth:`StepModel.read`."""
    reading = model.read(prompts)
    while True:
        try:
            next(reading)
        except StopIteration as stop:
            return cast(tuple[Tensor, DecodeState], stop.value)


@dataclass(frozen=True)
class EncodedSource:
    """What an encoder makes of its sources.

    Attributes:
        outputs: ``[N, S, E]``, zero at padded positions.
        final_state: each layer's state after each row's end.
        mask: ``[N, S]`` bool, True at real positions.
    """

    outputs: Tensor
    final_state: StackState
    mask: Tensor

    def select(self, rows: Tensor) -> "EncodedSource":
        """The sources of the rows ``[M]`` int64, in that order."""
        return EncodedSource(
            self.outputs.index_select(0, rows),
            tuple(tuple(part.index_select(0, rows) for part in cell) for cell in self.final_state),
            self.mask.index_select(0, rows),
        )


class Encoder(nn.Module, ABC):
    """Reads a source."""

    @abstractmethod
    def forward(self, sources: Tensor, lengths: Tensor) -> EncodedSource:
        """Encode sources ``[N, S]`` of which row n has ``lengths[n]`` (int64, >= 1) real tokens."""

    @abstractmethod
    def read(self, sources: Sequence[Sequence[int]]) -> Generator[None, None, EncodedSource]:
        """The same by the equations and with pauses, without dropout: for serving.

        Args:
            sources: token ids, longest first.
        """


class Decoder(nn.Module, ABC):
    """Writes a target, given an encoded source."""

    @abstractmethod
    def start(self, encoded: EncodedSource) -> DecodeState:
        """The state before the first target token."""

    @abstractmethod
    def features(self, inputs: Tensor, state: DecodeState) -> Tensor:
        """Teacher forcing: target inputs ``[N, T]`` to the next tokens' features ``[N, T, F]``.

        All positions are computed at once where the decoder allows it.
        """

    @abstractmethod
    def output(self, features: Tensor) -> Tensor:
        """Features ``[..., F]`` to logits ``[..., V]``."""

    @abstractmethod
    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """Feed one token a row, ``[N]``."""

    def forward(self, inputs: Tensor, state: DecodeState) -> Tensor:
        """Teacher forcing: target inputs ``[N, T]`` to logits ``[N, T, V]``."""
        return self.output(self.features(inputs, state))


class EncoderDecoder(nn.Module):
    """An encoder whose final state starts a decoder."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, sources: Tensor, source_lengths: Tensor, inputs: Tensor) -> Tensor:
        """Teacher forcing.

        Args:
            sources: ``[N, S]``.
            source_lengths: ``[N]``, real tokens of each source.
            inputs: ``[N, T]``, the target shifted right: ``<bos>`` first.

        Returns:
            Logits ``[N, T, V]`` of the next target token at each position.
        """
        encoded = self.encoder(sources, source_lengths)
        logits: Tensor = self.decoder(inputs, self.decoder.start(encoded))
        return logits


def longest_first(prompts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Indices of the prompts in the order in which they are read, and the way back.

    Returns:
        ``order``, for which ``prompts[order[0]]`` is the longest, and ``places``, for which
        ``order[places[i]] == i``.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    return order, sorted(range(len(order)), key=order.__getitem__)


def pad_tokens(
    sequences: Sequence[Sequence[int]], device: torch.device, multiple: int = 1
) -> tuple[Tensor, Tensor]:
    """Token sequences to a padded batch ``[N, T]`` int64 and their lengths ``[N]`` int64.

    T is the length of the longest, or the next multiple that is asked for.
    """
    lengths = [len(sequence) for sequence in sequences]
    longest = max(lengths, default=0)
    size = longest + -longest % multiple
    rows = [[*sequence, *[PAD_ID] * (size - len(sequence))] for sequence in sequences]
    batch = on_device(rows, device).reshape(len(rows), size)
    return batch, on_device(lengths, device)
