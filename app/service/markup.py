"""Tags and emoji within a sentence: which of them have to go through its translation.

:mod:`app.service.projection` finds where they belong in it.
"""

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

from app.service.protection import CLOSING_STAND_INS, OPENING_STAND_INS, Span

_TAG = re.compile(r"<(?P<closing>/?)[A-Za-z][^<>]*(?<!/)>")
_MAX_MARKS = 64
"""A sentence with more is none."""


class MarkKind(enum.Enum):
    """What a mark does."""

    OPENING = "opening"
    CLOSING = "closing"
    POINT = "point"
    """An emoji, or a tag without content."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A tag or an emoji of a sentence.

    Attributes:
        text: as it is written.
        kind: what it does.
        begin: its first character in the sentence.
        end: the character behind its last.
        place: characters of the sentence in front of it, without marks and white space.
        space_before: whether white space stands in front of it.
        space_behind: whether white space stands behind it.
    """

    text: str
    kind: MarkKind
    begin: int
    end: int
    place: int
    space_before: bool
    space_behind: bool


def mark_of(sentence: str, begin: int, end: int, place: int) -> Mark:
    """A part of a sentence as a mark: see :class:`Mark`."""
    text = sentence[begin:end]
    tag = _TAG.fullmatch(text)
    kind = MarkKind.POINT
    if ord(text[0]) in OPENING_STAND_INS or (tag is not None and not tag["closing"]):
        kind = MarkKind.OPENING
    elif ord(text[0]) in CLOSING_STAND_INS or tag is not None:
        kind = MarkKind.CLOSING
    before, behind = sentence[max(0, begin - 1) : begin], sentence[end : end + 1]
    return Mark(text, kind, begin, end, place, before.isspace(), behind.isspace())


@dataclass(slots=True)
class Element:
    """Marks that belong together: those around an element, or one that stands alone.

    Attributes:
        marks: an opening and a closing one, or one.
        children: the elements inside, in order.
        begin: the unit of the translation that it stands in front of, once it is placed.
        end: the unit behind its last one; the same where it has none.
    """

    marks: tuple[Mark, ...]
    children: "list[Element]" = field(default_factory=list)
    begin: int = 0
    end: int = 0

    @property
    def place(self) -> int:
        """Where it begins in the source."""
        return self.marks[0].place

    @property
    def end_place(self) -> int:
        """Where it ends in the source."""
        return self.marks[-1].place

    @property
    def has_content(self) -> bool:
        """Whether there is something of the sentence inside."""
        return self.place < self.end_place

    def merged(self) -> Mark:
        """All its marks as one that stands alone: an element without content is such a one."""
        first, last = self.marks[0], self.marks[-1]
        inside = "".join(child.merged().text for child in self.children)
        return replace(
            first,
            text=first.text + inside + last.text if len(self.marks) > 1 else first.text,
            kind=MarkKind.POINT,
            end=last.end,
            space_behind=last.space_behind,
        )


def elements_of(marks: Sequence[Mark]) -> list[Element]:
    """Marks as a forest. An opening mark that is not closed, or the reverse, stands alone."""
    open_: list[tuple[Mark, list[Element]]] = []
    level: list[Element] = []
    for mark in marks:
        if mark.kind is MarkKind.OPENING:
            open_.append((mark, level))
            level = []
        elif mark.kind is MarkKind.CLOSING and open_:
            opening, outer = open_.pop()
            element = Element((opening, mark), level)
            outer.append(element if element.has_content else Element((element.merged(),)))
            level = outer
        else:
            level.append(_alone(mark))
    for opening, outer in reversed(open_):
        level = [*outer, _alone(opening), *level]
    return level


def _alone(mark: Mark) -> Element:
    return Element((replace(mark, kind=MarkKind.POINT),))


def inner_range(sentence: str, spans: Sequence[Span]) -> tuple[int, int] | None:
    """The part of a sentence whose marks have to go through its translation.

    Args:
        sentence: with its marks.
        spans: the marks in it, in order.

    Returns:
        Its begin and end; None where all marks stand around the sentence, and where there is
        nothing but elements beside each other: each of them is a text of its own, as in a menu.
    """
    if len(spans) > _MAX_MARKS:
        return None
    marks, visible, at = [], "", 0
    for span in spans:
        visible += "".join(sentence[at : span.begin].split())
        marks.append(mark_of(sentence, span.begin, span.end, len(visible)))
        at = span.end
    visible += "".join(sentence[at:].split())
    inner = _inner(elements_of(marks), len(visible))
    pairs = [element for element in inner if element.has_content]
    is_outside = [True] * len(visible)
    for element in pairs:
        count = element.end_place - element.place
        is_outside[element.place : element.end_place] = [False] * count
    has_text_between = any(map(str.isalpha, compress(visible, is_outside)))
    if not inner or (len(pairs) > 1 and not has_text_between):
        return None
    hidden = {place for span in spans for place in range(span.begin, span.end)}
    words = [p for p, c in enumerate(sentence) if p not in hidden and not c.isspace()]
    begin = min(words[0], *(element.marks[0].begin for element in inner))
    return begin, max(words[-1] + 1, *(element.marks[-1].end for element in inner))


def _inner(elements: Sequence[Element], length: int) -> list[Element]:
    """The elements that do not stand around a whole sentence."""
    found = []
    for element in elements:
        if (element.place, element.end_place) == (0, length):
            found += _inner(element.children, length)
        elif element.has_content or 0 < element.place < length:
            found.append(element)
    return found
