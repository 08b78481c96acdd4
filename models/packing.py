"""Sequences of different lengths without padding, position by position.

Shape legend: ``N`` sequences, ``T`` positions, ``P`` packed positions, ``E`` size of what stands at
one.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from models.placement import on_device


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
        longest = max(lengths, default=0)
        self.active = [sum(length > t for length in lengths) for t in range(longest)]
        self.offsets = [0, *itertools.accumulate(self.active)]

    @property
    def size(self) -> int:
        """P: all real positions."""
        return self.offsets[-1]

    def pack(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Tokens of the sequences, packed: ``[P]`` int64, on the CPU."""
        tokens = [sequences[n][t] for t, active in enumerate(self.active) for n in range(active)]
        return torch.tensor(tokens, dtype=torch.int64)

    @property
    def reverse(self) -> Tensor:
        """``[P]`` int64: the packed row of the same sequence, counted from its end."""
        index = [
            self.offsets[self.lengths[n] - 1 - t] + n
            for t, active in enumerate(self.active)
            for n in range(active)
        ]
        return torch.tensor(index, dtype=torch.int64)

    def unpack(self, rows: Tensor) -> Tensor:
        """Packed ``[P, E]`` to padded ``[N, T, E]``, zero where there is padding."""
        size = len(self.active)
        index = [n * size + t for t, active in enumerate(self.active) for n in range(active)]
        padded = rows.new_zeros(len(self.lengths) * size, rows.shape[1])
        padded.index_copy_(0, on_device(index, rows.device), rows)
        return padded.view(len(self.lengths), size, rows.shape[1])
