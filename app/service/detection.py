"""Which language a text is in, among those that the served models read or write."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier  # type: ignore[import-untyped]  # no types

MAX_CHARACTERS_READ = 2_000
"""More of a text than that says nothing new."""
_SHOWN_DIGITS = 3
"""Confidences are shown in percent with one digit behind the point: what nobody can see decides
nothing."""


@dataclass(frozen=True, slots=True)
class DetectedLanguage:
    """A language that a text may be in.

    Attributes:
        language: its code.
        confidence: its probability among the languages that are considered.
    """

    language: str
    confidence: float

    def is_as_likely_as(self, other: "DetectedLanguage") -> bool:
        """Whether the two confidences are the same as they are shown."""
        return self._shown == other._shown

    @property
    def _shown(self) -> float:
        return round(self.confidence, _SHOWN_DIGITS)


class LanguageDetector:
    """Detects the language of texts, with py3langid (naive Bayes over byte n-grams).

    Args:
        languages: codes of those to choose among; those that py3langid does not know are left
            out, and never detected. Of several that are as likely the earlier one comes first: a
            word or two may say nothing, and the detector's own order is by chance.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        self.languages = tuple(dict.fromkeys(languages))

    async def detect(self, text: str) -> list[DetectedLanguage]:
        """The languages that a text may be in, the likeliest first.

        The first call takes a second, in which the detector's model is loaded.

        Args:
            text: of any length; its beginning is looked at.
        """
        identifier = await asyncio.to_thread(lambda: self._identifier)
        if identifier is None:
            return []
        confidences = dict(identifier.rank(text[:MAX_CHARACTERS_READ]))
        found = [
            DetectedLanguage(language, confidences[language])
            for language in self.languages
            if language in confidences
        ]
        return sorted(found, key=lambda each: -each._shown)

    @cached_property
    def _identifier(self) -> "LanguageIdentifier | None":
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        known = [language for language in self.languages if language in identifier.labels]
        if not known:
            return None
        identifier.set_languages(known)
        return identifier
