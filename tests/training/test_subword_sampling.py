"""Random splits with a SentencePiece model: what they are made of, and what has none."""

import math
from collections import Counter

import pytest

from models.tokenizers import SentencePieceTokenizer
from training.subword_sampling import SubwordSampler

TEXTS = ["the time traveller smiled", "a time machine", "he travelled in time"]


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(TEXTS * 20, 278, normalization="nmt_nfkc")


def test_pieces_come_as_often_as_their_probability_says(tokenizer: SentencePieceTokenizer) -> None:
    """Of a text of two characters: as one piece, as two, or as three with the space before it."""
    scores = {piece.text: piece.log_probability for piece in tokenizer.pieces()}
    draws = 20_000
    found = Counter(
        tuple(map(tokenizer.token, split))
        for split in SubwordSampler(tokenizer).sample(["he"] * draws, 0.5, 1)
    )
    ways = [("▁he",), ("▁h", "e"), ("▁", "he"), ("▁", "h", "e")]
    weights = {
        way: math.exp(0.5 * sum(scores[piece] for piece in way))
        for way in ways
        if all(piece in scores for piece in way)
    }
    assert found.keys() <= weights.keys()
    for way, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(found[way] / draws - share) < 5 * math.sqrt(share / draws)


def test_what_has_no_piece_is_spelled_in_bytes(tokenizer: SentencePieceTokenizer) -> None:
    texts = ["a 💡 machine", "été ▁ ok", "", "   ", "💡▁💡"]
    for seed in range(20):
        splits = SubwordSampler(tokenizer).sample(texts, 0.2, seed)
        assert [*map(tokenizer.decode, splits)] == ["a 💡 machine", "été ▁ ok", "", "", "💡▁💡"]
    assert SubwordSampler(tokenizer).sample(texts, 500.0, 1) == [*map(tokenizer.encode, texts)]
    assert SubwordSampler(tokenizer).sample([], 0.2, 1) == []


def test_only_probabilities_can_be_drawn_from() -> None:
    pairs = SentencePieceTokenizer.train(TEXTS * 20, 290, model_type="bpe")
    with pytest.raises(ValueError, match="only a unigram tokenizer can split at random"):
        SubwordSampler(pairs)


def test_a_lone_surrogate_is_refused(tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        SubwordSampler(tokenizer).sample(["a", "\ud800"], 0.2, 1)
