"""Holding out the end of a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.text import split_held_out


def test_the_end_is_held_out_from_a_line_border() -> None:
    text = "".join(f"line {number}\n" for number in range(100))
    train, held_out = split_held_out(text, 0.1)
    assert train.endswith("\n")
    assert held_out.startswith("line ")
    assert held_out.endswith("line 99\n")
    assert 0.09 * len(text) < len(held_out) <= 0.1 * len(text)


def test_a_cut_that_falls_on_a_border_stays_there() -> None:
    assert split_held_out("aaa\nbbb\n", 0.5) == ("aaa\n", "bbb\n")


def test_a_text_without_lines_is_cut_at_the_exact_character() -> None:
    assert split_held_out("abcdefghij", 0.3) == ("abcdefg", "hij")


def test_a_border_that_would_halve_the_held_out_part_is_not_used() -> None:
    assert split_held_out("abcdefgh\nj", 0.5) == ("abcde", "fgh\nj")


@given(st.text(alphabet="ab\n", min_size=2), st.floats(0.001, 0.999))
def test_the_two_parts_are_the_text_and_neither_is_empty(text: str, fraction: float) -> None:
    train, held_out = split_held_out(text, fraction)
    assert train + held_out == text
    assert train
    assert held_out


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_outside_the_interval_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_held_out("some text", fraction)


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_that_cannot_be_cut_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        split_held_out(text, 0.5)
