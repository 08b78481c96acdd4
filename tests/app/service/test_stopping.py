"""Stop strings are found wherever pieces begin and end."""

import itertools
import time

from hypothesis import given
from hypothesis import strategies as st

from app.service.stopping import StopFinder

LETTERS = "ab"


def cut(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    """What is shown after each piece, and whether a stop string was found."""
    finder, shown = StopFinder(stops), []
    for position, piece in enumerate(pieces):
        text, found = finder.add(piece, last=position == len(pieces) - 1)
        shown.append(text)
        if found:
            return shown, True
    return shown, False


def cut_plainly(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """The same by looking at all the text after every piece."""
    for text in itertools.accumulate(pieces):
        begins = [text.find(stop) for stop in stops if stop in text]
        if begins:
            return text[: min(begins)], True
    return "".join(pieces), False


@given(
    pieces=st.lists(st.text(LETTERS, max_size=5), max_size=12),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=6), max_size=4),
)
def test_pieces_are_cut_as_the_whole_text_is(pieces: list[str], stops: list[str]) -> None:
    shown, found = cut(pieces, stops)
    assert ("".join(shown), found) == cut_plainly(pieces, stops)


@given(
    pieces=st.lists(st.text(LETTERS, max_size=5), min_size=1, max_size=12),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=6), max_size=4),
)
def test_nothing_is_held_back_without_need(pieces: list[str], stops: list[str]) -> None:
    shown, found = cut([*pieces, "~"], stops)
    for count, (text, piece) in enumerate(
        zip(itertools.accumulate(shown[:-1]), itertools.accumulate(pieces), strict=False), start=1
    ):
        if found and count >= len(shown):
            break
        held = piece[len(text) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_examples() -> None:
    assert cut(["a", "b", "c", "d"], ["bcx", "cd"]) == (["a", "", "", "b"], True)
    assert cut(["ab", "a"], ["aba"]) == (["", ""], True)
    assert cut(["ab", "b"], ["aba"]) == (["", "abb"], False)
    assert cut(["stop", "p"], ["stopper"]) == (["", "stopp"], False)
    assert cut(["abcd"], ["c", "bcd"]) == (["a"], True)


def test_time_grows_with_the_text_whatever_the_stop_strings() -> None:
    stops = ["a" * 199 + chr(ord("b") + i) for i in range(16)]
    started_at = time.process_time()
    shown, found = cut(["a"] * 5_000, stops)
    # Comparing each string with each place would take some 16 million comparisons.
    assert time.process_time() - started_at < 1
    assert ("".join(shown), found) == ("a" * 5_000, False)


@given(
    pieces=st.lists(st.text(LETTERS, max_size=5), max_size=12),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=6), max_size=4),
)
def test_what_is_not_shown_is_a_stop_string_and_the_rest(
    pieces: list[str], stops: list[str]
) -> None:
    finder, shown, text = StopFinder(stops), "", ""
    for piece in pieces:
        text += piece
        more, found = finder.add(piece, last=False)
        shown += more
        if found:
            middle = text[len(shown) : len(text) - len(finder.rest)]
            assert text == shown + middle + finder.rest
            assert middle in stops
            return
    assert shown + finder.rest == text


@given(
    pieces=st.lists(st.text(LETTERS, max_size=5), max_size=12),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=6), max_size=4),
    place=st.integers(0, 11),
)
def test_a_search_may_go_on_elsewhere(pieces: list[str], stops: list[str], place: int) -> None:
    """What was held back is all that another one needs to know."""
    whole, found_whole = cut([*pieces, ""], stops)
    finder, shown = StopFinder(stops), []
    for position, piece in enumerate([*pieces, ""]):
        if position == place:
            finder, piece = StopFinder(stops), finder.rest + piece  # noqa: PLW2901
        text, found = finder.add(piece, last=position == len(pieces))
        shown.append(text)
        if found:
            break
    assert (shown, found) == (whole, found_whole)
