"""The token that carries an output's state to a client and back; ``docs/state.md`` shows its bytes.

It is signed, not encrypted: nobody can change it, and whoever has it can read the last tokens of
the text. All versions share the frame: the version, the size of the whole, and behind everything
else a signature. So a token that is cut, forged or outdated is known as such whatever it holds.
"""

import base64
import binascii
import functools
import hashlib
import hmac
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from app.catalog import ServedModel
from app.engine.request import SavedState
from app.exceptions import (
    CutStateError,
    ForeignStateError,
    ForgedStateError,
    OutdatedStateError,
)
from app.service.outputs import OpenText

VERSION = 1
FRAME = struct.Struct("<BI")
"""Version and size in bytes."""
HEAD = struct.Struct("<8sB8sQBQBBHI")
"""Checkpoint, precision, arithmetic, seed, output index, position, flags, bytes of a token in the
window, tokens of the window, bytes of the pending text."""
SIGNATURE_BYTES = 16
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
"""By their number in a token."""

_NO_SEED = 2**64 - 1
_HELD, _HAS_TEXT = 0b011, 0b100


@dataclass(frozen=True, slots=True)
class TravellingState:
    """What a token carries.

    Attributes:
        saved: where the output stands in the engine.
        seed: of the request that it is an output of; None where nothing was drawn.
        output_index: which of its outputs, drawn with ``seed + output_index``.
        end: the end of its text.
    """

    saved: SavedState
    seed: int | None
    output_index: int
    end: OpenText


class StateTokens:
    """Makes tokens, and opens those that were made with the same key.

    Args:
        key: secret; those who know it can make tokens.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, model: ServedModel, state: TravellingState) -> str:
        """The token of a state, in the alphabet of URLs."""
        saved, end = state.saved, state.end
        width = _token_width(model.target_tokenizer.vocabulary_size)
        pending = end.pending.encode()
        head = HEAD.pack(
            *_binding(model),
            _NO_SEED if state.seed is None else state.seed,
            state.output_index,
            saved.position,
            end.held | (_HAS_TEXT if end.has_text else 0),
            width,
            len(saved.window),
            len(pending),
        )
        content = head + _pack(saved.window, width) + pending + saved.vectors
        size = FRAME.size + len(content) + SIGNATURE_BYTES
        signed = FRAME.pack(VERSION, size) + content
        return _spell(signed + self._sign(signed))

    def open(self, model: ServedModel, token: str, field: str) -> TravellingState:
        """The state that a token carries.

        Args:
            model: that is to go on from it.
            token: as the client sent it.
            field: where the client sent it, for the errors.

        Raises:
            CutStateError: it is not whole, or no token at all.
            ForgedStateError: it was altered, or signed with another key.
            OutdatedStateError: it is of another version.
            ForeignStateError: it is of another checkpoint, precision or processor.
        """
        whole = _decode(token, field)
        if len(whole) < FRAME.size + SIGNATURE_BYTES:
            raise CutStateError(field, "this is not a whole state")
        version, size = FRAME.unpack_from(whole)
        if len(whole) < size:
            raise CutStateError(field, f"{len(whole)} of the state's {size} bytes are there")
        signed, signature = whole[:-SIGNATURE_BYTES], whole[-SIGNATURE_BYTES:]
        # Some bytes have several spellings in base64, which leaves bits over.
        is_spelled_so = _spell(whole) == token
        if not (is_spelled_so and hmac.compare_digest(self._sign(signed), signature)):
            raise ForgedStateError(
                field,
                "the state was altered, or comes from a service with another key: services that "
                "take each other's states have the same GATEHOUSE_STATE_KEY",
            )
        if version != VERSION:
            raise OutdatedStateError(
                field, f"the state is of version {version}; this service takes {VERSION}"
            )
        return _read(signed[FRAME.size :], model, field)

    def _sign(self, signed: bytes) -> bytes:
        return hmac.digest(self._key, signed, hashlib.sha256)[:SIGNATURE_BYTES]


@functools.cache
def random_key() -> bytes:
    """A key of this process's own, for a service that is given none."""
    return secrets.token_bytes(32)


def _spell(whole: bytes) -> str:
    return base64.urlsafe_b64encode(whole).decode().rstrip("=")


def _decode(token: str, field: str) -> bytes:
    try:
        spelled = token.encode("ascii")
        padded = spelled.translate(_TO_STANDARD) + b"=" * (-len(spelled) % 4)
        return binascii.a2b_base64(padded, strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise CutStateError(field, "this is not a whole state") from None


_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def _read(content: bytes, model: ServedModel, field: str) -> TravellingState:
    """What stands between the frame and the signature."""
    checkpoint, precision, arithmetic, seed, index, position, flags, width, tokens, pending = (
        HEAD.unpack_from(content)
    )
    here = _binding(model)
    if checkpoint != here[0]:
        raise ForeignStateError(field, f"the state is of another checkpoint than {model.name}")
    if precision != here[1]:
        made = PRECISIONS[precision]
        raise ForeignStateError(field, f"the state is of {made}; here it is {model.precision}")
    if arithmetic != here[2]:
        raise ForeignStateError(
            field, f"the state is of another kind of processor; here it is {model.capability}"
        )
    text_at = HEAD.size + width * tokens
    vectors_at = text_at + pending
    saved = SavedState(
        vectors=content[vectors_at:],
        window=_unpack(content[HEAD.size : text_at], width),
        position=position,
    )
    end = OpenText(
        content[text_at:vectors_at].decode(), flags & _HELD, has_text=bool(flags & _HAS_TEXT)
    )
    return TravellingState(saved, None if seed == _NO_SEED else seed, index, end)


def _binding(model: ServedModel) -> tuple[bytes, int, bytes]:
    """What a state is bound to: checkpoint, precision, arithmetic."""
    arithmetic = hashlib.sha256(model.capability.encode()).digest()[:8]
    checkpoint = bytes.fromhex(model.info.fingerprint)[:8]
    return checkpoint, PRECISIONS.index(model.precision), arithmetic


def _token_width(vocabulary_size: int) -> int:
    """Bytes that hold every token."""
    return 1 if vocabulary_size <= 2**8 else 2 if vocabulary_size <= 2**16 else 4


def _pack(tokens: Sequence[int], width: int) -> bytes:
    return b"".join(token.to_bytes(width, "little") for token in tokens)


def _unpack(content: bytes, width: int) -> tuple[int, ...]:
    places = range(0, len(content), width)
    return tuple(int.from_bytes(content[at : at + width], "little") for at in places)
