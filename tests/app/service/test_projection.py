"""Tags and emoji in a translation: all of them, nested as they were, and at the right words."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.service.markup import Mark
from app.service.projection import (
    edited,
    looks_by_attention,
    looks_by_length,
    put_back,
    units_of,
)
from app.service.protection import Protection
from app.service.translation_result import Alignment
from tests.app.service.test_markup import marks_of

TAG = re.compile(r"</?\w+>|😀")


def taken_out(sentence: str) -> tuple[str, list[Mark]]:
    return " ".join(TAG.sub("", sentence).split()), marks_of(sentence)


def aligned(source: str, target: str, pairs: dict[str, str]) -> Alignment:
    """Every word of the target looks at the word of the source that is given, as SentencePiece
    would show it: with ``<eos>``, and the space in front of each word."""
    sources, targets = source.split(), target.split()
    weights = [
        tuple(1.0 if other == pairs.get(word, word) else 0.0 for other in [*sources, "<eos>"])
        for word in [*targets, "<eos>"]
    ]
    source_tokens, target_tokens = (
        (*(f"▁{word}" for word in words), "<eos>") for words in (sources, targets)
    )
    return Alignment(source_tokens, target_tokens, tuple(weights))


def projected(sentence: str, translation: str, pairs: dict[str, str]) -> str:
    source, marks = taken_out(sentence)
    edits = put_back(marks, source, translation, aligned(source, translation, pairs))
    return edited(translation, edits)


BLACK_CAT = {"Elle": "She", "a": "has", "un": "a", "chat": "cat", "noir": "black"}


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("She has a <b>black</b> cat", "Elle a un chat <b>noir</b>"),
        ("She has a <b>black</b> <i>cat</i>", "Elle a un <i>chat</i> <b>noir</b>"),
        ("She has a <b>black <i>cat</i></b>", "Elle a un <b><i>chat</i> noir</b>"),
        ("She <b>has</b> a black cat", "Elle <b>a</b> un chat noir"),
        ("<b>She has</b> a black cat", "<b>Elle a</b> un chat noir"),
        ("She has 😀 a black cat", "Elle a 😀 un chat noir"),
        ("She has 😀a black cat", "Elle a 😀un chat noir"),
        ("She has😀 a black cat", "Elle a😀 un chat noir"),
        ("She has a black 😀 <b>cat</b>", "Elle a un 😀 <b>chat</b> noir"),
        ("She has <b>😀</b> a black cat", "Elle a <b>😀</b> un chat noir"),
        ("She has <b>a 😀</b> black cat", "Elle a <b>un 😀</b> chat noir"),
        ("She has a <b></b>black cat", "Elle a un <b></b>chat noir"),
    ],
)
def test_marks_stand_at_the_words_that_looked_there(sentence: str, expected: str) -> None:
    assert projected(sentence, "Elle a un chat noir", BLACK_CAT) == expected


def test_punctuation_beside_a_word_is_not_in_its_element() -> None:
    source, marks = taken_out("I am <b>cold</b>.")
    alignment = Alignment(
        ("▁I", "▁am", "▁cold", ".", "<eos>"),
        ("▁J", "'", "ai", "▁froid", ".", "<eos>"),
        (
            (0.7, 0.1, 0.1, 0.0, 0.1),
            (0.5, 0.3, 0.1, 0.0, 0.1),
            (0.1, 0.7, 0.1, 0.0, 0.1),
            (0.0, 0.0, 0.9, 0.0, 0.1),
            (0.0, 0.0, 0.1, 0.5, 0.4),
            (0.0, 0.0, 0.0, 0.1, 0.9),
        ),
    )
    assert edited("J'ai froid.", put_back(marks, source, "J'ai froid.", alignment)) == (
        "J'ai <b>froid</b>."
    )


SENTENCES = st.recursive(
    st.lists(st.sampled_from(["one", "two", "three.", "😀", "x"]), min_size=1, max_size=4).map(
        " ".join
    ),
    lambda inner: st.tuples(inner, st.sampled_from("bia"), inner, inner).map(
        lambda parts: f"{parts[0]} <{parts[1]}>{parts[2]}</{parts[1]}> {parts[3]}"
    ),
    max_leaves=6,
)
TRANSLATIONS = st.lists(
    st.sampled_from(["un", "deux,", "l'eau", "(quatre)", "?", "{{x}}"]), max_size=7
).map(" ".join)


@given(SENTENCES, TRANSLATIONS, st.integers(0, 2**32 - 1), st.booleans())
def test_all_marks_are_there_once_nested_as_they_were_and_the_words_unchanged(
    sentence: str, translation: str, seed: int, has_attention: bool
) -> None:
    source, marks = taken_out(sentence)
    alignment = None
    if has_attention:
        shape = (len(translation.split()) + 1, len(source.split()) + 1)
        weights = np.random.default_rng(seed).dirichlet([0.2] * shape[1], shape[0])
        alignment = Alignment(
            (*source.split(), "<eos>"),
            (*translation.split(), "<eos>"),
            tuple(map(tuple, weights.tolist())),
        )
    whole = Protection().spans(translation)
    result = edited(translation, put_back(marks, source, translation, alignment, whole))
    assert sorted(TAG.findall(result)) == sorted(mark.text for mark in marks)
    assert TAG.sub("", result).split() == translation.split() or "😀" in sentence
    assert "".join(TAG.sub("", result).split()) == "".join(translation.split())
    assert result.count("{{x}}") == translation.count("{{x}}")
    stack: list[str] = []
    for tag in re.findall(r"<(/?)(\w)>", result):
        if tag[0]:
            assert stack.pop() == tag[1]
        else:
            stack.append(tag[1])
    assert stack == []


def test_looks_are_shares_that_grow_from_0_to_1() -> None:
    source, translation = "one two three", "un deux, trois"
    units = units_of(translation)
    assert [translation[unit.begin : unit.end] for unit in units] == ["un", "deux", ",", "trois"]
    by_attention = looks_by_attention(
        source, units, range(12), aligned(source, translation, {"un": "one"})
    )
    assert by_attention is not None
    # "trois" looks at nothing here: its share is 0 everywhere.
    assert by_attention[0].tolist() == [0, *[pytest.approx(n / 3) for n in (1, 2, 3)], *[1] * 8]
    by_length = looks_by_length(source, units, range(12))
    for row in by_length:
        assert row[0] == 0
        assert row[-1] == 1
        assert all(one <= other for one, other in itertools.pairwise(row))


def test_tokens_that_are_no_text_say_nothing() -> None:
    alignment = Alignment(("<eos>",), ("un", "<eos>"), ((1.0,), (1.0,)))
    assert looks_by_attention("one", units_of("un"), [0], alignment) is None


def test_units_do_not_cut_what_is_to_stay_whole() -> None:
    text = "voir {{x}} et New York."
    whole = Protection(["New York"]).spans(text)
    assert [text[unit.begin : unit.end] for unit in units_of(text, whole)] == [
        *("voir", "{{x}}", "et", "New York", ".")
    ]
