"""Texts taken apart and put together: nothing is lost, whatever a model makes of a sentence."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.request import FinishReason
from app.exceptions import InvalidRequestError
from app.service.document_parts import Candidate, Guarded, joined
from app.service.documents import Document, DocumentReader
from app.service.limits import Limits
from app.service.protection import Protection

LIMITS = Limits(
    max_texts=64,
    max_segments=1,
    max_characters=200,
    max_new_tokens=50,
    default_max_new_tokens=40,
    max_alignment_cells=100,
    max_decodings=100_000,
    timeout_seconds=10,
)
PARTS = [
    "I am cold. ",
    "He is {{name}}.",
    "\n\n",
    " <b>",
    "</b>",
    "see https://example.org/x?y=1 now",
    "I have 3 cats and 12 dogs! ",
    "😀",
    "me@example.org",
    " ",
    "Tom",
    "...",
    "%s",
    "\U000f0000",
    "\U00100000",
    "Gatehouse",
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


def read(text: str, *own: str, limits: Limits = LIMITS) -> tuple[Document, list[str]]:
    reader = DocumentReader("en", Protection(own), limits, "text")
    return reader.read(text), reader.sources


def translated(text: str, model: Callable[[str], str], *own: str) -> str:
    document, sources = read(text, *own)
    found = [[Candidate(model(source), -1.0, 2, FinishReason.END)] for source in sources]
    return document.candidates(found.__getitem__)[0].text


@given(TEXTS | st.text(max_size=200), st.sampled_from([(), ("Gatehouse",), ("cold. He",)]))
def test_a_model_that_copies_changes_nothing(text: str, own: tuple[str, ...]) -> None:
    assert translated(text, str, *own) == text


@given(
    TEXTS,
    st.sampled_from(
        [
            lambda source: "",
            lambda source: "mot",
            lambda source: source.replace("Tom", "Thomas"),
            lambda source: source[::-1],
            lambda source: f"{source} {source}",
            lambda source: source.replace("3", "trois"),
            lambda source: source.swapcase(),
        ]
    ),
)
def test_what_is_protected_comes_through_whatever_a_model_does(
    text: str, model: Callable[[str], str]
) -> None:
    result = translated(text, model, "Gatehouse")
    spans = Protection(("Gatehouse",)).found(text)
    for span in spans:
        assert result.count(span) >= spans.count(span), span


@given(TEXTS)
def test_white_space_around_sentences_and_line_breaks_come_through(text: str) -> None:
    result = translated(text, lambda source: "mot")
    assert result.count("\n") == text.count("\n")
    assert result[: len(result) - len(result.lstrip())] == text[: len(text) - len(text.lstrip())]
    assert not any(source != source.strip() or "\n" in source for source in read(text)[1])


def test_a_single_sentence_is_given_to_the_model_as_it_is() -> None:
    for text in ("I am cold.", "Is Dr. Smith here?", "go"):
        assert read(text)[1] == [text]


def test_names_stand_in_for_what_a_model_would_not_copy() -> None:
    _, sources = read("Tom wrote {{who}} at me@example.org in 2026.")
    assert sources[-1] == "Tom wrote Mary at Boston in 2026."

    def model(source: str) -> str:
        return source.replace("wrote Mary at Boston", "a écrit à Boston et Mary")

    text = "Tom wrote {{who}} at me@example.org in 2026."
    expected = "Tom a écrit à me@example.org et {{who}} in 2026."
    assert translated(text, model) == expected


def test_a_name_that_is_part_of_a_word_is_not_the_name() -> None:
    text = "I like {{x}} a lot."
    result = translated(text, lambda source: source.replace("Tom", "Tomate"))
    assert "{{x}}ate" not in result
    assert "{{x}}" in result


def test_another_hypothesis_that_kept_the_spans_wins() -> None:
    document, sources = read("I have 3 cats.")
    [guarded] = document.parts
    assert isinstance(guarded, Guarded)
    found = {source: [Candidate("mot", -9.0, 1, FinishReason.END)] for source in guarded.sources}
    found[guarded.whole] = [
        Candidate("J'ai trois chats.", -1.0, 5, FinishReason.END),
        Candidate("J'ai 3 chats.", -2.0, 4, FinishReason.LENGTH),
    ]
    assert document.candidates(found.__getitem__) == [found[guarded.whole][1]]
    assert sources[guarded.whole] == "I have 3 cats."


def test_a_piece_gets_no_full_stop_that_it_had_not() -> None:
    assert translated("I am <b>cold</b>. ", lambda source: f"{source.rstrip('.')}.") == (
        "I am <b>cold</b>. "
    )


def test_a_sentence_is_translated_without_its_tags_and_gets_them_back() -> None:
    text = "<p>I am <b>very cold</b> 😀 today.</p>  I have 3 <i>black</i> cats."
    document, sources = read(text)
    first, second = map(sources.index, ("I am very cold today.", "I have 3 black cats."))
    found = {index: [Candidate("mot", -1.0, 1, FinishReason.END)] for index in range(len(sources))}
    found[first] = [Candidate("Il a tres froid la.", -1.0, 6, FinishReason.END)]
    found[second] = [Candidate("J'ai 3 chats noirs.", -1.0, 6, FinishReason.END)]
    assert document.candidates(found.__getitem__)[0].text == (
        "<p>Il a <b>tres froid</b> 😀 la.</p>  J'ai 3 <i>chats</i> noirs."
    )
    found[second] = [Candidate("J'ai trois chats noirs.", -1.0, 6, FinishReason.END)]
    assert document.candidates(found.__getitem__)[0].text.endswith("mot 3 <i>mot</i> mot")


def test_where_the_model_looked_is_asked_for_where_it_is_needed_alone() -> None:
    reader = DocumentReader("en", Protection(), LIMITS, "text")
    reader.read("I am cold. <p>I am cold.</p> I am <b>cold</b>. I have 3 cats.")
    assert {reader.sources[index] for index in reader.aligned} == {"I am cold."}
    assert len(reader.aligned) == 1


def test_sentences_end_behind_the_markup_around_them() -> None:
    _, sources = read("<p>I am cold.</p> <p>He is happy.</p>")
    assert sources == ["I am cold.", "He is happy."]


def test_what_has_no_word_is_not_translated() -> None:
    for text in ("", "  \n", "42", "😀 ...", "{{x}} - {{y}}", "<br/>"):
        assert read(text)[1] == []


@given(
    st.lists(
        st.lists(
            st.builds(
                Candidate,
                st.text(max_size=3),
                st.floats(-9, 0),
                st.integers(0, 9),
                st.sampled_from(list(FinishReason)),
            ),
            min_size=1,
            max_size=4,
        ),
        max_size=4,
    )
)
def test_number_j_is_made_of_the_jth_of_every_part(parts: list[list[Candidate]]) -> None:
    whole = joined(parts)
    assert len(whole) == max(map(len, parts), default=1)
    assert whole[0].text == "".join(part[0].text for part in parts)
    for candidate in whole:
        assert candidate.tokens <= sum(max(c.tokens for c in part) for part in parts)
        is_cut = candidate.finish_reason is FinishReason.LENGTH
        assert is_cut <= any(c.finish_reason is FinishReason.LENGTH for p in parts for c in p)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Go on. " * 9, "8 sentences"),
        ("I have 3 cats. " * 4, "8 sentences"),
        ("1. " * 200, "8 sentences"),
        ("word " * 50, "a sentence of 249 characters"),
    ],
)
def test_limits(text: str, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint) as refusal:
        read(text, limits=replace(LIMITS, max_decodings=8))
    assert refusal.value.field == "text"


def test_a_name_that_a_model_writes_twice_stands_for_nothing() -> None:
    text = "He is {{name}}."
    _, sources = read(text)
    name = max(sources, key=len).removeprefix("He is ").removesuffix(".")
    assert name != "{{name}}"
    answer = translated(text, lambda source: f"{source} {source}")
    assert answer.count("{{name}}") == 1
    assert name not in answer


def test_a_text_is_as_complete_as_all_of_its_parts() -> None:
    ended, cut = (
        Candidate("a", -1.0, 2, reason) for reason in (FinishReason.END, FinishReason.LENGTH)
    )
    for parts, reason in (((ended, ended), "end"), ((cut, ended), "length"), ((), "end")):
        (whole,) = joined([[part] for part in parts])
        assert whole.finish_reason == reason
