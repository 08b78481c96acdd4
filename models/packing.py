"""Sequences of different lengths without padding, position by position.

Shape legend: ``N`` sequences, ``T`` positions, ``P`` packed positions, ``E`` size of what stands at
one.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.placement import send


def sequence_mask(lengths: Tensor, size: int) -> Tensor:
    """True at the real positions: lengths ``[N]`` int64 to ``[N, size]`` bool."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class PackedLayout:
    """Where the real positions of N sequences stand, without padding, position by position.

    The sequences are sorted by length, the longest first, so that those which have a position t
    are the first ``active[t]``: at t, packed row ``offsets[t] + n`` belongs to sequence n.

    Args:
        lengths: of the sequences, longest first; 0 is allowed.

    Raises:
        ValueError: they are not sorted.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        if list(lengths) != sorted(lengths, reverse=True):
            raise ValueError(f"lengths must fall, not {list(lengths)}")
        self.lengths = list(lengths)
        each = np.array(self.lengths, np.int64)
        longest = int(each.max(initial=0))
        active = np.count_nonzero(each > np.arange(longest)[:, None], axis=1)
        self.active: list[int] = active.tolist()
        self.offsets: list[int] = [0, *itertools.accumulate(self.active)]
        # Of each packed row: its position, and which sequence it belongs to.
        self._position = np.repeat(np.arange(longest), active)
        self._sequence = np.arange(self.size) - np.repeat(
            np.array(self.offsets[:-1], np.int64), active
        )

    @property
    def size(self) -> int:
        """P: all real positions."""
        return self.offsets[-1]

    def pack(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Tokens of the sequences, packed: ``[P]`` int64, on the CPU. They may be longer."""
        kept = (sequence[:n] for sequence, n in zip(sequences, self.lengths, strict=True))
        tokens = np.fromiter(itertools.chain.from_iterable(kept), np.int64, self.size)
        firsts = np.cumsum([0, *self.lengths])
        return torch.from_numpy(tokens[firsts[self._sequence] + self._position])

    @property
    def reverse(self) -> Tensor:
        """``[P]`` int64: the packed row of the same sequence, counted from its end."""
        lengths, offsets = np.array(self.lengths, np.int64), np.array(self.offsets)
        opposite = lengths[self._sequence] - 1 - self._position
        return torch.from_numpy(offsets[opposite] + self._sequence)

    def unpack(self, rows: Tensor) -> Tensor:
        """Packed ``[P, E]`` to padded ``[N, T, E]``, zero where there is padding."""
        size = len(self.active)
        index = torch.from_numpy(self._sequence * size + self._position)
        padded = rows.new_zeros(len(self.lengths) * size, rows.shape[1])
        padded.index_copy_(0, send(index, rows.device), rows)
        return padded.view(len(self.lengths), size, rows.shape[1])
