"""What a translation gives: hypotheses with their alignments, pieces of streams, results."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from app.engine.request import FinishReason
from app.service.decoding import Timings, Usage


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which source tokens the model looked at while it wrote.

    Attributes:
        source_tokens: with ``<eos>``.
        target_tokens: with ``<eos>`` where it was generated.
        weights: for each target token, one weight per source token; each row sums to 1.
    """

    source_tokens: tuple[str, ...]
    target_tokens: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class TracedCandidate:
    """A candidate that a search kept: see :class:`models.decoding.params.KeptCandidate`."""

    parent: int | None
    token: str
    logprob: float
    score: float
    finish_reason: FinishReason | None


TracedSearch: TypeAlias = tuple[tuple[TracedCandidate, ...], ...]
"""How a search went: for each step the candidates that it kept, best first."""


@dataclass(frozen=True, slots=True)
class TranslationHypothesis:
    """One translation of one text.

    Attributes:
        text: the translation.
        score: log-probability divided by ``tokens ** length_penalty``.
        tokens: tokens generated, ``<eos>`` included.
        finish_reason: why it ended.
        alignment: where asked for.
    """

    text: str
    score: float
    tokens: int
    finish_reason: FinishReason
    alignment: Alignment | None


@dataclass(frozen=True, slots=True)
class TranslationResult:
    """The hypotheses of each text, best first, at least one each.

    ``beam_traces`` has an entry for each text where they were asked for, else none.
    """

    model: str
    source: str
    target: str
    translations: tuple[tuple[TranslationHypothesis, ...], ...]
    usage: Usage
    timings: Timings
    beam_traces: tuple[TracedSearch, ...] = ()


@dataclass(frozen=True, slots=True)
class TranslatedPiece:
    """The next piece of a streamed translation: what it adds to the text, never nothing."""

    text_index: int
    text: str


@dataclass(frozen=True, slots=True)
class FinishedTranslation:
    """A streamed translation that is complete."""

    text_index: int
    translation: TranslationHypothesis


TranslationEvent = TranslatedPiece | FinishedTranslation | TranslationResult
"""What a stream consists of: pieces of texts, each text when it is complete, and last of all
the whole result."""


class _HasText(Protocol):
    @property
    def text(self) -> str: ...


Reading = TypeVar("Reading", bound=_HasText)


def best_distinct(candidates: Iterable[Reading], count: int) -> tuple[Reading, ...]:
    """So many at most, of those that read the same the first.

    Args:
        candidates: the best first.
        count: how many are wanted.
    """
    by_text: dict[str, Reading] = {}
    for candidate in candidates:
        by_text.setdefault(candidate.text, candidate)
    return tuple(by_text.values())[:count]
