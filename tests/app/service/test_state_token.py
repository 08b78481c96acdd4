"""A token brings back what was put into it, and nothing else ever does."""

import base64
import hashlib
import hmac
import random
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.catalog import ServedModel
from app.engine.request import SavedState
from app.exceptions import (
    CutStateError,
    ForeignStateError,
    ForgedStateError,
    OutdatedStateError,
    StateTokenError,
)
from app.service.outputs import OpenText
from app.service.state_token import (
    FRAME,
    HEAD,
    SIGNATURE_BYTES,
    StateTokens,
    TravellingState,
    random_key,
)
from models.tokenizers import CharacterTokenizer
from tests.app.service.scripted_engine import language_model

KEY = b"k" * 32
TOKENS = StateTokens(KEY)
LETTERS = CharacterTokenizer.train("abcdef")
WIDE = CharacterTokenizer.train("".join(map(chr, range(0x4E00, 0x4E00 + 300))))


def model(
    tokenizer: CharacterTokenizer = LETTERS,
    *,
    fingerprint: str = "ab" * 32,
    precision: str = "float32",
    capability: str = "cpu x86 AVX2",
) -> ServedModel:
    found = language_model("letters", tokenizer)
    info = replace(found.info, fingerprint=fingerprint)
    return replace(found, info=info, precision=precision, capability=capability)


STATE = TravellingState(
    SavedState(bytes(range(64)), (1, 5, 6), 17), 7, 2, OpenText("ab", 1, has_text=True)
)
TOKEN = TOKENS.seal(model(), STATE)

states = st.builds(
    TravellingState,
    st.builds(
        SavedState,
        st.lists(st.floats(width=32), max_size=8).map(
            lambda values: struct.pack(f"<{len(values)}f", *values)
        ),
        st.lists(st.integers(0, 255), min_size=4, max_size=256).map(tuple),
        st.integers(0, 2**40),
    ),
    st.none() | st.integers(0, 2**53 - 1),
    st.integers(0, 15),
    st.builds(OpenText, st.text(), st.integers(0, 3), st.booleans()),
)


def raw(token: str) -> bytes:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def spelled(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def signed(content: bytes, key: bytes = KEY) -> str:
    return spelled(content + hmac.digest(key, content, hashlib.sha256)[:SIGNATURE_BYTES])


@given(state=states, wide=st.booleans())
def test_what_goes_in_comes_out(state: TravellingState, wide: bool) -> None:
    here = model(WIDE if wide else LETTERS)
    token = TOKENS.seal(here, state)
    assert re.fullmatch("[A-Za-z0-9_-]+", token)
    assert TOKENS.open(here, token, "state") == state


@pytest.mark.parametrize(("size", "width"), [(256, 1), (257, 2), (2**16, 2), (2**16 + 1, 4)])
def test_the_window_takes_no_more_bytes_than_the_vocabulary_needs(size: int, width: int) -> None:
    tokenizer = CharacterTokenizer.train("".join(map(chr, range(0x10000, 0x10000 + size - 4))))
    here = model(tokenizer)
    last = replace(STATE, saved=replace(STATE.saved, window=(size - 1,) * 256))
    token = TOKENS.seal(here, last)
    assert TOKENS.open(here, token, "state") == last
    expected = FRAME.size + HEAD.size + 256 * width + 2 + 64 + SIGNATURE_BYTES
    assert len(raw(token)) == expected


@given(place=st.integers(0, len(TOKEN) - 1), other=st.characters())
def test_a_token_with_another_character_is_refused(place: int, other: str) -> None:
    changed = TOKEN[:place] + other + TOKEN[place + 1 :]
    if changed != TOKEN:
        with pytest.raises((CutStateError, ForgedStateError)):
            TOKENS.open(model(), changed, "state")


def test_a_token_with_any_bit_flipped_is_refused() -> None:
    content = raw(TOKEN)
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            with pytest.raises((CutStateError, ForgedStateError)) as caught:
                TOKENS.open(model(), spelled(bytes(flipped)), "state")
            # What is whole by its own account was altered.
            if not 1 <= place < FRAME.size:
                assert caught.type is ForgedStateError


def test_every_way_to_cut_a_token_is_known_as_such() -> None:
    for length in range(len(TOKEN)):
        with pytest.raises(CutStateError):
            TOKENS.open(model(), TOKEN[:length], "state")


@given(st.text() | st.binary().map(lambda content: content.decode("latin-1")))
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises((CutStateError, ForgedStateError)):
        TOKENS.open(model(), text, "state")


@given(st.binary(max_size=200))
def test_bytes_that_are_no_token_are_refused(content: bytes) -> None:
    with pytest.raises((CutStateError, ForgedStateError)):
        TOKENS.open(model(), spelled(content), "state")


def test_each_byte_of_a_token_has_one_spelling() -> None:
    """What comes behind, or hides in the bits that base64 leaves over, is no part of it."""
    for more in ("A", "=", "==", "\n", " ", "AAAA"):
        with pytest.raises(StateTokenError):
            TOKENS.open(model(), TOKEN + more, "state")
    # One of these lengths leaves bits over.
    for pending in ("", "a", "ab"):
        state = replace(STATE, end=replace(STATE.end, pending=pending))
        token = TOKENS.seal(model(), state)
        for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_":
            if last != token[-1]:
                with pytest.raises(ForgedStateError):
                    TOKENS.open(model(), token[:-1] + last, "state")


def test_a_token_of_another_key_is_refused() -> None:
    for other in (b"j" * 32, b"", random_key()):
        with pytest.raises(ForgedStateError, match="GATEHOUSE_STATE_KEY") as caught:
            StateTokens(other).open(model(), TOKEN, "state.3")
        assert caught.value.field == "state.3"


def test_a_random_key_is_the_same_for_all_of_the_process() -> None:
    assert random_key() is random_key()
    assert len(random_key()) == 32


@pytest.mark.parametrize("version", [0, 2, 255])
def test_a_token_of_another_version_is_refused_whatever_it_holds(version: int) -> None:
    for content in (raw(TOKEN)[FRAME.size : -SIGNATURE_BYTES], b"", b"something else"):
        size = FRAME.size + len(content) + SIGNATURE_BYTES
        token = signed(FRAME.pack(version, size) + content)
        with pytest.raises(OutdatedStateError, match=f"version {version}; this service takes 1"):
            TOKENS.open(model(), token, "state")


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (model(fingerprint="cd" * 32), "another checkpoint than letters"),
        (model(precision="int8"), "of float32; here it is int8"),
        (model(capability="cpu x86 AVX512"), "another kind of processor; here it is cpu x86 AVX5"),
    ],
)
def test_a_token_of_elsewhere_is_refused(other: ServedModel, reason: str) -> None:
    with pytest.raises(ForeignStateError, match=reason):
        TOKENS.open(other, TOKEN, "state")


def test_a_token_of_the_same_checkpoint_under_another_name_is_taken() -> None:
    info = replace(model().info, name="renamed")
    assert TOKENS.open(replace(model(), info=info), TOKEN, "state") == STATE


def test_the_page_shows_each_byte() -> None:
    """The table of docs/state.md, walked along a token, finds everything where it is."""
    text = (Path(__file__).parents[3] / "docs" / "state.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\S+) \| `(\w+)` \|", text, re.MULTILINE)
    content = raw(TOKEN)
    sizes = {"W": len(STATE.saved.window), "P": 2, "V": 64}
    place = 0
    found: dict[str, bytes] = {}
    for at, size, name in rows:
        assert at in (str(place), "then", "last")
        length = sizes[size] if size in sizes else int(size)
        found[name] = content[place : place + length]
        place += length
    assert place == len(content)
    numbers = {
        name: int.from_bytes(part, "little") for name, part in found.items() if len(part) <= 8
    }
    assert numbers["version"] == 1
    assert numbers["size"] == len(content)
    assert found["checkpoint"] == bytes.fromhex("ab" * 8)
    assert numbers["precision"] == 0
    assert found["arithmetic"] == hashlib.sha256(b"cpu x86 AVX2").digest()[:8]
    assert (numbers["seed"], numbers["output_index"], numbers["position"]) == (7, 2, 17)
    assert numbers["flags"] == 0b101
    assert (numbers["token_bytes"], numbers["window_tokens"]) == (1, 3)
    assert numbers["pending_bytes"] == 2
    assert found["window"] == bytes([1, 5, 6])
    assert found["pending"] == b"ab"
    assert found["vectors"] == bytes(range(64))
    assert found["signature"] == hmac.digest(KEY, content[:-16], hashlib.sha256)[:16]


def test_tokens_do_not_repeat_what_a_person_could_tell_apart() -> None:
    """Two states that differ in anything have different tokens."""
    generator = random.Random(1)
    seen = {TOKEN}
    for changed in (
        replace(STATE, seed=None),
        replace(STATE, output_index=3),
        replace(STATE, end=replace(STATE.end, held=0)),
        replace(STATE, saved=replace(STATE.saved, position=generator.randrange(100, 200))),
    ):
        token = TOKENS.seal(model(), changed)
        assert token not in seen
        seen.add(token)
