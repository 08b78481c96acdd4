"""Training a tokenizer as a preset asks for it."""

from collections.abc import Sequence

from models.tokenizers import (
    CharacterTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordTokenizer,
)
from training.preset import TokenizerSettings


def train_tokenizer(settings: TokenizerSettings, texts: Sequence[str]) -> Tokenizer:
    """Train a tokenizer on texts.

    Raises:
        TokenizerError: the texts are too few for the vocabulary size asked for.
    """
    if settings.kind == "character":
        return CharacterTokenizer.train("".join(texts))
    if settings.kind == "word":
        return WordTokenizer.train(texts, min_frequency=settings.min_frequency)
    return SentencePieceTokenizer.train(
        texts, settings.vocabulary_size, normalization=settings.normalization
    )
