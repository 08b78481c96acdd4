"""The body of ``POST /bleu``, and its way into the service: see :mod:`app.api.requests`."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from app.api.body import StrictBody
from app.api.fields import (
    BeamSize,
    Language,
    LengthPenalty,
    ModelName,
    References,
    Segments,
    Texts,
    TimeoutSeconds,
)
from app.api.requests import listed
from app.engine.request import DEFAULT_LENGTH_PENALTY
from app.exceptions import InvalidRequestError
from app.service.scoring import MetricName, ScoringRequest
from app.service.translation import DEFAULT_BEAM_SIZE, TranslationRequest

_ONLY_WITH_SOURCES = ("model", "source", "target", "beam_size", "length_penalty")


def _either(given: str, other: str) -> dict[str, Any]:
    """JSON schema of a body that has a list in one field, and none in another."""
    types = {given: {"type": "array"}, other: {"type": "null"}}
    return {"required": [given], "properties": types}


class BleuBody(StrictBody):
    """What to score: the body of ``POST /bleu``."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [_either("hypotheses", "sources"), _either("sources", "hypotheses")]
        }
    )

    hypotheses: Segments | None = Field(
        default=None, description="Texts to score. Give either these or sources."
    )
    sources: Texts | None = Field(
        default=None, description="Texts to translate first; their translations are scored."
    )
    references: References = Field(
        description="For each hypothesis a reference text, or a list of them.",
    )
    metrics: list[MetricName] = Field(
        default=["bleu"],
        min_length=1,
        max_length=4,
        fail_fast=True,
        description="Scores to compute.",
    )
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = Field(
        default="13a", description="sacreBLEU's tokenizer, for bleu."
    )
    lowercase: bool = Field(
        default=False,
        description="Whether bleu, chrf and textbook_bleu ignore case; ter always does.",
    )
    smooth_method: Literal["exp", "floor", "add-k", "none"] = Field(
        default="exp", description="sacreBLEU's smoothing, for bleu."
    )
    sentence_level: bool = Field(
        default=False, description="Whether to also score each hypothesis separately."
    )
    textbook_max_order: int = Field(
        default=4,
        ge=1,
        le=16,
        description="Longest n-gram of textbook_bleu (k in Dive into Deep Learning).",
    )
    model: ModelName | None = Field(
        default=None, description="With sources: the translation model; null as in /translate."
    )
    source: Language | None = Field(default=None, description="With sources: their language.")
    target: Language | None = Field(
        default=None, description="With sources: the language of the references."
    )
    beam_size: BeamSize = Field(
        default=DEFAULT_BEAM_SIZE, description="With sources: width of the beam search."
    )
    length_penalty: LengthPenalty = Field(
        default=DEFAULT_LENGTH_PENALTY,
        description="With sources: how hypotheses are ranked, as in /translate.",
    )
    timeout_seconds: TimeoutSeconds | None = Field(
        default=None,
        description="Time for the whole answer, translating included; null: the service's limit.",
    )

    def to_translation(self) -> TranslationRequest | None:
        """The translation that comes first, or None.

        Raises:
            InvalidRequestError: two fields contradict each other.
        """
        if (self.hypotheses is None) == (self.sources is None):
            raise InvalidRequestError("hypotheses", "give either hypotheses or sources")
        if self.sources is None:
            for name in _ONLY_WITH_SOURCES:
                if name in self.model_fields_set:
                    raise InvalidRequestError(name, f"{name} is only for sources")
            return None
        return TranslationRequest(
            texts=tuple(self.sources),
            model=self.model,
            source=self.source,
            target=self.target,
            beam_size=self.beam_size,
            length_penalty=self.length_penalty,
            field="sources",
        )

    def to_scoring(self) -> ScoringRequest:
        """What to score; with sources, their translations are still to come.

        Raises:
            InvalidRequestError: two fields contradict each other.
        """
        given, texts = "hypotheses", self.hypotheses or []
        if self.sources is not None:
            given, texts = "sources", self.sources
        if len(self.references) != len(texts):
            raise InvalidRequestError(
                "references",
                f"references has {len(self.references)} entries and {given} {len(texts)}: "
                "there must be one for each",
            )
        return ScoringRequest(
            hypotheses=tuple(self.hypotheses or ()),
            references=tuple(listed(entry) for entry in self.references),
            metrics=tuple(dict.fromkeys(self.metrics)),
            tokenize=self.tokenize,
            lowercase=self.lowercase,
            smooth_method=self.smooth_method,
            sentence_level=self.sentence_level,
            textbook_max_order=self.textbook_max_order,
            timeout_seconds=self.timeout_seconds,
        )
