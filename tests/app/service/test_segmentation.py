"""Where sentences begin."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.service.protection import Protection
from app.service.segmentation import sentence_starts


def sentences(text: str, language: str = "en") -> list[str]:
    starts = [*sentence_starts(text, language), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(starts)]


@pytest.mark.parametrize(
    "parts",
    [
        ["I am cold. ", "He is happy."],
        ["Dr. Smith is here.  ", "Who is he? ", "Go!"],
        ["One line\n", "and another\r\n\r\n", "Next paragraph. ", "End.\n"],
        ["\n\n", "  Indented. ", "Yes."],
        ["No full stop"],
    ],
)
def test_sentences(parts: list[str]) -> None:
    assert sentences("".join(parts)) == parts


TEXTS = st.lists(
    st.sampled_from([*"aB.!?… \t\n\r\u00a0\u2028\u3000\"'()«»。1é😀\U000f0000\x00İ", "Dr.", "J."])
).map("".join)


@given(TEXTS | st.text(), st.sampled_from(["en", "fr", "de", "ja", "xx", "en-GB"]))
def test_sentences_are_the_text_and_none_is_empty(text: str, language: str) -> None:
    if text:
        parts = sentences(text, language)
        assert "".join(parts) == text
        assert all(parts)


@given(st.lists(st.sampled_from(["Go on. ", "Dr. Who? ", "See a.b", "\n"]), min_size=1))
def test_no_sentence_begins_within_a_span(parts: list[str]) -> None:
    text = "".join(parts)
    spans = Protection(["on. Dr", "b\nSee", ". G"]).spans(text)
    starts = list(sentence_starts(text, "en", spans))
    assert not any(span.begin < start < span.end for span in spans for start in starts)


def test_sentences_of_a_long_line_do_not_depend_on_windows() -> None:
    sentence = "He said that it was so, and went on to say it again and again. "
    assert sentences(sentence * 500) == [sentence] * 500
    assert sentences("word " * 5_000 + "end. Next one.")[-1] == "Next one."
    for characters in (3_999, 4_000):  # it ends where a window does
        first = ("word " * 1_000)[: characters - 1] + ". "
        assert sentences(first + "Next one. Then another.") == [
            first,
            "Next one. ",
            "Then another.",
        ]


@pytest.mark.parametrize("part", ["日本。", "1. ", ".", '"', "a. b", "!"])
def test_no_text_takes_long(part: str) -> None:
    started_at = time.process_time()
    sentences(part * 20_000, "ja")
    assert time.process_time() - started_at < 10
