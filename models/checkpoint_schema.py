"""What the JSON files of a checkpoint folder hold; ``docs/checkpoint-format.md`` has the keys."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from models.config import ModelConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSource(_Frozen):
    """A text that a model was trained on: its name, where it came from, its SHA-256."""

    name: str
    origin: str
    sha256: str


class InitialCheckpoint(_Frozen):
    """A checkpoint whose weights and tokenizers a training run began with, or an average has."""

    name: str
    fingerprint: str
    steps: int


class ImportedWeights(_Frozen):
    """The file of another program that a model was imported from, and its SHA-256."""

    format: str
    file: str
    sha256: str


class TrainingRecord(_Frozen):
    """Contents of ``training.json``: what it takes to judge a model and to train it again."""

    name: str
    created: str
    data: list[DataSource]
    initial: InitialCheckpoint | None = None
    initial_may_know_held_out: bool = False
    """Whether it began with weights that may have been trained on what it is measured on."""
    imported: ImportedWeights | None = None
    averaged: list[InitialCheckpoint] = Field(default_factory=list)
    """The checkpoints whose weights these are the average of; the preset is that of the first."""
    licence: str
    attribution: str | None = None
    seed: int
    steps: int
    best_step: int | None = None
    """The step of the stored weights; ``steps`` is how far the run had come."""
    precision: str | None = None
    """Of the matrix products in training: ``float32`` or ``bfloat16``."""
    processes: int = 1
    arguments: list[str] = Field(default_factory=list)
    """The command line of the training, but for what does not change the weights."""
    metrics: dict[str, float] = Field(default_factory=dict)
    metrics_note: str = ""
    preset: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)


class Languages(_Frozen):
    """The direction of a translation model, as ISO 639-1 codes."""

    source: str = Field(min_length=2)
    target: str = Field(min_length=2)


class TokenizerEntry(_Frozen):
    """Kind and file of one tokenizer in ``config.json``."""

    kind: str
    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")


class CheckpointConfig(_Frozen):
    """Contents of ``config.json``.

    ``sha256`` holds the checksums of the weights and of the tokenizers' files, so that files of
    two checkpoints never pass for one.
    """

    format_version: int
    sha256: dict[str, str]
    model: ModelConfig
    languages: Languages | None = None
    tokenizers: dict[str, TokenizerEntry]
