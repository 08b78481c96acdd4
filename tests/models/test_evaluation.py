"""Perplexity and the textbook BLEU, against values worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation import perplexity, textbook_bleu

sentences = st.lists(st.sampled_from("abc"), max_size=8)


def test_a_uniform_model_is_as_perplexed_as_it_has_choices() -> None:
    assert perplexity(10 * math.log(28), 10) == pytest.approx(28)


def test_a_certain_model_has_perplexity_one() -> None:
    assert perplexity(0.0, 5) == 1.0


def test_perplexity_overflows_to_infinity() -> None:
    assert perplexity(1e6, 1) == math.inf
    assert perplexity(math.inf, 1) == math.inf


@pytest.mark.parametrize("tokens", [0, -1])
def test_perplexity_of_nothing_is_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        perplexity(1.0, tokens)


@pytest.mark.parametrize(
    ("prediction", "label", "k", "expected"),
    [
        # Section 10.7.6: label A B C D E F, prediction A B B C D: p1 = 4/5, p2 = 3/4,
        # p3 = 1/3, p4 = 0; one token short, so the brevity factor is exp(1 - 6/5).
        ("A B B C D", "A B C D E F", 1, math.exp(-1 / 5) * (4 / 5) ** 0.5),
        ("A B B C D", "A B C D E F", 2, math.exp(-1 / 5) * (4 / 5) ** 0.5 * (3 / 4) ** 0.25),
        (
            "A B B C D",
            "A B C D E F",
            3,
            math.exp(-1 / 5) * (4 / 5) ** 0.5 * (3 / 4) ** 0.25 * (1 / 3) ** 0.125,
        ),
        ("A B B C D", "A B C D E F", 4, 0.0),
        # The same section: a label of 6 and a prediction of 2 gives exp(1 - 6/2) = 0.14.
        ("A B", "A B C D E F", 2, math.exp(-2)),
        # Clipping: the label has one A, so of three only one matches.
        ("A A A", "A", 1, (1 / 3) ** 0.5),
        ("A A A", "A A", 2, (2 / 3) ** 0.5 * (1 / 2) ** 0.25),
        # A prediction longer than the label has no brevity factor.
        ("A B C", "A B", 2, (2 / 3) ** 0.5 * (1 / 2) ** 0.25),
        # No token in common.
        ("X Y", "A B", 2, 0.0),
        # The right words in the wrong order match no bigram.
        ("B A", "A B", 1, 1.0),
        ("B A", "A B", 2, 0.0),
        # k above the prediction's length: the product ends at the length.
        ("A", "A", 4, 1.0),
        ("A B", "A B", 9, 1.0),
        ("A", "A B", 4, math.exp(-1)),
        # Longer n-grams than the label has match nothing.
        ("A B C", "A B", 3, 0.0),
        # The cases that the book leaves open.
        ("", "A", 1, 0.0),
        ("", "", 1, 1.0),
        ("A", "", 1, 0.0),
    ],
)
def test_textbook_bleu_by_hand(prediction: str, label: str, k: int, expected: float) -> None:
    score = textbook_bleu(prediction.split(), label.split(), k)
    assert score == pytest.approx(expected, abs=1e-12)


def test_the_brevity_factor_to_the_digits_of_the_book() -> None:
    assert textbook_bleu(["A", "B"], list("ABCDEF"), 2) == pytest.approx(0.14, abs=0.005)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="at least 1 token"):
        textbook_bleu(["a"], ["a"], k)


def _textbook_code(prediction: list[str], label: list[str], k: int) -> float:
    """Count as the book's own loop does, consuming the label's n-grams one by one."""
    score = math.exp(min(0, 1 - len(label) / len(prediction)))
    for n in range(1, min(k, len(prediction)) + 1):
        left = [label[start : start + n] for start in range(len(label) - n + 1)]
        matches = 0
        for start in range(len(prediction) - n + 1):
            if prediction[start : start + n] in left:
                left.remove(prediction[start : start + n])
                matches += 1
        score *= math.pow(matches / (len(prediction) - n + 1), math.pow(0.5, n))
    return score


@given(sentences.filter(bool), sentences, st.integers(1, 6))
def test_textbook_bleu_equals_the_textbooks_loop(
    prediction: list[str], label: list[str], k: int
) -> None:
    expected = _textbook_code(prediction, label, k)
    assert textbook_bleu(prediction, label, k) == pytest.approx(expected, abs=1e-12)


@given(sentences, sentences, st.integers(1, 6))
def test_textbook_bleu_is_between_nothing_and_equal(
    prediction: list[str], label: list[str], k: int
) -> None:
    assert 0.0 <= textbook_bleu(prediction, label, k) <= 1.0
    assert textbook_bleu(label, label, k) == 1.0
