"""Other people's vocabularies, and the rows of their matrices in the order of Gatehouse's ids.

In every vocabulary of Gatehouse ids 0 to 3 are ``<pad>``, ``<bos>``, ``<eos>`` and ``<unk>``; other
projects have them elsewhere, by other names, or not at all. Rows are moved to where Gatehouse's
ids want them, and rows that are missing are added so that they change nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from models.preparation import Preparation
from models.tokenizers import SPECIAL_TOKENS, CharacterTokenizer, WordTokenizer
from training.importing.weights import ImportingError

Role = Literal["pad", "bos", "eos", "unk"]
ROLES: tuple[Role, ...] = get_args(Role)

KNOWN_NAMES: dict[Role, tuple[str, ...]] = {
    "pad": ("<pad>", "<PAD>", "[PAD]", "<blank>"),
    "bos": ("<bos>", "<BOS>", "[BOS]", "<s>", "<sos>", "<SOS>", "<start>"),
    "eos": ("<eos>", "<EOS>", "[EOS]", "</s>", "<end>"),
    "unk": ("<unk>", "<UNK>", "[UNK]", "<oov>"),
}
"""What special tokens are called in the wild."""

UNREACHABLE = -30_000.0
"""The logit of a token that their model cannot generate: its probability is 0 in float32, and the
number itself fits into float16."""


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary in the order of Gatehouse's ids.

    Attributes:
        file: where it is from, for errors.
        tokens: the special ones, then theirs in their order.
        rows: of each token the id that they gave it; None for a special token that they lack.
        size: of their vocabulary.
    """

    file: Path
    tokens: tuple[str, ...]
    rows: tuple[int | None, ...]
    size: int

    def has(self, role: Role) -> bool:
        """Whether they have this special token."""
        return self.rows[ROLES.index(role)] is not None

    def embeddings(self, theirs: Tensor) -> Tensor:
        """Rows ``[V, D]`` in their order to ours; those that they lack are zeros."""
        return self._arrange(theirs, 0.0)

    def outputs(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight ``[V, H]`` and bias ``[V]`` of an output layer; what they lack never comes."""
        return self._arrange(weight, 0.0), self._arrange(bias, UNREACHABLE)

    def _arrange(self, theirs: Tensor, missing: float) -> Tensor:
        index = torch.tensor([row if row is not None else self.size for row in self.rows])
        added = theirs.new_full((1, *theirs.shape[1:]), missing)
        return torch.cat([theirs, added])[index]


def reconcile(
    file: Path, theirs: Sequence[str], given: Mapping[Role, str] | None = None
) -> Vocabulary:
    """Put the special tokens where Gatehouse has them, and all others behind, in their order.

    Args:
        file: named in errors.
        theirs: their tokens in the order of their ids.
        given: what special tokens are called; the others are found by their usual names.

    Raises:
        ImportingError: a token is repeated, or it cannot be told which one is meant.
    """
    ids = {token: index for index, token in enumerate(theirs)}
    if len(ids) != len(theirs):
        repeated = next(token for index, token in enumerate(theirs) if ids[token] != index)
        raise ImportingError(f"{file}: the token {repeated!r} comes twice")
    special: dict[Role, str] = {}
    for role in ROLES:
        found = [(given or {})[role]] if role in (given or {}) else []
        found = found or [name for name in KNOWN_NAMES[role] if name in ids]
        if len(found) > 1:
            raise ImportingError(
                f"{file}: {' and '.join(found)} may both be <{role}>: say --special {role}=TOKEN"
            )
        if found and found[0] not in ids:
            raise ImportingError(f"{file}: has no token {found[0]!r} to be <{role}>")
        if found:
            special[role] = found[0]
    if len(set(special.values())) != len(special):
        raise ImportingError(f"{file}: one token cannot be two special ones: {special}")
    ordinary = [token for token in theirs if token not in special.values()]
    rows = [ids[special[role]] if role in special else None for role in ROLES]
    return Vocabulary(
        file,
        (*SPECIAL_TOKENS, *ordinary),
        (*rows, *(ids[token] for token in ordinary)),
        len(theirs),
    )


def make_table_tokenizer(
    kind: Literal["character", "word"], vocabulary: Vocabulary, preparation: Preparation = "none"
) -> CharacterTokenizer | WordTokenizer:
    """The tokenizer of a vocabulary of characters or words.

    Raises:
        ImportingError: a token is no character or no word.
    """
    tokenizer = CharacterTokenizer if kind == "character" else WordTokenizer
    try:
        return tokenizer(vocabulary.tokens, preparation)
    except ValueError as error:
        raise ImportingError(f"{vocabulary.file}: {error}") from error


def read_vocabulary(file: Path) -> list[str]:
    """Tokens in the order of their ids.

    Args:
        file: ``.json``: a list of tokens, or an object with the id of each token; else text with
            one token a line.

    Raises:
        ImportingError: it is not that.
        OSError: it cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")  # a mark of the byte order is no token
        if file.suffix != ".json":
            lines = text.removesuffix("\n").split("\n")
            if "" in lines:
                raise ImportingError(
                    f"{file}: line {lines.index('') + 1} is empty: write a vocabulary in which a "
                    "line break is a token as JSON"
                )
            return lines
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImportingError(f"{file}: not readable: {error}") from error
    if isinstance(data, dict):
        if sorted(data.values(), key=repr) != sorted(range(len(data)), key=repr):
            raise ImportingError(f"{file}: the ids are not the numbers 0 to {len(data) - 1}")
        data = sorted(data, key=data.__getitem__)
    if not isinstance(data, list) or not all(isinstance(token, str) for token in data):
        raise ImportingError(f"{file}: holds neither a list of tokens nor an object of their ids")
    return data
