"""Tokenizers: text to token ids and back.

Three kinds, one interface (:class:`Tokenizer`). In each of them ids 0 to 3 are
``<pad>``, ``<bos>``, ``<eos>`` and ``<unk>``, and no text can produce the first three: a
text that spells ``<eos>`` is five ordinary characters.

=================  ============================  ====================================
kind               unseen input                  ``decode(encode(text))``
=================  ============================  ====================================
``character``      ``<unk>`` per character       the text, if every character is known
``word``           ``<unk>`` per word            the words joined by single spaces
``sentencepiece``  UTF-8 bytes, never ``<unk>``  the text ("identity") or its normalised
                                                 form ("nmt_nfkc")
=================  ============================  ====================================

A text with a lone surrogate is not Unicode text: every tokenizer refuses it with a
:class:`ValueError` rather than guess.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, Self

from models.preparation import PREPARATIONS, Preparation
from models.sentencepiece_tokenizer import SentencePieceTokenizer
from models.vocabulary import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    UNK_ID,
    TableTokenizer,
    TokenizerError,
    TokenizerKind,
    by_frequency,
    read_table,
    require_ids,
    require_unicode,
)

__all__ = [
    "BOS_ID",
    "EOS_ID",
    "PAD_ID",
    "SPECIAL_TOKENS",
    "UNK_ID",
    "CharacterTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "TokenizerError",
    "TokenizerKind",
    "WordTokenizer",
    "continuation",
    "load_tokenizer",
    "source_prompt",
]


class Tokenizer(Protocol):
    """What models, training and the service know of a tokenizer."""

    @property
    def kind(self) -> TokenizerKind:
        """Which class reads the file back."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, the four special ones among them."""
        ...

    def encode(self, text: str) -> list[int]:
        """Turn a text into ids, without ``<bos>`` and ``<eos>``.

        Raises:
            ValueError: the text holds a lone surrogate.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Turn ids into text; ``<pad>``, ``<bos>`` and ``<eos>`` are left out.

        Raises:
            IndexError: an id is outside the vocabulary.
        """
        ...

    def token(self, token_id: int) -> str:
        """Name one id, as shown in alignments and lists of log-probabilities.

        Raises:
            IndexError: the id is outside the vocabulary.
        """
        ...

    def unknown(self, text: str) -> list[str]:
        """List the distinct characters or words of a text that become ``<unk>``, in order."""
        ...

    def save(self, path: Path) -> None:
        """Write the file that :func:`load_tokenizer` reads."""
        ...


class CharacterTokenizer(TableTokenizer):
    """One id per character (Unicode code point)."""

    kind: ClassVar[TokenizerKind] = "character"

    def __init__(self, tokens: Sequence[str], preparation: Preparation = "none") -> None:
        """Build from a whole vocabulary; see :meth:`train`."""
        super().__init__(tokens, preparation)
        long = [token for token in self._ids if len(token) != 1]
        if long:
            raise TokenizerError(f"{long[0]!r} is not a single character")

    @classmethod
    def train(cls, text: str, preparation: Preparation = "none") -> Self:
        """Take every character of a text, the most frequent first, ties by code point."""
        prepared = PREPARATIONS[preparation](require_unicode(text))
        characters = by_frequency(Counter(prepared), min_frequency=1)
        return cls((*SPECIAL_TOKENS, *characters), preparation)

    def encode(self, text: str) -> list[int]:
        """Give one id per character of the prepared text; an unseen one is ``<unk>``."""
        get = self._ids.get
        return [get(character, UNK_ID) for character in self.prepare(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Join the characters; ``<unk>`` is shown as such."""
        require_ids(tokens, len(self._tokens))
        return "".join([self._shown[token] for token in tokens])

    def unknown(self, text: str) -> list[str]:
        """List the distinct characters that the vocabulary lacks."""
        distinct = dict.fromkeys(self.prepare(text))
        return [character for character in distinct if character not in self._ids]


class WordTokenizer(TableTokenizer):
    """One id per word, where words are what stands between white space."""

    kind: ClassVar[TokenizerKind] = "word"

    def __init__(self, tokens: Sequence[str], preparation: Preparation = "none") -> None:
        """Build from a whole vocabulary; see :meth:`train`."""
        super().__init__(tokens, preparation)
        broken = [token for token in self._ids if token.split() != [token]]
        if broken:
            raise TokenizerError(f"{broken[0]!r} is not a word: it is empty or has white space")

    @classmethod
    def train(
        cls,
        sentences: Iterable[str],
        min_frequency: int = 1,
        preparation: Preparation = "none",
    ) -> Self:
        """Take the words of some sentences, the most frequent first, ties by code point.

        Args:
            sentences: texts.
            min_frequency: words seen less often become ``<unk>``.
            preparation: what is done to every text before it is split into words.
        """
        prepare = PREPARATIONS[preparation]
        counts: Counter[str] = Counter()
        for sentence in sentences:
            counts.update(prepare(require_unicode(sentence)).split())
        # A word spelled like a special token stays unknown.
        for word in SPECIAL_TOKENS:
            counts.pop(word, None)
        words = by_frequency(counts, min_frequency)
        return cls((*SPECIAL_TOKENS, *words), preparation)

    def encode(self, text: str) -> list[int]:
        """Give one id per word of the prepared text; an unseen one is ``<unk>``."""
        get = self._ids.get
        return [get(word, UNK_ID) for word in self.prepare(text).split()]

    def decode(self, tokens: Sequence[int]) -> str:
        """Join the words with single spaces; ``<unk>`` is shown as such."""
        require_ids(tokens, len(self._tokens))
        return " ".join([self._shown[token] for token in tokens if token > EOS_ID])

    def unknown(self, text: str) -> list[str]:
        """List the distinct words that the vocabulary lacks."""
        distinct = dict.fromkeys(self.prepare(text).split())
        return [word for word in distinct if word not in self._ids]


def continuation(tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[int]) -> str:
    """Show the text that tokens add behind others: ``time`` behind ``the`` adds " time".

    Args:
        tokenizer: whose tokens they are.
        before: the tokens of the text that goes on, without half a character at its end.
        tokens: what follows them.
    """
    # No tokenizer here looks further back than one token.
    last = list(before[-1:])
    return tokenizer.decode([*last, *tokens])[len(tokenizer.decode(last)) :]


def source_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """What an encoder reads of a text: its tokens and ``<eos>``.

    Of a blank text, or one without tokens, there is nothing to read and nothing to translate.

    Raises:
        ValueError: the text holds a lone surrogate.
    """
    tokens = [] if text.isspace() else tokenizer.encode(text)
    return [*tokens, EOS_ID] if tokens else []


def load_tokenizer(path: Path, kind: str) -> Tokenizer:
    """Read a tokenizer's file.

    Args:
        path: the file that a tokenizer's ``save`` wrote.
        kind: ``character``, ``word`` or ``sentencepiece``.

    Raises:
        TokenizerError: the file is missing, damaged, cut, of another kind or of a newer
            format; the message names it.
    """
    if kind not in _READERS:
        raise TokenizerError(f"{path}: unknown kind of tokenizer {kind!r}")
    try:
        return _READERS[kind](path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error


_READERS: dict[str, Callable[[bytes], Tokenizer]] = {
    "character": lambda content: CharacterTokenizer(*read_table(content, "character")),
    "word": lambda content: WordTokenizer(*read_table(content, "word")),
    "sentencepiece": SentencePieceTokenizer,
}
