"""Preparing text as the textbook does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.preparation import (
    PREPARATIONS,
    Preparation,
    book_characters,
    book_sentence,
    normalise_spaces,
)


def test_no_break_spaces_become_plain_one_for_one() -> None:
    assert normalise_spaces("Va\u202f! Quoi\u00a0? \u00a0\u2009.") == "Va ! Quoi ?  \u2009."


def test_book_characters_are_lower_case_letters_and_single_spaces() -> None:
    text = "The Time Machine, by H. G. Wells [1898]\n\n\n\n\nI\n"
    assert book_characters(text) == "the time machine by h g wells i "
    assert book_characters("Déjà_vu") == "d j vu"


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Go.", "go ."),
        ("Va\u202f!", "va !"),
        ("Hi there, Tom!", "hi there , tom !"),
        ("Wait...", "wait . . ."),
        ("Stop .", "stop ."),
        (".", "."),
        ("Go.\tVa\u00a0!\nHi.", "go .\tva !\nhi ."),
        ("C'est; l'été: 3.5", "c'est; l'été: 3 .5"),
    ],
)
def test_book_sentences_have_spaces_before_punctuation(sentence: str, expected: str) -> None:
    assert book_sentence(sentence) == expected


def _textbook_code(text: str) -> str:
    """Go through the text as the book's own loop does."""
    text = text.replace("\u202f", " ").replace("\xa0", " ").lower()
    return "".join(
        " " + character if i > 0 and character in ",.!?" and text[i - 1] != " " else character
        for i, character in enumerate(text)
    )


@given(st.text(alphabet="aÉ ,.!?;\n\t\u202f\u00a0"))
def test_book_sentence_equals_the_textbooks_loop(text: str) -> None:
    assert book_sentence(text) == _textbook_code(text)


@pytest.mark.parametrize("name", PREPARATIONS)
@given(text=st.text())
def test_preparing_twice_changes_nothing(name: Preparation, text: str) -> None:
    once = PREPARATIONS[name](text)
    assert PREPARATIONS[name](once) == once
