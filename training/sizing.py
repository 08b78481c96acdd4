"""What to train on a person's own text, derived from how much of it there is.

The rules go through the settings that the shipped presets were tuned to (en-fr: 11 million
characters of pairs; timemachine-gru: 180,000 characters of prose), and follow from there what
is known of small data: fewer pieces, a smaller model, more dropout, more epochs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

MINIMUM_SENTENCES = 100
"""Distinct source sentences without which there is nothing to hold out."""
MINIMUM_CHARACTERS = 2_000
"""Length of the shortest prose that has an end to hold out."""
HELD_OUT_SENTENCES = 1_500
"""More than these tell nothing new about a model's quality."""
HELD_OUT_CHARACTERS = 200_000
CHARACTERS_A_TOKEN = 4
"""Of the target side, about, with pieces."""

Settings = Mapping[str, int | float]
"""Dotted keys of a preset and their values."""


@dataclass(frozen=True)
class ParallelSize:
    """How much parallel text there is.

    Attributes:
        sentences: distinct source sentences.
        characters: of both sides together.
        distinct_characters: how many different ones.
    """

    sentences: int
    characters: int
    distinct_characters: int


def translation_settings(size: ParallelSize, *, has_validation: bool) -> Settings:
    """Settings for sentence pairs, by dotted keys of the preset.

    Args:
        size: of the pairs.
        has_validation: whether the validation pairs have files of their own.
    """
    characters = max(size.characters, 1)
    share = _held_out_share(size.sentences)
    # A piece for each character, and then as many as the text has repetitions to learn from.
    pieces = 260 + size.distinct_characters + 2.3 * math.sqrt(characters)
    batch_tokens = _by_size(characters, (300_000, 600), (30_000_000, 1_600), (math.inf, 4_000))
    epochs = _between(8 * math.sqrt(11_000_000 / characters), 5, 50)
    tokens = characters / 2 / CHARACTERS_A_TOKEN
    hidden_size = _by_size(characters, (300_000, 192), (3_000_000, 320), (math.inf, 512))
    return {
        "data.test_share": share,
        "data.validation_share": 0.0 if has_validation else share,
        "tokenizer.vocabulary_size": int(_between(round(pieces, -2), 400, 32_000)),
        "model.embedding_size": _by_size(characters, (300_000, 128), (math.inf, 256)),
        "model.hidden_size": hidden_size,
        "model.encoder_layers": _by_size(characters, (300_000, 1), (math.inf, 2)),
        "model.dropout": _dropout(characters, 300_000, 6_000_000, 30_000_000),
        "training.batch_tokens": batch_tokens,
        **_schedule(epochs * tokens / batch_tokens),
    }


def prose_settings(characters: int) -> Settings:
    """Settings for running text, by dotted keys of the preset.

    Args:
        characters: length of the whole text.
    """
    # A row must be long enough to have something to carry from batch to batch.
    rows = int(_between(characters // 400, 4, 32))
    if characters > 5_000_000:
        rows = 64
    epochs = _between(20 * math.sqrt(160_000 / characters), 3, 60)
    return {
        "data.held_out_share": round(min(0.1, HELD_OUT_CHARACTERS / characters), 4),
        "model.hidden_size": _by_size(characters, (50_000, 192), (500_000, 384), (math.inf, 512)),
        "model.dropout": _dropout(characters, 50_000, 500_000, 5_000_000),
        "training.batch_rows": rows,
        **_schedule(epochs * characters / (rows * 100)),
    }


def _held_out_share(sentences: int) -> float:
    """A twentieth, but at least 50 sentences, at most a tenth, and never needlessly many."""
    wanted = _between(0.05 * sentences, 50, HELD_OUT_SENTENCES)
    return round(min(0.1, wanted / max(sentences, 1)), 4)


def _schedule(steps: float) -> Settings:
    steps = int(_between(round(steps, -2), 300, 200_000))
    return {
        "training.steps": steps,
        "training.warmup_steps": min(steps // 10, 400),
        "training.validate_every_steps": min(max(steps // 10, 50), 1_000),
        "training.save_every_steps": min(max(steps // 10, 50), 500),
    }


def _dropout(characters: int, small: int, middling: int, large: int) -> float:
    if characters < small:
        return 0.5
    if characters < middling:
        return 0.4
    return 0.2 if characters < large else 0.1


def _by_size(characters: int, *steps: tuple[float, int]) -> int:
    """The value of the first step whose bound is above the size."""
    return next(value for bound, value in steps if characters < bound)


def _between(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)
