"""Tokenizers: round trips, hostile text, files."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tokenizers import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    UNK_ID,
    CharacterTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizerError,
    WordTokenizer,
    continuation,
    load_tokenizer,
    source_prompt,
)

SENTENCES = [
    "The Time Traveller (for so it will be convenient to speak of him) was expounding.",
    "Va\u202f! J'ai froid, et j'ai faim\u00a0?",
    "She said: «\u00a0C'est déjà l'été.\u00a0» and left.",
    "I am cold. I'm not that cold now, am I? Am I so cold ?",
    "<pad> <bos> <eos> <unk> <0x41> are only words here",
]
VOCABULARY_SIZE = 325

NASTY = [
    "",
    " ",
    "  two  spaces  ",
    "line one\n\nline two\r\n\ttabbed",
    "narrow\u202fno-break\u00a0space",
    "emoji 😀👩‍👩‍👧 and \U0001d518\U0001d52b",
    "<pad><bos><eos><unk><s></s><0x41>",
    "▁", "▁▁a▁ b ▁", "a▁b",
    "nul\0inside", "\0",
    "\ufeffmark", "\ufffd\ufffe\uffff", "e\u0301 is not \u00e9", "\u2585\u2047 ⁇",
    "\U00100000▁\U00100001",
]  # fmt: skip

texts = st.text() | st.text(alphabet="ab ▁<>\n\u202f\u00e9😀")


def train_sentencepiece(**options: Any) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(SENTENCES * 4, VOCABULARY_SIZE, **options)


UNIGRAM = train_sentencepiece()
BPE = train_sentencepiece(model_type="bpe")
NO_PREFIX = train_sentencepiece(add_dummy_prefix=False)
SUBWORDS = [UNIGRAM, BPE, NO_PREFIX]
CHARACTERS = CharacterTokenizer.train("".join(SENTENCES + NASTY))
WORDS = WordTokenizer.train(SENTENCES)
ALL: list[Tokenizer] = [CHARACTERS, WORDS, *SUBWORDS]


# Special tokens


@pytest.mark.parametrize("tokenizer", ALL)
def test_special_ids_are_the_same_in_every_tokenizer(tokenizer: Tokenizer) -> None:
    assert (PAD_ID, BOS_ID, EOS_ID, UNK_ID) == (0, 1, 2, 3)
    assert tuple(tokenizer.token(index) for index in range(4)) == SPECIAL_TOKENS


@pytest.mark.parametrize("tokenizer", ALL)
@given(text=texts | st.sampled_from(["<pad>", "a <eos> b", "<bos>"]))
def test_no_text_encodes_to_pad_bos_or_eos(tokenizer: Tokenizer, text: str) -> None:
    assert all(UNK_ID <= token < tokenizer.vocabulary_size for token in tokenizer.encode(text))


@pytest.mark.parametrize("tokenizer", ALL)
def test_decode_leaves_out_pad_bos_and_eos_and_shows_unk(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("cold")
    assert tokenizer.decode([BOS_ID, *tokens, EOS_ID, PAD_ID, PAD_ID]) == "cold"
    assert tokenizer.decode([UNK_ID]) == "<unk>"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([PAD_ID, EOS_ID]) == ""


@pytest.mark.parametrize("tokenizer", ALL)
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    for wrong in (-1, tokenizer.vocabulary_size):
        with pytest.raises(IndexError):
            tokenizer.decode([5, wrong])
        with pytest.raises(IndexError):
            tokenizer.token(wrong)


@pytest.mark.parametrize("tokenizer", ALL)
@pytest.mark.parametrize("text", ["\ud800", "half \udc00 emoji"])
def test_lone_surrogates_are_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(ValueError, match="lone surrogate, U\\+D"):
        tokenizer.encode(text)


# Characters


def test_characters_are_sorted_by_frequency_then_code_point() -> None:
    tokenizer = CharacterTokenizer.train("bbaac")
    assert tokenizer.vocabulary_size == 7
    assert [tokenizer.token(index) for index in range(4, 7)] == ["a", "b", "c"]
    assert tokenizer.encode("abc") == [4, 5, 6]


def test_unseen_characters_are_unk_and_listed_once_in_order() -> None:
    tokenizer = CharacterTokenizer.train("abc")
    assert tokenizer.encode("a?b!?") == [4, UNK_ID, 5, UNK_ID, UNK_ID]
    assert tokenizer.unknown("a?b!?") == ["?", "!"]
    assert tokenizer.unknown("cab") == []
    assert tokenizer.decode(tokenizer.encode("a?b")) == "a<unk>b"


@given(text=texts)
def test_characters_round_trip(text: str) -> None:
    tokenizer = CharacterTokenizer.train(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_round_trips_by_character(text: str) -> None:
    assert CHARACTERS.decode(CHARACTERS.encode(text)) == text


# Words


def test_rare_words_are_unk() -> None:
    tokenizer = WordTokenizer.train(["a b a", "a c  b"], min_frequency=2)
    assert tokenizer.vocabulary_size == 6
    assert tokenizer.encode("b a\nc") == [5, 4, UNK_ID]
    assert tokenizer.decode([5, 4, UNK_ID]) == "b a <unk>"
    assert tokenizer.unknown("c a d c") == ["c", "d"]


def test_a_word_spelled_like_a_special_token_is_unknown() -> None:
    tokenizer = WordTokenizer.train(["<eos> a <pad> <bos>"])
    assert tokenizer.vocabulary_size == 5
    assert tokenizer.encode("<eos> a <unk>") == [UNK_ID, 4, UNK_ID]
    assert tokenizer.unknown("<eos> a") == ["<eos>"]


@given(text=texts)
def test_words_round_trip_up_to_white_space(text: str) -> None:
    tokenizer = WordTokenizer.train([text])
    assert tokenizer.decode(tokenizer.encode(text)) == " ".join(text.split())


# SentencePiece


@pytest.mark.parametrize("tokenizer", SUBWORDS)
@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_round_trips_by_piece(tokenizer: SentencePieceTokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert UNK_ID not in tokens
    assert tokenizer.decode(tokens) == text
    assert tokenizer.unknown(text) == []


@pytest.mark.parametrize("tokenizer", SUBWORDS)
@given(text=texts)
def test_any_text_round_trips_by_piece(tokenizer: SentencePieceTokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert UNK_ID not in tokens
    assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize("tokenizer", SUBWORDS)
@given(text=texts)
def test_a_streamed_text_grows(tokenizer: SentencePieceTokenizer, text: str) -> None:
    """Each decoded prefix, without the U+FFFD at its end, begins the decoded whole."""
    tokens = tokenizer.encode(text)
    for length in range(len(tokens) + 1):
        assert text.startswith(tokenizer.decode(tokens[:length]).rstrip("\ufffd"))


@given(tokens=st.lists(st.integers(0, VOCABULARY_SIZE - 1)))
def test_any_ids_decode_to_valid_unicode(tokens: list[int]) -> None:
    for tokenizer in SUBWORDS:
        tokenizer.decode(tokens).encode("utf-8")


@given(first=texts, second=texts)
def test_without_a_dummy_prefix_decoded_parts_join(first: str, second: str) -> None:
    tokens = NO_PREFIX.encode(first), NO_PREFIX.encode(second)
    assert NO_PREFIX.decode(tokens[0]) + NO_PREFIX.decode(tokens[1]) == first + second
    assert NO_PREFIX.decode(tokens[0] + tokens[1]) == first + second


def test_a_dummy_prefix_gives_a_first_word_the_pieces_of_a_later_one() -> None:
    assert UNIGRAM.encode("cold cold") == UNIGRAM.encode("cold") * 2


def test_pieces_are_named_as_sentencepiece_names_them() -> None:
    pieces = [UNIGRAM.token(token) for token in UNIGRAM.encode("I 😀")]
    assert pieces[0].startswith("▁")
    assert pieces[-4:] == ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]


def test_nmt_nfkc_round_trips_to_the_normalised_text() -> None:
    tokenizer = train_sentencepiece(normalization="nmt_nfkc")
    assert tokenizer.decode(tokenizer.encode("  Va\u202f!\n ﬁn\u00a0 ")) == "Va ! fin"


def test_training_is_reproducible() -> None:
    assert train_sentencepiece().encode(SENTENCES[0]) == UNIGRAM.encode(SENTENCES[0])
    again = train_sentencepiece()
    for index in range(VOCABULARY_SIZE):
        assert again.token(index) == UNIGRAM.token(index)


def test_long_sentences_are_not_dropped() -> None:
    tokenizer = SentencePieceTokenizer.train([" ".join(SENTENCES * 30)], VOCABULARY_SIZE)
    assert tokenizer.vocabulary_size == VOCABULARY_SIZE


def test_training_and_loading_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    SentencePieceTokenizer.train([*SENTENCES, "tab\there", "nul\0here"] * 4, 325)
    with pytest.raises(TokenizerError):
        SentencePieceTokenizer.train(SENTENCES, 5000)
    with pytest.raises(TokenizerError):
        SentencePieceTokenizer(b"\x0a\x01a\x12\x00\x1a\x00")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize(
    ("sentences", "size", "message"),
    [
        ([], 300, "there is no text"),
        ([""], 300, "there is no text"),
        (SENTENCES, 100_000, "Vocabulary size too high .100000.. Please set it to a value <="),
        (SENTENCES, 20, "Vocabulary size is smaller than required_chars"),
        (["a\ud800"], 300, "lone surrogate"),
    ],
)
def test_impossible_training_is_explained(sentences: list[str], size: int, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        SentencePieceTokenizer.train(sentences, size)


# Files


@pytest.mark.parametrize("tokenizer", ALL)
def test_files_round_trip(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer"
    tokenizer.save(path)
    loaded = load_tokenizer(path, tokenizer.kind)
    assert type(loaded) is type(tokenizer)
    assert loaded.vocabulary_size == tokenizer.vocabulary_size
    for index in range(tokenizer.vocabulary_size):
        assert loaded.token(index) == tokenizer.token(index)
    for text in [*NASTY, *SENTENCES]:
        assert loaded.encode(text) == tokenizer.encode(text)
    again = tmp_path / "again"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("tokenizer", ALL)
def test_a_cut_file_is_refused_wherever_it_is_cut(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer"
    tokenizer.save(path)
    content = path.read_bytes()
    # The JSON ends in a newline that it can do without.
    last = len(content.rstrip(b"\n")) if tokenizer.kind != "sentencepiece" else len(content)
    for length in (0, *range(1, last, 37), *range(max(last - 90, 0), last)):
        path.write_bytes(content[:length])
        with pytest.raises(TokenizerError) as caught:
            load_tokenizer(path, tokenizer.kind)
        assert str(path) in str(caught.value)


@given(content=st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_loaded_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-tokenizer"
    path.write_bytes(content)
    for kind in ("character", "word", "sentencepiece"):
        with pytest.raises(TokenizerError, match="any-tokenizer"):
            load_tokenizer(path, kind)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    tokenizers: dict[str, Tokenizer] = {"words": WORDS, "characters": CHARACTERS, "pieces": BPE}
    for name, tokenizer in tokenizers.items():
        tokenizer.save(tmp_path / name)
        for kind in {"word", "character", "sentencepiece"} - {tokenizer.kind}:
            with pytest.raises(TokenizerError, match=name):
                load_tokenizer(tmp_path / name, kind)


def test_missing_files_and_unknown_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere.json: cannot be read: No such file"):
        load_tokenizer(tmp_path / "nowhere.json", "word")
    with pytest.raises(TokenizerError, match="unknown kind of tokenizer 'syllable'"):
        load_tokenizer(tmp_path / "nowhere.json", "syllable")


SPECIALS = list(SPECIAL_TOKENS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no format_version"),
        ({"kind": "character"}, "no format_version"),
        ({"format_version": 2}, "format_version 2; this version of Gatehouse reads only 1"),
        ({"format_version": 1, "kind": "word", "tokens": SPECIALS}, "of kind 'word', not"),
        ({"format_version": 1, "kind": "character"}, "'tokens' must be a list of strings"),
        ({"format_version": 1, "kind": "character", "tokens": [*SPECIALS, 5]}, "list of strings"),
        ({"format_version": 1, "kind": "character", "tokens": ["a"]}, "must begin with <pad>"),
        ({"format_version": 1, "kind": "character", "tokens": [*SPECIALS, "a", "a"]}, "repeat 'a'"),
        ({"format_version": 1, "kind": "character", "tokens": [*SPECIALS, "<eos>"]}, "repeat"),
        ({"format_version": 1, "kind": "character", "tokens": [*SPECIALS, "ab"]}, "not a single"),
        ({"format_version": 1, "kind": "character", "tokens": [*SPECIALS, ""]}, "not a single"),
    ],
)
def test_wrong_vocabularies_are_explained(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(path, "character")


@pytest.mark.parametrize("word", ["", "two words", " a", "a\u00a0b"])
def test_a_word_with_white_space_is_refused(word: str) -> None:
    with pytest.raises(TokenizerError, match="is not a word"):
        WordTokenizer([*SPECIAL_TOKENS, word])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"byte_fallback": False}, "without byte fallback"),
        ({"pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2}, "have the ids .-1, 1, 2, 0."),
    ],
)
def test_a_sentencepiece_model_of_another_make_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        "pad_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 3,
        "byte_fallback": True,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_prefix=str(tmp_path / "other"),
        vocab_size=VOCABULARY_SIZE,
        hard_vocab_limit=False,
        minloglevel=3,
        **(arguments | options),
    )
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path / "other.model", "sentencepiece")


def test_a_tokenizer_prepares_what_it_reads_and_keeps_that_in_its_file(tmp_path: Path) -> None:
    words = WordTokenizer.train(["Go.", "I lost."], preparation="book_sentence")
    letters = CharacterTokenizer.train("The Time", preparation="book_characters")
    for tokenizer in (words, letters):
        tokenizer.save(tmp_path / "tokenizer.json")
        again = load_tokenizer(tmp_path / "tokenizer.json", tokenizer.kind)
        for text in ("I go.", "THE\u202ftime!"):
            assert again.encode(text) == tokenizer.encode(text)
    assert words.decode(words.encode("I go.")) == "i go ."
    assert words.unknown("I go.") == []
    assert letters.decode(letters.encode("THE 3 MITE")) == "the mite"
    assert letters.unknown("The mite?!") == []


def test_an_unknown_preparation_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    WordTokenizer.train(["a"]).save(file)
    file.write_text(file.read_text().replace('"none"', '"upper"'))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: .*'preparation' is 'upper'"):
        load_tokenizer(file, "word")


def test_a_table_with_a_lone_surrogate_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    WordTokenizer.train(["wort"]).save(file)
    file.write_text(file.read_text().replace("wort", "\\ud800"))
    with pytest.raises(TokenizerError, match="lone surrogate"):
        load_tokenizer(file, "word")


def test_a_source_is_read_with_its_end_and_a_blank_one_not_at_all() -> None:
    words = WordTokenizer.train(["the time traveller"])
    assert source_prompt(words, "the time") == [*words.encode("the time"), EOS_ID]
    assert source_prompt(words, "") == source_prompt(words, " \n\u00a0") == []


def test_a_continuation_is_the_text_behind_what_was_there() -> None:
    words = WordTokenizer.train(["the time traveller"])
    the, *rest = words.encode("the time traveller")
    assert continuation(words, [BOS_ID, the], rest) == " time traveller"
    assert continuation(words, [BOS_ID], [the, *rest]) == "the time traveller"
    assert continuation(words, [BOS_ID, the], []) == ""
    letters = CharacterTokenizer.train("the time")
    assert continuation(letters, letters.encode("the"), letters.encode(" time")) == " time"
    corpus = ["the time traveller and the medical man", "the man came late"] * 20
    pieces = SentencePieceTokenizer.train(corpus, 275, add_dummy_prefix=False)
    for text in ("the time", "the", "é 3"):
        whole = pieces.encode(text + " and the man")
        for cut in range(1, len(whole)):
            before, behind = whole[:cut], whole[cut:]
            if "\ufffd" not in pieces.decode(before):
                assert pieces.decode(before) + continuation(pieces, before, behind) == (
                    text + " and the man"
                )
