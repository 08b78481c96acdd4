"""Random splits by the trie and the lattice, against every split there is."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from models.kernels.lattice import build_trie, sample_splits

PIECES = {"a": -1.0, "b": -2.0, "ab": -1.5, "ba": -2.5, "aba": -2.0, "c": -3.0, "bc": -4.0}
UNKNOWN = -14.0


def _characters(texts: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    joined = np.array([ord(c) for text in texts for c in text], np.int64)
    return joined, np.cumsum([len(text) for text in texts], dtype=np.int64)


def _sample(texts: list[str], smoothing: float, seed: int) -> list[tuple[str, ...]]:
    names = list(PIECES)
    characters, ends = _characters(names)
    keys, nodes = np.full(64, -1, np.int64), np.zeros(64, np.int64)
    last = build_trie(characters, ends, keys, nodes)
    tokens, scores = np.full(64, -1, np.int64), np.zeros(64)
    tokens[last], scores[last] = range(len(names)), [*PIECES.values()]
    characters, ends = _characters(texts)
    pieces, piece_ends = np.empty_like(characters), np.empty_like(ends)
    uniforms = np.random.default_rng(seed).random(len(characters))
    sample_splits(
        *(characters, ends, keys, nodes, tokens, scores * smoothing, UNKNOWN * smoothing, 3),
        *(uniforms, pieces, piece_ends),
    )
    split = np.split(pieces, piece_ends)[:-1]
    return [tuple(names[p] if p >= 0 else chr(-p - 1) for p in one) for one in split]


def _splits(text: str) -> dict[tuple[str, ...], float]:
    """Every split and the logarithm of its weight."""
    found = {}
    for cuts in itertools.product([False, True], repeat=len(text) - 1):
        places = [0, *(i for i, is_cut in enumerate(cuts, 1) if is_cut), len(text)]
        parts = tuple(text[i:j] for i, j in itertools.pairwise(places))
        known = [PIECES.get(part, UNKNOWN if len(part) == 1 else None) for part in parts]
        if None not in known:
            found[parts] = math.fsum(score for score in known if score is not None)
    return found


@pytest.mark.parametrize("smoothing", [0.3, 1.0])
@pytest.mark.parametrize("text", ["abab", "abcba", "xaxb"])
def test_splits_come_as_often_as_their_probability_says(text: str, smoothing: float) -> None:
    draws = 40_000
    weights = {split: math.exp(score * smoothing) for split, score in _splits(text).items()}
    total = math.fsum(weights.values())
    found = Counter(_sample([text] * draws, smoothing, 1))
    assert found.keys() <= weights.keys()
    for split, weight in weights.items():
        share = weight / total
        # Five standard deviations.
        assert abs(found[split] / draws - share) < 5 * math.sqrt(share / draws) + 1e-9


def test_a_seed_and_a_place_decide() -> None:
    texts = ["abab", "", "abcba", "c"] * 20
    assert _sample(texts, 0.3, 1) == _sample(texts, 0.3, 1)
    assert _sample(texts, 0.3, 1) != _sample(texts, 0.3, 2)
    assert ["".join(split) for split in _sample(texts, 0.3, 1)] == texts


def test_texts_have_other_draws_than_their_neighbours() -> None:
    assert len(set(_sample(["abababab"] * 50, 0.3, 1))) > 10
