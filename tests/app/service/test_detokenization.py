"""Pieces of text, put together, are the text."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.service.detokenization import Detokenizer
from models.tokenizers import (
    BOS_ID,
    EOS_ID,
    UNK_ID,
    CharacterTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordTokenizer,
    continuation,
)

TEXTS = ["the time machine", "a  b", "naïve café", "the \N{REPLACEMENT CHARACTER} x", "go"]
TEXTS += ["I am cold .", "he is happy .", "we lost the other machine"]

TOKENIZERS: dict[str, Tokenizer] = {
    "character": CharacterTokenizer.train("".join(TEXTS)),
    "word": WordTokenizer.train(TEXTS),
    "pieces": SentencePieceTokenizer.train(TEXTS * 20, 290),
    "pieces without a prefix": SentencePieceTokenizer.train(
        TEXTS * 20, 290, add_dummy_prefix=False
    ),
    "normalised pieces": SentencePieceTokenizer.train(TEXTS * 20, 290, normalization="nmt_nfkc"),
}
PIECES = [name for name in TOKENIZERS if "pieces" in name]


def byte_tokens(tokenizer: Tokenizer, content: bytes) -> list[int]:
    first = next(i for i in range(tokenizer.vocabulary_size) if tokenizer.token(i) == "<0x00>")
    return [first + byte for byte in content]


def pieces(tokenizer: Tokenizer, tokens: Sequence[int], before: Sequence[int] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, before)
    return [
        detokenizer.add([token], last=position == len(tokens) - 1)
        for position, token in enumerate(tokens)
    ]


BYTES = st.one_of(
    st.binary(max_size=6),
    st.text(max_size=3).map(str.encode),
    st.text(min_size=1, max_size=2).map(lambda text: text.encode("utf-8", "replace")[:-1]),
    st.sampled_from(["\N{REPLACEMENT CHARACTER}", "▁", "😀"]).map(str.encode),
)


@st.composite
def token_lists(draw: st.DrawFn, name: str) -> list[int]:
    """Any tokens of a tokenizer: those of its texts, single ones, and bytes as they fall."""
    tokenizer = TOKENIZERS[name]
    part = st.one_of(
        st.sampled_from(TEXTS).map(tokenizer.encode),
        st.lists(st.integers(BOS_ID, tokenizer.vocabulary_size - 1), max_size=3),
        st.sampled_from([[UNK_ID], tokenizer.encode(" "), tokenizer.encode("  the")]),
    )
    if name in PIECES:
        part |= BYTES.map(lambda content: byte_tokens(tokenizer, content))
    return [token for tokens in draw(st.lists(part, max_size=8)) for token in tokens]


@given(data=st.data(), name=st.sampled_from(list(TOKENIZERS)), ends=st.booleans())
def test_pieces_are_together_the_text(data: st.DataObject, name: str, ends: bool) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(token_lists(name)) + [EOS_ID] * ends
    prompt = data.draw(st.one_of(st.sampled_from(["", " ", "the ", *TEXTS, "é", "x▁"])))
    before = data.draw(st.sampled_from([[], [BOS_ID, *tokenizer.encode(prompt)]]))
    whole = continuation(tokenizer, before, tokens)
    assert "".join(pieces(tokenizer, tokens, before)) == whole
    if tokens:
        assert Detokenizer(tokenizer, before).add(tokens, last=True) == whole
        halfway = Detokenizer(tokenizer, before)
        first = halfway.add(tokens[:-1], last=False)
        assert first + halfway.add(tokens[-1:], last=True) == whole
        assert whole.startswith(first)


@pytest.mark.parametrize("name", PIECES)
def test_no_half_character_is_shown(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    for character in ("é", "▁", "😀", "\N{REPLACEMENT CHARACTER}"):
        tokens = byte_tokens(tokenizer, character.encode())
        assert pieces(tokenizer, [*tokens, EOS_ID]) == [
            *[""] * (len(tokens) - 1),
            character,
            "",
        ]


@pytest.mark.parametrize("name", PIECES)
def test_bytes_that_are_no_character_are_shown_when_that_is_sure(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    shown = "\N{REPLACEMENT CHARACTER}"
    tokens = byte_tokens(tokenizer, b"\xff\xff\xff\xff\xff")
    assert pieces(tokenizer, [*tokens, *byte_tokens(tokenizer, b"a"), EOS_ID]) == [
        *["", "", "", shown, shown],
        f"{shown * 3}a",
        "",
    ]
    assert pieces(tokenizer, byte_tokens(tokenizer, b"\xe2\x96")) == ["", shown * 2]


@pytest.mark.parametrize("name", PIECES)
def test_special_tokens_say_nothing_wherever_they_are(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    first, second = byte_tokens(tokenizer, "é".encode())
    assert pieces(tokenizer, [first, BOS_ID, second, EOS_ID]) == ["", "", "é", ""]
    space = tokenizer.encode("a  b")[-2]
    the = tokenizer.encode("the")
    for tokens in ([EOS_ID, space, BOS_ID, *the], [space, EOS_ID, space, *the]):
        assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


class CountingTokenizer:
    """A tokenizer that counts the tokens that it is given to decode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.decoded = 0

    def decode(self, tokens: Sequence[int]) -> str:
        self.decoded += len(tokens)
        return self._tokenizer.decode(tokens)

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("text", ["the time ", "\N{GREEK SMALL LETTER ALPHA}", "   "])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_time_grows_with_the_tokens_not_with_their_square(name: str, text: str) -> None:
    unit = TOKENIZERS[name].encode(text) or [UNK_ID]
    if text.isspace() and name in PIECES:
        unit = [TOKENIZERS[name].encode("a  b")[-2]]
    for tokens in (unit * 300, byte_tokens_or(name, b"\xff", unit) * 300):
        tokenizer = CountingTokenizer(TOKENIZERS[name])
        pieces(tokenizer, tokens)  # type: ignore[arg-type]  # the rest is delegated
        assert tokenizer.decoded < 9 * len(tokens)


def byte_tokens_or(name: str, content: bytes, otherwise: list[int]) -> list[int]:
    return byte_tokens(TOKENIZERS[name], content) if name in PIECES else otherwise


@given(
    data=st.data(),
    name=st.sampled_from(list(TOKENIZERS)),
    cut=st.integers(1, 30),
    window=st.integers(4, 40),
)
def test_a_text_that_goes_on_elsewhere_is_the_same_text(
    data: st.DataObject, name: str, cut: int, window: int
) -> None:
    """Cut behind any token, in the middle of a character, too."""
    tokenizer = TOKENIZERS[name]
    tokens = [token for token in data.draw(token_lists(name)) if token > EOS_ID]
    prompt = data.draw(st.sampled_from(["", " ", "the ", "é"]))
    before = [BOS_ID, *tokenizer.encode(prompt)]
    whole = Detokenizer(tokenizer, before)
    first = whole.add(tokens[:cut], last=False)
    resumed = Detokenizer.resumed(
        tokenizer, [*before, *tokens[:cut]][-window:], whole.held, has_text=whole.has_text
    )
    assert (resumed.held, resumed.held_text) == (whole.held, whole.held_text)
    for token in tokens[cut:]:
        assert resumed.add([token], last=False) == whole.add([token], last=False)
    assert resumed.add((), last=True) == whole.add((), last=True)
    assert continuation(tokenizer, before, tokens).startswith(first)
