"""Batches of sentence pairs: which pairs come together, and how they are padded.

Shape legend: ``N`` pairs, ``S`` source positions, ``T`` target positions, ``M`` target tokens.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.preset import Optimization

SORTED_POOL_BATCHES = 50
"""Pairs are sorted by length within pools of about so many batches, so that batches have
little padding while an epoch's order stays random."""
PAIRS_TOGETHER = 8
POSITIONS_TOGETHER = 4
"""Large batches have a multiple of so many pairs, and their sources of so many positions, so that
shapes come again. On a CPU oneDNN compiles the products of each shape anew, and what it compiled
takes nearly a megabyte."""
_LARGE_BATCH_PAIRS = 8 * PAIRS_TOGETHER
"""Less than a sixteenth of it is what rounding costs on average."""


@dataclass(frozen=True)
class TokenPair:
    """A pair as the model reads it: both sides end with ``<eos>``, unless truncated."""

    source: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Padded pairs.

    Attributes:
        sources: ``[N, S]`` int64.
        source_lengths: ``[N]`` int64.
        targets: ``[N, T]`` int64, each row ends with ``<eos>`` unless it was truncated.
        target_lengths: ``[N]`` int64.
        real_targets: ``[M]`` int64, where the targets stand that are no padding, all rows in one.
    """

    sources: Tensor
    source_lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    real_targets: Tensor

    def twice(self) -> "Batch":
        """The same pairs again behind these, for dropout to make another pass of them."""
        return Batch(
            self.sources.repeat(2, 1),
            self.source_lengths.repeat(2),
            self.targets.repeat(2, 1),
            self.target_lengths.repeat(2),
            torch.cat([self.real_targets, self.real_targets + self.targets.numel()]),
        )


def plan_batches(
    pairs: Sequence[TokenPair], settings: Optimization, epoch: int
) -> list[list[TokenPair]]:
    """An epoch's batches: random order, similar lengths together, the same whenever asked."""
    generator = random.Random(f"{settings.seed} {epoch}")
    order = list(pairs)
    generator.shuffle(order)
    average = sum(len(pair.target) for pair in pairs) / len(pairs)
    rows = settings.batch_rows or max(int((settings.batch_tokens or 1) / average), 1)
    pool = rows * SORTED_POOL_BATCHES
    batches: list[list[TokenPair]] = []
    for first in range(0, len(order), pool):
        batch: list[TokenPair] = []
        by_length = sorted(
            order[first : first + pool], key=lambda p: (len(p.target), len(p.source))
        )
        for pair in by_length:
            # Sorted by target length, so this pair is the longest of the batch.
            is_full = (
                len(batch) == settings.batch_rows
                if settings.batch_tokens is None
                else (len(batch) + 1) * len(pair.target) > settings.batch_tokens
            )
            if batch and is_full:
                rest = len(batch) % PAIRS_TOGETHER if len(batch) > _LARGE_BATCH_PAIRS else 0
                whole = len(batch) - (rest if settings.batch_rows is None else 0)
                batches.append(batch[:whole])
                batch = batch[whole:]
            batch.append(pair)
        batches.append(batch)
    generator.shuffle(batches)
    return batches
