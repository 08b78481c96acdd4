"""Splitting texts in pieces at random: subword regularization (Kudo 2018).

SentencePiece draws such splits, too, but from 0.2.2 on its seed gives others in each process: a
run could not be repeated or resumed, nor could several processes plan the same batches.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.kernels.lattice import build_trie, sample_splits
from models.sentencepiece_tokenizer import SPACE_MARK, SentencePieceTokenizer
from models.vocabulary import require_unicode

UNKNOWN_PENALTY = 10.0
"""What a character without a piece has less than the least probable piece, as in SentencePiece."""

_Numbers = NDArray[np.int64]


class SubwordSampler:
    """Draws splits of texts by the probabilities of a unigram model's pieces.

    Args:
        tokenizer: whose pieces.

    Raises:
        ValueError: its pieces have no probabilities (byte pair encoding).
    """

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        """Put the pieces into a trie."""
        if not tokenizer.is_unigram:
            raise ValueError("only a unigram tokenizer can split at random")
        self._tokenizer = tokenizer
        pieces = tokenizer.pieces()
        characters, ends = _characters([piece.text for piece in pieces])
        size = 1 << (2 * len(characters)).bit_length()
        self._keys, self._nodes = np.full(size, -1, np.int64), np.zeros(size, np.int64)
        last = build_trie(characters, ends, self._keys, self._nodes)
        self._tokens = np.full(len(characters) + 1, -1, np.int64)
        self._log_probabilities = np.zeros(len(characters) + 1)
        self._tokens[last] = [piece.token_id for piece in pieces]
        self._log_probabilities[last] = [piece.log_probability for piece in pieces]
        self._unknown = min(piece.log_probability for piece in pieces) - UNKNOWN_PENALTY
        self._longest = max(len(piece.text) for piece in pieces)

    def sample(self, texts: Sequence[str], smoothing: float, seed: int) -> list[list[int]]:
        """Split texts, more probable splits more often.

        Args:
            texts: what to split.
            smoothing: above 0; the paper's alpha: a split of probability ``P`` is drawn in
                proportion to ``P ** smoothing``, so that a large one gives the best split
                nearly always.
            seed: 0 or more: the same seed splits the same texts in the same way.

        Raises:
            ValueError: a text holds a lone surrogate.
        """
        stand_in = self._tokenizer.stand_in(texts)
        characters, ends = _characters(
            self._tokenizer.normalise(
                [require_unicode(text).replace(SPACE_MARK, stand_in) for text in texts]
            )
        )
        pieces, piece_ends = np.empty_like(characters), np.empty_like(ends)
        sample_splits(
            *(characters, ends, self._keys, self._nodes, self._tokens),
            *(self._log_probabilities * smoothing, self._unknown * smoothing, self._longest),
            *(np.random.default_rng(seed).random(len(characters)), pieces, piece_ends),
        )
        found, tokens, begin = [], pieces.tolist(), 0
        for end in piece_ends.tolist():
            split = tokens[begin:end]
            found.append(self._in_bytes(split, stand_in) if min(split, default=0) < 0 else split)
            begin = end
        return found

    def _in_bytes(self, pieces: Sequence[int], stand_in: str) -> list[int]:
        """Tokens, with the bytes of each character that is no piece."""
        tokens: list[int] = []
        for piece in pieces:
            if piece < 0:
                character = chr(-piece - 1).replace(stand_in, SPACE_MARK)
                tokens += self._tokenizer.spell(character)
            else:
                tokens.append(piece)
        return tokens


@functools.lru_cache(maxsize=4)
def sampler_of(tokenizer: SentencePieceTokenizer) -> SubwordSampler:
    """The sampler of a tokenizer, which is made once."""
    return SubwordSampler(tokenizer)


def _characters(texts: Sequence[str]) -> tuple[_Numbers, _Numbers]:
    """The code points of texts, one text behind the other, and where each ends."""
    joined = "".join(texts).encode("utf-32-le")
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return np.frombuffer(joined, np.uint32).astype(np.int64), ends
