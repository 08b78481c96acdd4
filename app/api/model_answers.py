"""The answers that describe the loaded models."""

from typing import Literal

from pydantic import Field

from app.api.responses import Answer
from app.catalog import Catalog, ServedModel
from models.config import LanguageModelConfig


class LanguagesAnswer(Answer):
    """Direction of a translation model."""

    source: str
    target: str


class QualityAnswer(Answer):
    """How good a model is."""

    metrics: dict[str, float]
    note: str = Field(description="How the metrics were measured.")


class DataAnswer(Answer):
    """A text that a model was trained on."""

    name: str
    origin: str


class ModelAnswer(Answer):
    """A loaded model: the answer of ``GET /models/{name}``."""

    name: str
    kind: Literal["language_model", "seq2seq"]
    tasks: list[str] = Field(
        description="generate or translate; empty for a bidirectional language model."
    )
    default_for: list[str] = Field(description="The tasks for which it is the default model.")
    languages: LanguagesAnswer | None
    vocabulary_size: int = Field(description="Number of different tokens that it can write.")
    source_vocabulary_size: int | None = Field(
        description="Number of different tokens that a translation model can read, else null."
    )
    tokenizer: str = Field(description="character, word or sentencepiece.")
    parameters: int = Field(description="Number of trained parameters.")
    precision: str
    device: str = Field(description="Where it runs: cpu or cuda:N.")
    fingerprint: str = Field(description="SHA-256 over configuration, tokenizers and weights.")
    quality: QualityAnswer
    data: list[DataAnswer] = Field(description="What it was trained on.")
    licence: str
    attribution: str | None
    created: str = Field(description="Date of the training.")
    load_seconds: float

    @classmethod
    def of(cls, model: ServedModel, catalog: Catalog) -> "ModelAnswer":
        """Describe a loaded model."""
        info, config, training = model.info, model.info.config, model.info.training
        is_language_model = isinstance(config, LanguageModelConfig)
        return cls(
            name=model.name,
            kind=config.kind,
            tasks=list(model.tasks),
            default_for=catalog.defaults_of(model.name),
            languages=None
            if model.languages is None
            else LanguagesAnswer(source=model.languages[0], target=model.languages[1]),
            vocabulary_size=model.target_tokenizer.vocabulary_size,
            source_vocabulary_size=None
            if is_language_model
            else model.source_tokenizer.vocabulary_size,
            tokenizer=model.target_tokenizer.kind,
            parameters=info.parameter_count,
            precision=model.precision,
            device=model.device,
            fingerprint=info.fingerprint,
            quality=QualityAnswer(metrics=training.metrics, note=training.metrics_note),
            data=[DataAnswer(name=data.name, origin=data.origin) for data in training.data],
            licence=training.licence,
            attribution=training.attribution,
            created=training.created,
            load_seconds=model.load_seconds,
        )


class ModelsAnswer(Answer):
    """The answer of ``GET /models``."""

    models: list[ModelAnswer] = Field(description="Sorted by name.")
