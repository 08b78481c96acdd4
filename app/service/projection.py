"""Where the tags and emoji of a sentence belong in its translation.

A sentence that is cut at its tags comes out badly, since each piece is translated without the
others. So it is translated without them. What stands between two tags in the translation is then
the run of words that looked, by the model's attention, at what stood between them in the source
(markup by word alignment: Zenkel et al. 2021, *Automatic Bilingual Markup Transfer*); where there
is no attention, words are taken to stand at the same share of the length. Elements stay as they
were nested, none is lost, and none comes twice.

Places in a text count its characters without white space, which tokenizers change as they like.
Shape legend: ``U`` units of a translation, ``P`` places of the source at which marks stand, ``C``
tokens of it. All arrays are float64.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.service.markup import Element, Mark, MarkKind, elements_of
from app.service.protection import Span
from app.service.translation_result import Alignment
from models.tokenizers import EOS_ID
from models.vocabulary import SPECIAL_TOKENS

Edit = tuple[int, int, str]
"""Where a part of a text begins and ends, and what takes its place."""
Looks = NDArray[np.float64]
"""``[U, P]``: how much of what a unit looked at stands in front of a place, from 0 to 1."""

_CHUNK = re.compile(r"(?P<before>[^\w\s]*)(?P<word>\w(?:\S*\w)?)?(?P<behind>[^\w\s]*)")
_EOS = SPECIAL_TOKENS[EOS_ID]
_MAJORITY = 0.5


@dataclass(frozen=True, slots=True)
class Unit:
    """A word of a translation, or the punctuation beside one: marks stand between units.

    Attributes:
        begin: its first character.
        end: the character behind its last.
        place: characters in front of it, without white space.
        end_place: characters up to its end, without white space.
    """

    begin: int
    end: int
    place: int
    end_place: int


def units_of(text: str, whole: Sequence[Span] = ()) -> list[Unit]:
    """The units of a text, in order.

    Args:
        text: any text.
        whole: spans in which nothing may stand, in order.
    """
    cuts = []
    for chunk in re.finditer(r"\S+", text):
        parts = _CHUNK.fullmatch(chunk[0])
        names = ("before", "word", "behind") if parts is not None else ()
        spans = [parts.span(name) for name in names] if parts is not None else []
        for begin, end in spans or [(0, len(chunk[0]))]:
            if begin < end:
                cuts.append((chunk.start() + begin, chunk.start() + end))
    units: list[Unit] = []
    place, inside = 0, iter(whole)
    span = next(inside, None)
    for begin, end in cuts:
        size = end - begin
        while span is not None and span.end <= begin:
            span = next(inside, None)
        if units and span is not None and span.begin < begin and span.begin < units[-1].end:
            units[-1] = replace(units[-1], end=end, end_place=place + size)
        else:
            units.append(Unit(begin, end, place, place + size))
        place += size
    return units


def looks_by_length(source: str, units: Sequence[Unit], places: Sequence[int]) -> Looks:
    """As if both texts went on at the same pace."""
    scale = _length(source) / max(1, units[-1].end_place if units else 1)
    first = np.array([unit.place * scale for unit in units])[:, None]
    last = np.array([unit.end_place * scale for unit in units])[:, None]
    looks: Looks = np.clip((np.array(places) - first) / np.maximum(last - first, 1e-9), 0, 1)
    return looks


def looks_by_attention(
    source: str, units: Sequence[Unit], places: Sequence[int], alignment: Alignment
) -> Looks | None:
    """As the model looked at the source; None where its tokens say nothing of the text."""
    columns = _places(alignment.source_tokens, _length(source))
    rows = _places(alignment.target_tokens, units[-1].end_place if units else 0)
    if not columns or not rows:
        return None
    looked = np.zeros((len(units), len(columns)))
    weights = np.array(alignment.weights)[:, [column for column, _, _ in columns]]
    index = 0
    for row, first, last in rows:
        while units[index].end_place <= first and index + 1 < len(units):
            index += 1
        for unit in range(index, len(units)):
            shared = min(last, units[unit].end_place) - max(first, units[unit].place)
            if shared <= 0:
                break
            looked[unit] += shared * weights[row]
    before = np.zeros((len(units), len(columns) + 1))
    np.cumsum(looked, axis=1, out=before[:, 1:])
    # Within a token its weight is spread evenly over its characters.
    ends = np.array([0.0, *(last for _, _, last in columns)])
    wanted = np.array(places, dtype=np.float64)
    token = np.clip(np.searchsorted(ends, wanted, side="right") - 1, 0, len(columns) - 1)
    share = np.clip((wanted - ends[token]) / (ends[token + 1] - ends[token]), 0, 1)
    looks: Looks = before[:, token] + share * looked[:, token]
    return looks / np.maximum(before[:, -1:], 1e-9)


def put_back(
    marks: Sequence[Mark],
    source: str,
    translation: str,
    alignment: Alignment | None,
    whole: Sequence[Span] = (),
) -> list[Edit]:
    """What has to be changed in a translation so that it has the marks of its source.

    Args:
        marks: of the source, in order.
        source: without the marks.
        translation: of the source.
        alignment: of the translation, where there is one.
        whole: spans of the translation in which no mark may stand.
    """
    units = units_of(translation, whole)
    places = sorted({mark.place for mark in marks})
    column_of = {place: column for column, place in enumerate(places)}
    looks = None if alignment is None else looks_by_attention(source, units, places, alignment)
    if looks is None:
        looks = looks_by_length(source, units, places)
    elements = elements_of(marks)
    _place(elements, looks, column_of, 0, len(units))
    ordered = _in_order(elements)
    edits = []
    for boundary in sorted({boundary for boundary, _ in ordered}):
        begin = units[boundary - 1].end if boundary else 0
        end = units[boundary].begin if boundary < len(units) else len(translation)
        own = [mark for place, mark in ordered if place == boundary]
        ends = (boundary == 0, boundary == len(units))
        edits.append((begin, end, _written(own, translation[begin:end], *ends)))
    return edits


def edited(text: str, edits: Sequence[Edit]) -> str:
    """A text with parts of it replaced; of those at one place the shorter one comes first."""
    parts, place = [], 0
    for begin, end, new in sorted(edits):
        parts += [text[place:begin], new]
        place = end
    return "".join([*parts, text[place:]])


def _place(
    elements: Sequence[Element], looks: Looks, column_of: Mapping[int, int], first: int, last: int
) -> None:
    """Choose the units of each element among ``first`` to ``last``, and those of its children."""
    free = np.full(last - first, True)
    blocked: set[int] = set()
    for element in elements:
        if element.has_content and free.any():
            before_begin, before_end = (
                looks[first:last, column_of[place]] for place in (element.place, element.end_place)
            )
            inside = before_end - before_begin
            begin, end = _best_run(np.where(free, inside - _MAJORITY, -np.inf).tolist())
            free[begin:end] = False
            element.begin, element.end = first + begin, first + end
            blocked |= set(range(element.begin + 1, element.end))
    allowed = [boundary for boundary in range(first, last + 1) if boundary not in blocked]
    for element in elements:
        if element.begin == element.end:
            boundary = _best_boundary(allowed, looks[first:last, column_of[element.place]], first)
            element.begin = element.end = boundary
        _place(element.children, looks, column_of, element.begin, element.end)


def _best_run(gains: Sequence[float]) -> tuple[int, int]:
    """The run with the greatest sum (Kadane); the best single one where no sum is positive."""
    best = max(range(len(gains)), key=lambda index: gains[index])
    run, highest = (best, best + 1), gains[best]
    total, begin = 0.0, 0
    for index, gain in enumerate(gains):
        if total <= 0:
            total, begin = 0.0, index
        total += gain
        if total > highest:
            run, highest = (begin, index + 1), total
    return run


def _best_boundary(allowed: Sequence[int], before: NDArray[np.float64], first: int) -> int:
    """The boundary that the fewest looks cross.

    Args:
        allowed: boundaries to choose among.
        before: of each unit from ``first`` on, how much of what it looked at stands in front of
            the place in the source.
        first: unit.
    """
    behind_from = np.concatenate([[0.0], np.cumsum(1 - before)])
    before_from = np.concatenate([[0.0], np.cumsum(before)])
    costs = np.round(behind_from + before_from[-1] - before_from, 9).tolist()
    return min(allowed, key=lambda boundary: costs[boundary - first])


def _in_order(elements: Sequence[Element]) -> list[tuple[int, Mark]]:
    """All marks in the order in which they are written, each with the unit behind it."""
    found = []
    for element in sorted(elements, key=lambda each: (each.begin, each.end)):
        found.append((element.begin, element.marks[0]))
        found += _in_order(element.children)
        if len(element.marks) > 1:
            found.append((element.end, element.marks[1]))
    return found


def _written(marks: Sequence[Mark], gap: str, is_first: bool, is_last: bool) -> str:
    """Marks with the white space between them and the units around.

    Closing ones stand behind a unit, opening ones in front of one, and points as they stood.

    Args:
        marks: in order, all at one boundary.
        gap: what is between the units at the moment.
        is_first: whether no unit is in front of them.
        is_last: whether none is behind them.
    """
    text, needs_gap = "", bool(gap)
    for index, mark in enumerate(marks):
        more_follow = index < len(marks) - 1
        if mark.kind is MarkKind.CLOSING:
            text += mark.text
            needs_gap = bool(gap) and not is_last
            continue
        if needs_gap and (mark.kind is MarkKind.OPENING or mark.space_before):
            text += gap
            needs_gap = False
        elif mark.kind is MarkKind.POINT and mark.space_before and not (is_first and not text):
            text += "" if text.endswith(" ") else " "
        text += mark.text
        if mark.kind is MarkKind.POINT and mark.space_behind and not needs_gap:
            # In front of a full stop, say, there was no space, and there is none.
            needs_gap = more_follow or (not is_last and (is_first or bool(gap)))
            gap = gap or " "
    return text + (gap if needs_gap else "")


def _length(text: str) -> int:
    return sum(not character.isspace() for character in text)


def _places(tokens: Sequence[str], length: int) -> list[tuple[int, float, float]]:
    """Tokens that are text, each with where it begins and ends in a text of a length."""
    sizes = [
        0 if token == _EOS else _length(token.replace("\N{LOWER ONE EIGHTH BLOCK}", ""))
        for token in tokens
    ]
    scale = length / max(1, sum(sizes))
    found, place = [], 0
    for index, size in enumerate(sizes):
        if size and scale:
            found.append((index, place * scale, (place + size) * scale))
        place += size
    return found
