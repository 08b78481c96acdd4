"""Texts of any length: into sentences to translate, and back with everything in between.

A sentence with spans that must not change is tried in two ways, in the same batch: as a whole,
with names in the place of addresses and placeholders, since names are what translation models
copy; and in the pieces between the spans. The whole is taken where every span came through, the
pieces, which are worse language but cannot lose anything, where one did not. Tags and emoji are
taken out of the whole, and :mod:`app.service.projection` puts them back into its translation.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.service.document_parts import (
    Candidate,
    Guarded,
    Part,
    Piece,
    Plain,
    Translations,
    Verbatim,
    joined,
)
from app.service.limits import Limits
from app.service.markup import Mark, inner_range, mark_of
from app.service.protection import Protection, Span, SpanKind
from app.service.segmentation import sentence_starts

_STAND_INS = ("Tom", "Mary", "Boston", "John", "Paris", "Alice")
"""Names that most models copy. One that is not copied costs nothing but quality."""
_LITERALS_PER_SOURCE = 16
"""How many sentences without any word, which need no decoding, weigh as much as one."""
_FULL_STOPS = ".!?\N{HORIZONTAL ELLIPSIS}:;\N{IDEOGRAPHIC FULL STOP}"


@dataclass(frozen=True, slots=True)
class Document:
    """One text, taken apart: put together again, its parts are the text."""

    parts: tuple[Part, ...]

    def candidates(self, translations: Translations) -> list[Candidate]:
        """Translations of the text: number j consists of the j-th best one of every part."""
        return joined([part.candidates(translations) for part in self.parts])


class DocumentReader:
    """Takes texts apart.

    Args:
        language: of the texts.
        protection: what must not change.
        limits: of the service, held against each sentence as it is found.
        field: the field that the texts came in, for error messages.

    Attributes:
        sources: all source texts to be translated, by their numbers.
        has_guarded: whether one of them may turn out not to have kept its spans.
        aligned: numbers of those for whose translations it is needed where the model looked.
    """

    def __init__(self, language: str, protection: Protection, limits: Limits, field: str) -> None:
        self._language = language
        self._protection = protection
        self._limits = limits
        self._field = field
        self._sentences = 0
        self.sources: list[str] = []
        self.has_guarded = False
        self.aligned: set[int] = set()

    def read(self, text: str) -> Document:
        """Take one text apart.

        Raises:
            InvalidRequestError: it has too many sentences, or one is too long.
        """
        parts: list[Part] = []
        spans = self._protection.spans(text)
        for begin, end in _sentences(text, self._language, spans):
            self._sentences += 1
            self._limits.check_sentences(self._field, self._sentences // _LITERALS_PER_SOURCE)
            own = [Span(s.begin - begin, s.end - begin, s.kind) for s in _within(spans, begin, end)]
            parts += self._sentence(text[begin:end], own)
        return Document(tuple(parts))

    def _sentence(self, text: str, spans: Sequence[Span]) -> list[Part]:
        markup = [span for span in spans if span.kind is SpanKind.MARKUP]
        inner = inner_range(text, markup) if markup and _has_words(text, spans) else None
        if inner is None:
            fragments = list(_fragments(text, spans))
            worded = sum(any(map(str.isalpha, each.text)) for each in fragments if each.is_text)
            return [part for each in fragments for part in self._parts(each, worded > 1)]
        begin, end = inner
        own = [Span(s.begin - begin, s.end - begin, s.kind) for s in _within(spans, begin, end)]
        around = (Verbatim(text[:begin]), self._guarded(text[begin:end], own), Verbatim(text[end:]))
        return [each for each in around if each != Verbatim("")]

    def _parts(self, fragment: "_Fragment", is_piece: bool) -> list[Part]:
        """A fragment with what is around its words, where it has any."""
        text, spans = fragment.text, fragment.spans
        if not fragment.is_text or not _has_words(text, spans):
            return [Verbatim(text)]
        core = text.strip()
        before = len(text) - len(text.lstrip())
        part: Part
        if spans:
            own = [Span(s.begin - before, s.end - before, s.kind) for s in spans]
            part = self._guarded(core, own)
        else:
            part = self._piece(core) if is_piece else Plain(self._source(core))
        around = (Verbatim(text[:before]), part, Verbatim(text[before + len(core) :]))
        return [each for each in around if each != Verbatim("")]

    def _guarded(self, text: str, spans: Sequence[Span]) -> Guarded:
        free = iter(name for name in _STAND_INS if name not in text)
        source, begin = "", 0
        marks: list[Mark] = []
        stand_ins: list[tuple[str, str]] = []
        kept: Counter[str] = Counter()
        for span in spans:
            source = _continued(source, text[begin : span.begin])
            protected = text[span.begin : span.end]
            begin = span.end
            if span.kind is SpanKind.MARKUP:
                place = len("".join(source.split()))
                marks.append(mark_of(text, span.begin, span.end, place))
                continue
            kept[protected] += 1
            name = next(free, None) if span.kind is SpanKind.NAME else None
            if name is not None:
                stand_ins.append((name, protected))
            source += protected if name is None else name
        source = _continued(source, text[begin:])
        if marks:
            source = source.strip()
        pieces = self._all_pieces(text, spans) if kept else []
        self.has_guarded = self.has_guarded or bool(kept)
        whole = self._source(source)
        if marks:
            self.aligned.add(whole)
        return Guarded(
            text=text,
            whole=whole,
            source=source,
            marks=tuple(marks),
            stand_ins=tuple(stand_ins),
            spans=kept,
            pieces=tuple(pieces),
            protection=self._protection,
        )

    def _all_pieces(self, text: str, spans: Sequence[Span]) -> list[Verbatim | Piece]:
        """A sentence as its spans and what stands between them."""
        pieces: list[Verbatim | Piece] = []
        begin = 0
        for span in spans:
            pieces += self._pieces(text[begin : span.begin])
            pieces.append(Verbatim(text[span.begin : span.end]))
            begin = span.end
        return pieces + self._pieces(text[begin:])

    def _pieces(self, text: str) -> list[Verbatim | Piece]:
        """What stands between two spans; white space and punctuation around it stay."""
        words = [place for place, character in enumerate(text) if character.isalnum()]
        if not any(map(str.isalpha, text)):
            return [Verbatim(text)] if text else []
        core = text[words[0] :].rstrip()
        around = (text[: words[0]], text[words[0] + len(core) :])
        before, after = (([Verbatim(each)] if each else []) for each in around)
        return [*before, self._piece(core), *after]

    def _piece(self, text: str) -> Piece:
        return Piece(self._source(text), is_open=text[-1] not in _FULL_STOPS)

    def _source(self, text: str) -> int:
        self.sources.append(text)
        self._limits.check_sentences(self._field, len(self.sources))
        self._limits.check_sentence(self._field, text)
        return len(self.sources) - 1


@dataclass(frozen=True, slots=True)
class _Fragment:
    """A sentence between its markup, with the spans in it; or a piece of markup."""

    text: str
    spans: tuple[Span, ...]
    is_text: bool


def _sentences(text: str, language: str, spans: Sequence[Span]) -> Iterator[tuple[int, int]]:
    """Begin and end of each sentence; markup is not there for whoever looks for them."""
    visible = [True] * len(text)
    for span in spans:
        if span.kind is SpanKind.MARKUP:
            visible[span.begin : span.end] = [False] * (span.end - span.begin)
    places = [place for place, shown in enumerate(visible) if shown]
    if not places:
        if text:
            yield 0, len(text)
        return
    shown_text = "".join(text[place] for place in places)
    begin = 0
    for start in sentence_starts(shown_text, language, _shown(spans, visible)):
        if places[start] > begin and start > 0:
            yield begin, places[start]
            begin = places[start]
    yield begin, len(text)


def _shown(spans: Sequence[Span], visible: Sequence[bool]) -> list[Span]:
    """The spans that are no markup, by their places in the text without markup."""
    found, hidden, place = [], 0, 0
    for span in spans:
        hidden += visible[place : span.begin].count(False)
        place = span.begin
        if span.kind is not SpanKind.MARKUP:
            found.append(Span(span.begin - hidden, span.end - hidden, span.kind))
    return found


def _within(spans: Sequence[Span], begin: int, end: int) -> Sequence[Span]:
    """The spans of a part of a text."""
    first = bisect_right(spans, begin, key=lambda span: span.end)
    return spans[first : bisect_left(spans, end, key=lambda span: span.begin)]


def _has_words(text: str, spans: Sequence[Span]) -> bool:
    """Whether there is a letter outside of the spans."""
    begin = 0
    for span in spans:
        if any(map(str.isalpha, text[begin : span.begin])):
            return True
        begin = span.end
    return any(map(str.isalpha, text[begin:]))


def _continued(source: str, text: str) -> str:
    """A text that goes on behind what was taken out of it, without white space twice."""
    return source + (text.lstrip() if not source or source[-1].isspace() else text)


def _fragments(text: str, spans: Sequence[Span]) -> Iterator[_Fragment]:
    """What a sentence consists of: its markup, and what stands between."""
    own: list[Span] = []
    begin = 0
    for span in spans:
        if span.kind is not SpanKind.MARKUP:
            own.append(Span(span.begin - begin, span.end - begin, span.kind))
            continue
        if span.begin > begin:
            yield _Fragment(text[begin : span.begin], tuple(own), is_text=True)
        yield _Fragment(text[span.begin : span.end], (), is_text=False)
        begin, own = span.end, []
    if begin < len(text):
        yield _Fragment(text[begin:], tuple(own), is_text=True)
