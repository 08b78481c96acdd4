"""The tokenizer of subword pieces: see :mod:`models.tokenizers`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import sentencepiece

from models.sentencepiece_model import (
    ModelType,
    Normalization,
    failure_reason,
    is_unigram,
    require_whole_model,
    train_model,
)
from models.vocabulary import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    UNK_ID,
    TokenizerError,
    TokenizerKind,
    require_ids,
    require_unicode,
)

SPACE_MARK = "▁"
"""U+2581, which SentencePiece writes for a space inside a piece."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a vocabulary: its text, id and score (of a unigram model: log-probability)."""

    text: str
    token_id: int
    log_probability: float


class SentencePieceTokenizer:
    """Subword pieces (Kudo and Richardson 2018) with byte fallback.

    A character without a piece becomes its UTF-8 bytes, one id each, so that no input is
    ever unknown. Decoding a part of such a character gives one U+FFFD for each byte, never
    an error: while a text is streamed, hold back the U+FFFD at its end.

    SentencePiece itself reads U+2581 in a text as a space; here it becomes its three bytes,
    so that it round-trips too.

    Args:
        model: the content of a SentencePiece ``.model`` file (a serialized ModelProto).

    Raises:
        TokenizerError: the model is damaged or cut, has other ids for the special tokens, or
            no byte fallback.
    """

    kind: ClassVar[TokenizerKind] = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        """Read a model; see :meth:`train` and :func:`load_tokenizer`."""
        try:
            require_whole_model(model)
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except ValueError as error:
            raise TokenizerError(str(error)) from error
        except RuntimeError as error:
            reason = failure_reason(error)
            raise TokenizerError(f"not a SentencePiece model: {reason}") from error
        self._model = model
        self._size: int = self._processor.get_piece_size()
        processor = self._processor
        special = (processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id())
        if special != (PAD_ID, BOS_ID, EOS_ID, UNK_ID):
            raise TokenizerError(f"<pad>, <bos>, <eos>, <unk> have the ids {special}, not 0 to 3")
        self._byte_ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        if not all(map(processor.is_byte, self._byte_ids)):
            raise TokenizerError("the SentencePiece model was trained without byte fallback")

    @classmethod
    def train(
        cls,
        sentences: Iterable[str],
        vocabulary_size: int,
        *,
        model_type: ModelType = "unigram",
        normalization: Normalization = "identity",
        add_dummy_prefix: bool = True,
        character_coverage: float = 0.9995,
        num_threads: int = 1,
        may_be_smaller: bool = False,
    ) -> Self:
        """Learn the pieces from sentences.

        Nothing here is random: the same sentences in the same order give the same model. The
        unigram trainer sums in an order that depends on ``num_threads``, so another number
        of threads gives a slightly different model.

        Args:
            sentences: texts, without a limit on length.
            vocabulary_size: number of ids, of which 4 are special and 256 are bytes.
            model_type: the unigram language model (Kudo 2018) or byte pair encoding
                (Sennrich et al. 2016).
            normalization: ``identity`` keeps every character, so that text round-trips
                exactly; ``nmt_nfkc`` applies NFKC, maps all white space to a space, and
                drops spaces at both ends and in a row.
            add_dummy_prefix: encode as if a space came before the text, so that a first
                word has the same pieces as a later one. Decoding drops that space again.
                Turn it off for a language model that goes on from a prompt, where
                ``decode(a) + decode(b)`` should be ``decode(a + b)``.
            character_coverage: share of the text's characters that get a piece of their
                own; the rest are spelled in bytes.
            num_threads: threads of the unigram trainer.
            may_be_smaller: whether sentences that cannot fill the vocabulary give a smaller
                one instead of an error.

        Raises:
            TokenizerError: there is no text, or it cannot fill a vocabulary of this size, or
                the size leaves no room for the characters, or a sentence holds a lone
                surrogate.
        """
        try:
            model = train_model(
                map(require_unicode, sentences),
                special_tokens=SPECIAL_TOKENS,
                vocabulary_size=vocabulary_size,
                model_type=model_type,
                normalization=normalization,
                add_dummy_prefix=add_dummy_prefix,
                character_coverage=character_coverage,
                num_threads=num_threads,
                may_be_smaller=may_be_smaller,
            )
        except ValueError as error:
            raise TokenizerError(str(error)) from error
        return cls(model)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids: 4 special ones, 256 bytes and the pieces."""
        return self._size

    def encode(self, text: str) -> list[int]:
        """Split into pieces; what has no piece becomes UTF-8 bytes."""
        require_unicode(text)
        if SPACE_MARK in text:
            return self._encode_with_space_mark(text)
        tokens: list[int] = self._processor.encode(text)
        return tokens

    @property
    def is_unigram(self) -> bool:
        """Whether the pieces have probabilities (else they were made by byte pair encoding)."""
        return is_unigram(self._model)

    def pieces(self) -> list[Piece]:
        """What texts are split in, but for bytes."""
        processor = self._processor
        return [
            Piece(processor.id_to_piece(token_id), token_id, processor.get_score(token_id))
            for token_id in range(self._size)
            if not (
                processor.is_control(token_id)
                or processor.is_unknown(token_id)
                or processor.is_byte(token_id)
                or processor.is_unused(token_id)
            )
        ]

    def normalise(self, texts: Sequence[str]) -> list[str]:
        """The texts as they are split: with U+2581 for a space, and one before the first word."""
        normalised: list[str] = self._processor.normalize(list(texts))
        return normalised

    def spell(self, character: str) -> list[int]:
        """The tokens of a character's UTF-8 bytes."""
        return [self._byte_ids[byte] for byte in character.encode()]

    def stand_in(self, texts: Iterable[str]) -> str:
        """A private-use character that is no piece and in no text."""
        present = set().union(*texts)
        return next(
            character
            for character in map(chr, range(0x100000, 0x10FFFE))
            if character not in present and self._processor.piece_to_id(character) == UNK_ID
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Join the pieces; each byte that completes no character is shown as U+FFFD."""
        require_ids(tokens, self._size)
        text: str = self._processor.decode([token for token in tokens if token > EOS_ID])
        return text

    def token(self, token_id: int) -> str:
        """Name one piece: with U+2581 for a space, and ``<0xE9>`` for a byte."""
        require_ids((token_id,), self._size)
        return self._processor.id_to_piece(token_id)

    def unknown(self, text: str) -> list[str]:
        """Give an empty list: what has no piece is spelled in bytes."""
        return []

    def save(self, path: Path) -> None:
        """Write the SentencePiece ``.model`` file."""
        path.write_bytes(self._model)

    def _encode_with_space_mark(self, text: str) -> list[int]:
        """Encode a text with U+2581, which the processor would take for a space.

        A private-use character that neither the text nor the vocabulary has stands in for
        it; that one is spelled in bytes, and its bytes are then exchanged. UTF-8 sequences
        cannot overlap, so no other character is touched.
        """
        stand_in = self.stand_in([text])
        found: list[int] = self._processor.encode(text.replace(SPACE_MARK, stand_in))
        old, new = self.spell(stand_in), self.spell(SPACE_MARK)
        tokens: list[int] = []
        position = 0
        while position < len(found):
            is_stand_in = found[position : position + len(old)] == old
            tokens.extend(new if is_stand_in else found[position : position + 1])
            position += len(old) if is_stand_in else 1
        return tokens
