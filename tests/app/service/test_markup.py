"""Tags and emoji of a sentence: how they belong together, and which go through its translation."""

import re

import pytest

from app.service.markup import Element, Mark, MarkKind, elements_of, inner_range, mark_of
from app.service.protection import Protection, SpanKind


def marks_of(sentence: str) -> list[Mark]:
    spans = [s for s in Protection().spans(sentence) if s.kind is SpanKind.MARKUP]
    found, visible, at = [], 0, 0
    for span in spans:
        visible += len("".join(sentence[at : span.begin].split()))
        found.append(mark_of(sentence, span.begin, span.end, visible))
        at = span.end
    return found


def shape(elements: list[Element]) -> list[object]:
    return [
        ["".join(mark.text for mark in each.marks), *shape(each.children)]
        if each.children
        else "".join(mark.text for mark in each.marks)
        for each in elements
    ]


def inner(sentence: str) -> str | None:
    spans = [s for s in Protection().spans(sentence) if s.kind is SpanKind.MARKUP]
    found = inner_range(sentence, spans)
    return None if found is None else sentence[slice(*found)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<b>", MarkKind.OPENING),
        ("<a href='x'>", MarkKind.OPENING),
        ("\U000f0000", MarkKind.OPENING),
        ("</b>", MarkKind.CLOSING),
        ("\U000f5000", MarkKind.CLOSING),
        ("<br/>", MarkKind.POINT),
        ("\U000fa000", MarkKind.POINT),
        ("😀", MarkKind.POINT),
    ],
)
def test_kinds(text: str, kind: MarkKind) -> None:
    assert mark_of(f"a {text}b", 2, 2 + len(text), 1).kind is kind


def test_elements_are_nested_as_their_tags() -> None:
    found = elements_of(marks_of("a <b>b <i>c</i> 😀</b> d <br/> <u>e</u>"))
    assert shape(found) == [["<b></b>", "<i></i>", "😀"], "<br/>", "<u></u>"]
    assert [(each.place, each.end_place) for each in found] == [(1, 3), (4, 4), (4, 5)]


def test_an_element_without_content_is_one_mark() -> None:
    assert shape(elements_of(marks_of("a <b><i> 😀</i></b> b"))) == ["<b><i>😀</i></b>"]


@pytest.mark.parametrize(
    "sentence", ["a <b>b", "a</b> b", "<i>a <b>b</i> c", "</b>a<b>", "a <br> b"]
)
def test_no_mark_of_broken_nesting_is_lost_or_comes_twice(sentence: str) -> None:
    marks = marks_of(sentence)
    found = elements_of(marks)
    texts = re.findall(r"<[^>]*>", str(shape(found)))
    assert sorted(texts) == sorted(mark.text for mark in marks)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("I am <b>cold</b>.", "I am <b>cold</b>."),
        ("<p>I am <b>cold</b>.</p> ", "I am <b>cold</b>."),
        ("<p><b>I</b> am cold.</p>", "<b>I</b> am cold."),
        ("😀 I am cold. 😀", None),
        ("<p> <b>I am cold.</b></p>", None),
        ("I am 😀 cold.", "I am 😀 cold."),
        ("<a>Home</a> | <a>About</a>", None),
        ("<p><a>Home</a> <a>About</a></p>", None),
        ("<a>Home</a> or <a>About</a>", "<a>Home</a> or <a>About</a>"),
        ("<b>a</b> b " * 33, None),
    ],
)
def test_which_part_goes_through_the_translation(sentence: str, expected: str | None) -> None:
    assert inner(sentence) == expected
