"""The memory of decoding: everything that a model remembers between two steps.

A recurrent model's whole past is a few vectors of fixed size per row, so that joining a batch
is :meth:`DecodeState.concat` and leaving it, or reordering beams, is :meth:`DecodeState.select`.

Shape legend: ``N`` rows, ``S`` source positions, ``A`` attention size, ``E`` size of an encoder
output, ``H`` hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.recurrent import StackState


@dataclass(frozen=True)
class AttentionMemory:
    """What an attention looks at: one encoded source a row.

    Attributes:
        keys: ``[N, S, A]``, the values as the scoring function compares them.
        values: ``[N, S, E]``, the encoder's outputs.
        mask: ``[N, S]`` bool, True at real source positions.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor

    def select(self, rows: Tensor) -> "AttentionMemory":
        """The memory of the rows ``[M]`` int64, in that order."""
        return AttentionMemory(
            self.keys.index_select(0, rows),
            self.values.index_select(0, rows),
            self.mask.index_select(0, rows),
        )

    @staticmethod
    def concat(memories: Sequence["AttentionMemory"]) -> "AttentionMemory":
        """All rows of all memories, padded to the longest source among them."""
        size = max(memory.mask.shape[1] for memory in memories)
        gaps = [size - memory.mask.shape[1] for memory in memories]
        padded = list(zip(memories, gaps, strict=True))
        return AttentionMemory(
            torch.cat([functional.pad(m.keys, (0, 0, 0, gap)) for m, gap in padded]),
            torch.cat([functional.pad(m.values, (0, 0, 0, gap)) for m, gap in padded]),
            torch.cat([functional.pad(m.mask, (0, gap)) for m, gap in padded]),
        )


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

    def select(self, rows: Tensor) -> "DecodeState":
        """The state of the rows ``[M]`` int64, in that order; rows may repeat or be missing."""
        return DecodeState(
            layers=tuple(
                tuple(part.index_select(0, rows) for part in layer) for layer in self.layers
            ),
            context=None if self.context is None else self.context.index_select(0, rows),
            memory=None if self.memory is None else self.memory.select(rows),
        )

    @staticmethod
    def concat(states: Sequence["DecodeState"]) -> "DecodeState":
        """All rows of all states, in order.

        Raises:
            ValueError: no state was given, or the states are of different models.
        """
        if not states:
            raise ValueError("concat needs at least one state")
        contexts = [state.context for state in states if state.context is not None]
        memories = [state.memory for state in states if state.memory is not None]
        depths = {len(state.layers) for state in states}
        if len(depths) > 1 or any(0 < len(kept) < len(states) for kept in (contexts, memories)):
            raise ValueError("concat needs states of one model")
        columns = zip(*(state.layers for state in states), strict=True)
        return DecodeState(
            layers=tuple(
                tuple(torch.cat(parts) for parts in zip(*column, strict=True)) for column in columns
            ),
            context=torch.cat(contexts) if contexts else None,
            memory=AttentionMemory.concat(memories) if memories else None,
        )
