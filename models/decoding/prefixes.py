"""States of prompts that were read before, so that reading them again costs nothing.

A recurrent model's state after a text is a few vectors, however long the text: what a prompt
begins with is looked up instead of being read. Attention models keep blocks of a cache for the
same purpose (vLLM's automatic prefix caching); here an entry is one vector.
"""

import hashlib
from array import array
from bisect import bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

_ENTRY_BYTES = 512
"""About what an entry takes beside its numbers."""


@dataclass(slots=True)
class PrefixCounts:
    """What a cache was good for.

    Attributes:
        hits: prompts of which a beginning was known.
        misses: prompts of which none was.
        positions: positions that did not have to be read.
    """

    hits: int = 0
    misses: int = 0
    positions: int = 0


@dataclass(frozen=True, slots=True)
class _Entry:
    length: int
    vector: Tensor

    @property
    def size_bytes(self) -> int:
        return self.vector.numel() * self.vector.element_size() + _ENTRY_BYTES


class PrefixCache:
    """The states of one model after texts that it has read, by their tokens.

    When it is full, the entry that was not used for longest makes room.

    Args:
        capacity_bytes: memory that it takes at most.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # last used last
        self._counts_of_lengths: Counter[int] = Counter()
        self._lengths: list[int] = []  # of the entries, each once, the shortest first
        self._counts = PrefixCounts()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, tokens: Sequence[int]) -> tuple[int, Tensor | None]:
        """The longest known beginning of a text.

        Returns:
            Its number of tokens and the state behind it, ``[F]``; 0 and None if none is known.
        """
        if not tokens:
            return 0, None
        known = self._lengths[: bisect_right(self._lengths, len(tokens))]
        found = [each for each in _digests(tokens, known) if each[1] in self._entries]
        if not found:
            self._counts.misses += 1
            return 0, None
        length, digest = found[-1]
        self._entries.move_to_end(digest)
        self._counts.hits += 1
        self._counts.positions += length
        return length, self._entries[digest].vector

    def put(self, tokens: Sequence[int], vector: Tensor) -> None:
        """Keep the state behind a text.

        Args:
            tokens: all that it has read, at least one.
            vector: ``[F]``; a copy is kept.
        """
        ((length, digest),) = _digests(tokens, [len(tokens)])
        if digest in self._entries:
            self._entries.move_to_end(digest)
            return
        entry = self._entries[digest] = _Entry(length, vector.clone())
        self.size_bytes += entry.size_bytes
        if not self._counts_of_lengths[length]:
            insort(self._lengths, length)
        self._counts_of_lengths[length] += 1
        while self.size_bytes > self._capacity_bytes:
            self._forget_one()

    def take_counts(self) -> PrefixCounts:
        """What it was good for since this was last asked."""
        counts, self._counts = self._counts, PrefixCounts()
        return counts

    def _forget_one(self) -> None:
        _, entry = self._entries.popitem(last=False)
        self.size_bytes -= entry.size_bytes
        self._counts_of_lengths[entry.length] -= 1
        if not self._counts_of_lengths[entry.length]:
            self._lengths.remove(entry.length)


def _digests(tokens: Sequence[int], lengths: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Names of a text's beginnings of these lengths, the shortest first, in one pass.

    Two texts have the same name as good as never: BLAKE2b with 128 bits.
    """
    numbers = array("Q", tokens)
    name, done = hashlib.blake2b(digest_size=16), 0
    for length in lengths:
        name.update(numbers[done:length])
        done = length
        yield length, name.copy().digest()
