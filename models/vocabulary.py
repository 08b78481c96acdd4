"""What every vocabulary shares: special tokens, a table of strings, checks of texts and ids."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from models.preparation import PREPARATIONS, Preparation

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
FORMAT_VERSION = 1

TokenizerKind = Literal["character", "word", "sentencepiece"]


class TokenizerError(ValueError):
    """A tokenizer cannot be read or trained; the message names the file or the reason."""


class TableTokenizer:
    """A tokenizer whose vocabulary is a plain list of strings.

    Args:
        tokens: the whole vocabulary in the order of its ids, beginning with
            :data:`SPECIAL_TOKENS`.
        preparation: what is done to every text before it is encoded.

    Raises:
        TokenizerError: the list does not begin with the special tokens, or repeats one.
    """

    kind: ClassVar[TokenizerKind]

    def __init__(self, tokens: Sequence[str], preparation: Preparation = "none") -> None:
        """Build from a whole vocabulary."""
        self.preparation = preparation
        self._tokens = tuple(tokens)
        if self._tokens[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise TokenizerError(f"the tokens must begin with {', '.join(SPECIAL_TOKENS)}")
        ordinary = self._tokens[len(SPECIAL_TOKENS) :]
        # The special names stay out of the table, so that no text can spell one.
        self._ids = {token: index for index, token in enumerate(ordinary, len(SPECIAL_TOKENS))}
        if len(self._ids) != len(ordinary) or not self._ids.keys().isdisjoint(SPECIAL_TOKENS):
            repeated = [token for token, count in Counter(self._tokens).items() if count > 1]
            raise TokenizerError(f"the tokens repeat {', '.join(map(repr, repeated[:5]))}")
        # What decode shows for each id: nothing for <pad>, <bos> and <eos>.
        self._shown = ("", "", "", *self._tokens[UNK_ID:])

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, the four special ones among them."""
        return len(self._tokens)

    def token(self, token_id: int) -> str:
        """Name one id: the character or word itself, or a special token's name."""
        require_ids((token_id,), len(self._tokens))
        return self._tokens[token_id]

    def prepare(self, text: str) -> str:
        """Prepare a text as the training text was prepared.

        Raises:
            ValueError: it holds a lone surrogate.
        """
        return PREPARATIONS[self.preparation](require_unicode(text))

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON."""
        data = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "preparation": self.preparation,
            "tokens": self._tokens,
        }
        path.write_text(json.dumps(data, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def read_table(content: bytes, kind: TokenizerKind) -> tuple[list[str], Preparation]:
    """Check what :meth:`TableTokenizer.save` wrote; return its tokens and its preparation.

    Raises:
        TokenizerError: the content is damaged, of another kind or of a newer format.
    """
    try:
        data = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"damaged: not JSON in UTF-8 ({error})") from error
    if not isinstance(data, Mapping) or "format_version" not in data:
        raise TokenizerError("not a tokenizer's file: it has no format_version")
    if data["format_version"] != FORMAT_VERSION:
        raise TokenizerError(
            f"has format_version {data['format_version']!r}; this version of Gatehouse reads "
            f"only {FORMAT_VERSION}"
        )
    if data.get("kind") != kind:
        raise TokenizerError(f"is a tokenizer of kind {data.get('kind')!r}, not {kind!r}")
    tokens = data.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise TokenizerError("damaged: 'tokens' must be a list of strings")
    try:
        require_unicode("".join(tokens))
    except ValueError as error:
        raise TokenizerError(f"damaged: {error}") from error
    preparation = data.get("preparation", "none")
    for known in PREPARATIONS:
        if preparation == known:
            return tokens, known
    raise TokenizerError(
        f"damaged: 'preparation' is {preparation!r}, not one of {', '.join(PREPARATIONS)}"
    )


def by_frequency(counts: Counter[str], min_frequency: int) -> list[str]:
    """Sort what was seen often enough, the most frequent first, ties by code point."""
    kept = [token for token, count in counts.items() if count >= min_frequency]
    return sorted(kept, key=lambda token: (-counts[token], token))


def require_unicode(text: str) -> str:
    """Return the text.

    Raises:
        ValueError: it holds a lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text is not valid Unicode: character {error.start} is a lone surrogate, "
            f"U+{ord(text[error.start]):04X}"
        ) from error
    return text


def require_ids(tokens: Sequence[int], vocabulary_size: int) -> None:
    """Check that ids are inside the vocabulary.

    Raises:
        IndexError: one is not.
    """
    if tokens and not 0 <= min(tokens) <= max(tokens) < vocabulary_size:
        raise IndexError(
            f"token ids run from {min(tokens)} to {max(tokens)}, outside a vocabulary of "
            f"{vocabulary_size}"
        )
