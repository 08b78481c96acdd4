"""What texts consist of when they are taken apart, and how each part is put together again."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from app.engine.request import FinishReason
from app.service.markup import Mark
from app.service.projection import Edit, edited, put_back
from app.service.protection import Protection
from app.service.translation_result import Alignment
from models.decoding.params import normalised_score, total_logprob


@dataclass(frozen=True, slots=True)
class Candidate:
    """One translation of a part of a text.

    Attributes:
        text: the translation.
        logprob: its log-probability.
        tokens: tokens generated.
        finish_reason: why it ended.
        alignment: where the model looked, where that is known.
    """

    text: str
    logprob: float
    tokens: int
    finish_reason: FinishReason
    alignment: Alignment | None = None

    def score(self, length_penalty: float) -> float:
        """Its log-probability, normalised by its length; 0 where nothing was decoded."""
        return normalised_score(self.logprob, self.tokens, length_penalty) if self.tokens else 0.0


Translations = Callable[[int], Sequence[Candidate]]
"""The translations of a source text by its number, the best first."""


@dataclass(frozen=True, slots=True)
class Verbatim:
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
    """A sentence with spans that must come through, or with tags and emoji between its words.

    Attributes:
        text: as it is written.
        whole: number of the source text that is all of it.
        source: that text: without tags and emoji, and with names for some spans.
        marks: the tags and emoji.
        stand_ins: the names, each with the span that it stands for.
        spans: what the translation of the whole must hold, names for what they stand for.
        pieces: the same in pieces; none where there are no spans, and so nothing can get lost.
        protection: finds the spans of a translation.
    """

    text: str
    whole: int
    source: str
    marks: tuple[Mark, ...]
    stand_ins: tuple[tuple[str, str], ...]
    spans: Counter[str]
    pieces: tuple[Verbatim | Piece, ...]
    protection: Protection

    @property
    def sources(self) -> tuple[int, ...]:
        """Numbers of the source texts that it needs."""
        return (self.whole, *(source for piece in self.pieces for source in piece.sources))

    def candidates(self, translations: Translations) -> list[Candidate]:
        """The translations of the whole that kept every span, or else those of its pieces."""
        kept = [
            replace(candidate, text=text, alignment=None)
            for candidate in translations(self.whole)
            if (text := self._restored(candidate)) is not None
        ]
        return kept or joined([piece.candidates(translations) for piece in self.pieces])

    def _restored(self, candidate: Candidate) -> str | None:
        """A translation with its spans, tags and emoji; None: a span is not there."""
        edits = self._spans_back(candidate.text) if self.pieces else []
        if edits is None or not self.marks:
            return None if edits is None else edited(candidate.text, edits)
        if candidate.text == self.source:
            return self.text  # nothing was translated: nothing changes, its white space neither
        whole = self.protection.spans(candidate.text)
        marks = put_back(self.marks, self.source, candidate.text, candidate.alignment, whole)
        return edited(candidate.text, [*edits, *marks])

    def _spans_back(self, translation: str) -> list[Edit] | None:
        """The spans in the place of their names, all at once: a span may hold one of the names."""
        edits = []
        came_through = Counter(self.protection.found(translation))
        for name, span in self.stand_ins:
            found = [match.start() for match in re.finditer(rf"\b{name}\b", translation)]
            if len(found) != 1:
                return None
            edits.append((found[0], found[0] + len(name), span))
            came_through[span] += 1
        return edits if came_through == self.spans else None


Part = Verbatim | Plain | Piece | Guarded


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
        logprob=total_logprob(part.logprob for part in parts),
        tokens=sum(part.tokens for part in parts),
        finish_reason=FinishReason.LENGTH if FinishReason.LENGTH in reasons else FinishReason.END,
    )


def _unchanged(text: str) -> Candidate:
    return Candidate(text, 0.0, 0, FinishReason.END)
