"""Texts of any length: into sentences to translate, and back with everything in between.

A sentence with spans that must not change is tried in two ways, in the same batch: as a whole,
with names in the place of addresses and placeholders, since names are what translation models
copy; and in the pieces between the spans. The whole is taken where every span came through, the
pieces, which are worse language but cannot lose anything, where one did not.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from app.engine.request import FinishReason
from app.service.limits import Limits
from app.service.protection import Protection, Span, SpanKind
from app.service.segmentation import sentence_starts
from models.decoding.params import normalised_score

_STAND_INS = ("Tom", "Mary", "Boston", "John", "Paris", "Alice")
"""Names that most models copy. One that is not copied costs nothing but quality."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One translation of a part of a text.

    Attributes:
        text: the translation.
        logprob: its log-probability.
        tokens: tokens generated.
        finish_reason: why it ended.
    """

    text: str
    logprob: float
    tokens: int
    finish_reason: FinishReason

    def score(self, length_penalty: float) -> float:
        """Its log-probability, normalised by its length; 0 where nothing was decoded."""
        return normalised_score(self.logprob, self.tokens, length_penalty) if self.tokens else 0.0


_LITERALS_PER_SOURCE = 16
"""How many sentences without any word, which need no decoding, weigh as much as one."""
_FULL_STOPS = ".!?\N{HORIZONTAL ELLIPSIS}:;\N{IDEOGRAPHIC FULL STOP}"

Translations = Callable[[int], Sequence[Candidate]]
"""The translations of a source text by its number, the best first."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A part of a text that stays as it is."""

    text: str
    sources: tuple[int, ...] = ()

    def candidates(self, translations: Translations) -> list[Candidate]:
        """Itself."""
        return [_unchanged(self.text)]


@dataclass(frozen=True, slots=True)
class Plain:
    """A part of a sentence in which nothing needs protection.

    Attributes:
        source: number of its source text.
    """

    source: int

    @property
    def sources(self) -> tuple[int, ...]:
        """Numbers of the source texts that it needs."""
        return (self.source,)

    def candidates(self, translations: Translations) -> list[Candidate]:
        """Its translations, the best first."""
        return list(translations(self.source))


@dataclass(frozen=True, slots=True)
class Piece:
    """What stands between spans of a sentence, translated without the rest of it.

    Attributes:
        source: number of its source text.
        is_open: whether no full stop ends it; models set one behind everything.
    """

    source: int
    is_open: bool

    @property
    def sources(self) -> tuple[int, ...]:
        """Numbers of the source texts that it needs."""
        return (self.source,)

    def candidates(self, translations: Translations) -> list[Candidate]:
        """Its translations, the best first, without a full stop that it did not have."""
        return [
            replace(candidate, text=candidate.text.removesuffix(".")) if self.is_open else candidate
            for candidate in translations(self.source)
        ]


@dataclass(frozen=True, slots=True)
class Guarded:
    """A part of a sentence with spans that must come through.

    Attributes:
        whole: number of the source text that is all of it.
        stand_ins: the names in it, each with the span that it stands for.
        spans: what the translation of the whole must hold, names for what they stand for.
        pieces: the same in pieces.
        protection: finds the spans of a translation.
    """

    whole: int
    stand_ins: tuple[tuple[str, str], ...]
    spans: Counter[str]
    pieces: tuple[Literal | Piece, ...]
    protection: Protection

    @property
    def sources(self) -> tuple[int, ...]:
        """Numbers of the source texts that it needs."""
        return (self.whole, *(source for piece in self.pieces for source in piece.sources))

    def candidates(self, translations: Translations) -> list[Candidate]:
        """The translations of the whole that kept every span, or else those of its pieces."""
        kept = [
            replace(candidate, text=text)
            for candidate in translations(self.whole)
            if (text := self._restored(candidate.text)) is not None
        ]
        return kept or joined([piece.candidates(translations) for piece in self.pieces])

    def _restored(self, translation: str) -> str | None:
        """A translation with the spans in the place of their names; None: one is not there."""
        places = []
        came_through = Counter(self.protection.found(translation))
        for name, span in self.stand_ins:
            found = [match.start() for match in re.finditer(rf"\b{name}\b", translation)]
            if len(found) != 1:
                return None
            places.append((found[0], name, span))
            came_through[span] += 1
        if came_through != self.spans:
            return None
        # All at once: a span may itself hold one of the names.
        parts, begin = [], 0
        for place, name, span in sorted(places):
            parts += [translation[begin:place], span]
            begin = place + len(name)
        return "".join([*parts, translation[begin:]])


Part = Literal | Plain | Piece | Guarded


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
    """

    def __init__(self, language: str, protection: Protection, limits: Limits, field: str) -> None:
        self._language = language
        self._protection = protection
        self._limits = limits
        self._field = field
        self._sentences = 0
        self.sources: list[str] = []
        self.has_guarded = False

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
            fragments = list(_fragments(text, begin, end, spans))
            worded = sum(any(map(str.isalpha, each.text)) for each in fragments if each.is_text)
            for each in fragments:
                parts += self._parts(each, is_piece=worded > 1)
        return Document(tuple(parts))

    def _parts(self, fragment: "_Fragment", *, is_piece: bool) -> list[Part]:
        """A fragment with what is around its words, where it has any."""
        text, spans = fragment.text, fragment.spans
        outside, begin = "", 0
        for span in spans:
            outside += text[begin : span.begin]
            begin = span.end
        if not fragment.is_text or not any(map(str.isalpha, outside + text[begin:])):
            return [Literal(text)]
        core = text.strip()
        before = len(text) - len(text.lstrip())
        part: Part
        if spans:
            own = [Span(s.begin - before, s.end - before, s.kind) for s in spans]
            part = self._guarded(core, own)
        else:
            part = self._piece(core) if is_piece else Plain(self._source(core))
        around = (Literal(text[:before]), part, Literal(text[before + len(core) :]))
        return [each for each in around if each != Literal("")]

    def _guarded(self, text: str, spans: Sequence[Span]) -> Guarded:
        free = iter(name for name in _STAND_INS if name not in text)
        whole, begin = "", 0
        stand_ins: list[tuple[str, str]] = []
        pieces: list[Literal | Piece] = []
        for span in spans:
            between, protected = text[begin : span.begin], text[span.begin : span.end]
            pieces += [*self._pieces(between), Literal(protected)]
            name = next(free, None) if span.kind is SpanKind.NAME else None
            if name is not None:
                stand_ins.append((name, protected))
            whole += between + (protected if name is None else name)
            begin = span.end
        pieces += self._pieces(text[begin:])
        self.has_guarded = True
        return Guarded(
            whole=self._source(whole + text[begin:]),
            stand_ins=tuple(stand_ins),
            spans=Counter(text[span.begin : span.end] for span in spans),
            pieces=tuple(pieces),
            protection=self._protection,
        )

    def _pieces(self, text: str) -> list[Literal | Piece]:
        """What stands between two spans; white space and punctuation around it stay."""
        words = [place for place, character in enumerate(text) if character.isalnum()]
        if not any(map(str.isalpha, text)):
            return [Literal(text)] if text else []
        core = text[words[0] :].rstrip()
        around = (text[: words[0]], text[words[0] + len(core) :])
        before, after = (([Literal(each)] if each else []) for each in around)
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


def joined(parts: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """Translations of a whole: number j consists of the j-th best one of every part.

    A part with fewer repeats its last one; there are as many as the part with most has.
    """
    count = max((len(candidates) for candidates in parts), default=1)
    return [
        _join([candidates[min(j, len(candidates) - 1)] for candidates in parts])
        for j in range(count)
    ]


def _join(parts: Sequence[Candidate]) -> Candidate:
    reasons = {part.finish_reason for part in parts}
    return Candidate(
        text="".join(part.text for part in parts),
        logprob=sum((part.logprob for part in parts), start=0.0),
        tokens=sum(part.tokens for part in parts),
        finish_reason=FinishReason.LENGTH if FinishReason.LENGTH in reasons else FinishReason.END,
    )


def _unchanged(text: str) -> Candidate:
    return Candidate(text, 0.0, 0, FinishReason.END)


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


def _fragments(text: str, begin: int, end: int, spans: Sequence[Span]) -> Iterator[_Fragment]:
    """What a sentence consists of."""
    own: list[Span] = []
    first = bisect_right(spans, begin, key=lambda span: span.end)
    for index in range(first, len(spans)):
        span = spans[index]
        if span.begin >= end:
            break
        if span.kind is not SpanKind.MARKUP:
            own.append(Span(span.begin - begin, span.end - begin, span.kind))
            continue
        if span.begin > begin:
            yield _Fragment(text[begin : span.begin], tuple(own), is_text=True)
        yield _Fragment(text[span.begin : span.end], (), is_text=False)
        begin, own = span.end, []
    if begin < end:
        yield _Fragment(text[begin:end], tuple(own), is_text=True)
