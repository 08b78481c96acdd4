"""Training a tokenizer as a preset asks for it."""

import hashlib
from collections.abc import Sequence

from models.preparation import Preparation
from models.tokenizers import (
    CharacterTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordTokenizer,
)
from training.preset import TokenizerSettings
from training.subword_sampling import sampler_of


def train_tokenizer(
    settings: TokenizerSettings,
    texts: Sequence[str],
    preparation: Preparation,
    *,
    add_dummy_prefix: bool,
) -> Tokenizer:
    """Train a tokenizer on texts; it will prepare every text that it is given in the same way.

    Args:
        settings: its kind and size.
        texts: what to train on.
        preparation: for characters and words; SentencePiece normalises by itself.
        add_dummy_prefix: SentencePiece only: see :class:`SentencePieceTokenizer`.

    Raises:
        TokenizerError: the texts are too few for the vocabulary size asked for.
    """
    if settings.kind == "character":
        return CharacterTokenizer.train("".join(texts), preparation)
    if settings.kind == "word":
        return WordTokenizer.train(
            texts, min_frequency=settings.min_frequency, preparation=preparation
        )
    return SentencePieceTokenizer.train(
        texts,
        settings.vocabulary_size,
        normalization=settings.normalization,
        add_dummy_prefix=add_dummy_prefix,
        may_be_smaller=bool(settings.may_be_smaller),
    )


def sample_encodings(
    tokenizer: Tokenizer, texts: Sequence[str], smoothing: float, seed: str
) -> list[list[int]]:
    """Split texts in pieces at random: see :meth:`training.subword_sampling.SubwordSampler.sample`.

    Args:
        tokenizer: a SentencePiece one; another has one split only, and gives that.
        texts: what to split.
        smoothing: the paper's alpha.
        seed: the same seed splits the same texts in the same way.
    """
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return [tokenizer.encode(text) for text in texts]
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    return sampler_of(tokenizer).sample(texts, smoothing, number)
