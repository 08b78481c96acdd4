"""Making and checking the content of a SentencePiece ``.model`` file."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import sentencepiece

ModelType = Literal["unigram", "bpe"]
Normalization = Literal["identity", "nmt_nfkc"]


def train_model(
    sentences: Iterable[str],
    *,
    special_tokens: Sequence[str],
    vocabulary_size: int,
    model_type: ModelType,
    normalization: Normalization,
    add_dummy_prefix: bool,
    character_coverage: float,
    num_threads: int,
    may_be_smaller: bool,
) -> bytes:
    """Learn pieces with byte fallback and return the serialized ModelProto.

    The arguments are those of :meth:`models.tokenizers.SentencePieceTokenizer.train`;
    ``special_tokens`` are the pieces of ids 0 to 3: pad, bos, eos, unk.

    Raises:
        ValueError: SentencePiece cannot train on this; the message gives its reason.
    """
    pad, bos, eos, unk = special_tokens
    output = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=output,
            vocab_size=vocabulary_size,
            model_type=model_type,
            byte_fallback=True,
            normalization_rule_name=normalization,
            add_dummy_prefix=add_dummy_prefix,
            remove_extra_whitespaces=normalization != "identity",
            character_coverage=character_coverage,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=pad,
            bos_piece=bos,
            eos_piece=eos,
            unk_piece=unk,
            unk_surface=unk,
            num_threads=num_threads,
            hard_vocab_limit=not may_be_smaller,
            max_sentence_length=2**30,  # longer ones would be dropped without a word
            minloglevel=3,  # what goes wrong is raised
        )
    except RuntimeError as error:
        raise ValueError(f"cannot train SentencePiece: {failure_reason(error)}") from error
    return output.getvalue()


def require_whole_model(model: bytes) -> None:
    """Refuse a cut file that SentencePiece would still load.

    The serialized ModelProto is a row of length-delimited fields: 1 for each piece, then 2
    (trainer) and 3 (normalizer). A file cut between two of them would load with defaults
    in place of what is missing, and encode differently.

    Raises:
        ValueError: the bytes are not a whole ModelProto.
    """
    position, fields = 0, set()
    while position < len(model):
        key, position = _read_varint(model, position)
        length, position = _read_varint(model, position)
        position += length
        if key & 7 != 2 or position > len(model):
            break
        fields.add(key >> 3)
    if position != len(model) or not {1, 2, 3} <= fields:
        raise ValueError("damaged: not a whole SentencePiece model")


def is_unigram(model: bytes) -> bool:
    """Whether the pieces of a whole ModelProto have probabilities.

    Its field 2, the trainer's settings, has the type as its field 3: 1 is unigram, which is what
    it means where it is missing.
    """
    for key, value in _fields(model):
        if key >> 3 == 2 and isinstance(value, bytes):
            return dict(_fields(value)).get(3 << 3, 1) == 1
    return True


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a serialized message: key (number and wire type) and value."""
    position = 0
    while position < len(content):
        key, position = _read_varint(content, position)
        kind = key & 7
        if kind == 0:
            value, position = _read_varint(content, position)
            yield key, value
            continue
        if kind == 2:
            size, position = _read_varint(content, position)
        else:
            size = {1: 8, 5: 4}[kind]
        yield key, content[position : position + size]
        position += size


def failure_reason(error: RuntimeError) -> str:
    """Say in words what one of SentencePiece's errors means.

    Its messages are ``STATUS: source file(line) [condition that does not hold] words``, and
    the words are often missing.
    """
    text = str(error)
    if "sentences_.empty()" in text:
        return "there is no text to train on"
    words = re.sub(r"^[A-Z_]+: src/\S+ \[.*\] ?", "", text).strip()
    return words or text


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    """Read a protobuf varint; return it and the position after it.

    At the end of the content the value is short, and the caller finds the cut.
    """
    value = shift = 0
    while position < len(content):
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return value, position
