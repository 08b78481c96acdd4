"""Preparing text before it is cut into tokens.

A model reads text as it was trained on it: a table tokenizer keeps the name of its preparation
in its file and applies it to everything that it encodes. Each preparation changes nothing when
it is applied a second time. The textbook is *Dive into Deep Learning* (Zhang et al.),
https://d2l.ai.
"""

import re
from collections.abc import Callable
from typing import Literal

Preparation = Literal["none", "spaces", "lower_case", "book_characters", "book_sentence"]

_SPACES = str.maketrans({"\u202f": " ", "\u00a0": " "})


def normalise_spaces(text: str) -> str:
    """Turn the no-break spaces U+202F and U+00A0 into plain ones, one for one.

    French typography puts them before ``! ? : ;``, though not in every text.
    """
    return text.translate(_SPACES)


def book_characters(text: str) -> str:
    """Keep letters only, lower case, with one space for everything between them.

    As section 9.2 of the textbook prepares *The Time Machine*: only the letters a to z.
    """
    return re.sub("[^A-Za-z]+", " ", text).lower()


def book_sentence(text: str) -> str:
    """Make a sentence lower case, with plain spaces and a space before each of ``, . ! ?``.

    As section 10.5 of the textbook prepares the English-French pairs, so that splitting at
    spaces gives words and punctuation marks.
    """
    return re.sub("(?<=[^ ])([,.!?])", r" \1", normalise_spaces(text).lower())


PREPARATIONS: dict[Preparation, Callable[[str], str]] = {
    "none": str,
    "spaces": normalise_spaces,
    "lower_case": str.lower,
    "book_characters": book_characters,
    "book_sentence": book_sentence,
}
