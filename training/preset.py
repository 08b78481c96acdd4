"""Presets: everything that a training run depends on, in one TOML file.

The shipped ones lie in ``training/presets``; ``--set section.key=value`` changes single values.
Schedules count steps (optimizer updates), never seconds.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.config import LanguageModelConfig, Seq2SeqConfig
from models.preparation import Preparation
from training.sources import TextSource, file_name, public_origin

PRESETS_DIR = Path(__file__).parent / "presets"
BASE_PRESETS = {
    "translation": "--pairs FILE, or --source FILE --target FILE",
    "prose": "--text FILE",
}
"""Presets that a person's own text completes, with the options that give it."""
TRAINING_ONLY_FIELDS = ("dropout", "implementation", "gate_bias", "initializer")
"""Of a model's configuration: weights fit whatever these say."""
PAIRS_ONLY_KEYS = ("label_smoothing", "subword_smoothing", "consistency")
"""Of a preset's training: running text has no use for them."""
LARGEST_SEED = 2**43
"""Running text multiplies the seed by a million, and torch's generators take 64 bits."""


class PresetError(Exception):
    """A preset is unknown or says something impossible; the message names the key."""


class _Frozen(BaseModel):
    # Records are JSON, which has no infinity: clip_norm=1e9 clips nothing either.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Background(_Frozen):
    """A text that a language model reads before its own, to know the language already."""

    source: TextSource
    column: int | None = Field(default=None, ge=0)
    """Of a tab-separated text only this column (from 0), each line of it once, in random order."""
    epochs: int = Field(default=1, ge=1)
    """How often it is read; after that the model reads its own text alone."""


class TextData(_Frozen):
    """Running text for a language model."""

    kind: Literal["text"] = "text"
    source: TextSource
    preparation: Preparation = "none"
    """See :mod:`models.preparation`; the tokenizer does the same to every text it is given."""
    first_characters: int | None = Field(default=None, ge=2)
    """Use only so many characters of the prepared text."""
    held_out_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """The end of the text to measure on; 0 measures on the training text itself."""
    background: Background | None = None
    """Nothing is measured on it."""

    def texts(self) -> tuple[TextSource, ...]:
        """The texts that are read, in the order in which a run records them."""
        return (self.source, self.background.source) if self.background else (self.source,)


class ParallelData(_Frozen):
    """Sentence pairs for a translation model.

    Pairs are one text of lines ``source TAB target``, or two texts that are aligned line by
    line. The validation pairs are cut from them, or have files of their own in either form.
    """

    kind: Literal["parallel"] = "parallel"
    source: TextSource
    """The pairs, or with ``target`` their source side."""
    target: TextSource | None = None
    validation_source: TextSource | None = None
    validation_target: TextSource | None = None
    synthetic: TextSource | None = None
    """Pairs of lines ``source TAB target`` in the direction of the model, made by models: they
    are trained on, too, and nothing is measured on them. See :mod:`training.diversification`."""
    source_language: str
    target_language: str
    reverse: bool = False
    """Translate from the file's second column to its first. The cut is that of the other
    direction, with source and target exchanged."""
    preparation: Preparation = "none"
    """See :mod:`models.preparation`; the tokenizer does the same to every text it is given."""
    first_pairs: int | None = Field(default=None, ge=1)
    """Use only so many pairs of the file."""
    targets_per_source: int | None = Field(default=None, ge=1)
    """Train on so many of the translations that a source has, in the order of the data; None on
    all. Held-out sentences keep all their references, and the tokenizers read all."""
    test_share: float = Field(default=0.013, ge=0.0, lt=1.0)
    validation_share: float = Field(default=0.005, ge=0.0, lt=1.0)
    """Shares of the distinct source sentences; 0 measures on the training pairs themselves."""
    max_tokens: int = Field(default=64, ge=2)
    """Longest side of a training pair, in tokens; longer ones are left out of training
    (``truncate_to`` cuts them instead)."""
    truncate_to: int | None = Field(default=None, ge=2)
    """Cut both sides to so many tokens, as the textbook does."""
    moses_bleu: bool | None = None
    """Measure BLEU lower-cased and tokenized by Moses' rules, too: see :mod:`training.moses`."""

    @model_validator(mode="after")
    def _one_validation(self) -> "ParallelData":
        if self.validation_target and not self.validation_source:
            raise ValueError("validation_target needs validation_source")
        if self.validation_source and self.validation_share:
            raise ValueError("give either validation_source or a validation_share above 0")
        return self

    def texts(self) -> tuple[TextSource, ...]:
        """The texts that are read, in the order in which a run records them."""
        texts = (self.source, self.target, self.validation_source, self.validation_target)
        return tuple(text for text in (*texts, self.synthetic) if text)

    def without_synthetic(self) -> "ParallelData":
        """What the figures are measured on: the same sentences, cut in the same way."""
        return self.model_copy(update={"synthetic": None})


class TokenizerSettings(_Frozen):
    """How the tokenizers are trained."""

    kind: Literal["character", "word", "sentencepiece"]
    vocabulary_size: int = Field(default=8000, ge=300)
    """SentencePiece only."""
    min_frequency: int = Field(default=1, ge=1)
    """Words seen less often become ``<unk>``."""
    may_be_smaller: bool | None = None
    """SentencePiece only: a text too small for ``vocabulary_size`` gets as many as it fills."""
    normalization: Literal["identity", "nmt_nfkc"] = "identity"
    """SentencePiece only: see :class:`models.tokenizers.SentencePieceTokenizer`."""


class Optimization(_Frozen):
    """The training loop."""

    seed: int = Field(default=1, ge=0, le=LARGEST_SEED)
    steps: int = Field(ge=1)
    batch_rows: int | None = Field(default=None, ge=1)
    """Rows (sequences, sentence pairs) in a batch."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Sentence pairs only: target tokens in a batch, padding included."""
    sequence_length: int = Field(default=35, ge=1)
    """Running text only: positions between two cuts of the gradient."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    subword_smoothing: float | None = Field(default=None, gt=0)
    """Sentence pairs only: split every sentence anew in each epoch, at random, a split of
    probability P in proportion to ``P ** subword_smoothing`` (Kudo 2018)."""
    consistency: float = Field(default=0.0, ge=0)
    """Sentence pairs only: every pair goes through the model twice, with other units dropped
    out, and so much weight has what sets the two answers apart (R-Drop, Liang et al. 2021; 5,
    say). A step takes nearly twice as long. 0 is one pass."""
    average_decay: float = Field(default=0.0, ge=0, lt=1)
    """Of an exponential moving average of the weights, which is then what is validated and
    stored (0.999, say); 0 is none."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast where the processor computes it natively."""
    validate_every_steps: int = Field(default=500, ge=1)
    save_every_steps: int = Field(default=500, ge=1)
    log_every_steps: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _no_contradictions(self) -> "Optimization":
        if (self.batch_rows is None) == (self.batch_tokens is None):
            raise ValueError("give either batch_rows or batch_tokens")
        return self


class Card(_Frozen):
    """What the model card says beside the measured figures."""

    title: str
    licence: str
    attribution: str | None = None
    limits: str


class Preset(_Frozen):
    """One training run."""

    description: str
    data: TextData | ParallelData = Field(discriminator="kind")
    tokenizer: TokenizerSettings
    model: dict[str, Any]
    """Fields of the model's configuration but for its vocabulary sizes."""
    training: Optimization
    card: Card

    @model_validator(mode="after")
    def _fits_together(self) -> "Preset":
        kind = "language_model" if self.data.kind == "text" else "seq2seq"
        if self.model.get("kind") != kind:
            raise ValueError(f"{self.data.kind} data train a model of kind {kind}")
        # The tokenizer's sizes, which training will fill in.
        sizes = {"source_vocabulary_size": 300, "target_vocabulary_size": 300}
        try:
            if kind == "language_model":
                LanguageModelConfig.model_validate({**self.model, "vocabulary_size": 300})
            else:
                Seq2SeqConfig.model_validate({**self.model, **sizes})
        except ValidationError as error:
            raise ValueError(_complaint(error, "model")) from error
        self._check_preparation()
        if self.data.kind == "text" and self.training.batch_rows is None:
            raise ValueError("running text needs training.batch_rows")
        for key in PAIRS_ONLY_KEYS:
            if self.data.kind == "text" and getattr(self.training, key):
                raise ValueError(f"training.{key} is for sentence pairs only")
        return self

    def _check_preparation(self) -> None:
        """SentencePiece keeps no preparation: what its own normalisation does must cover it."""
        preparation, tokenizer = self.data.preparation, self.tokenizer
        if tokenizer.kind != "sentencepiece" or preparation == "none":
            return
        if preparation != "spaces" or tokenizer.normalization != "nmt_nfkc":
            raise ValueError(
                f"data.preparation {preparation} needs a character or word tokenizer (spaces "
                "also goes with tokenizer.normalization nmt_nfkc)"
            )


def without_synthetic(preset: Preset) -> Preset:
    """The preset with nothing but what figures are measured on, and what that was cut from."""
    if isinstance(preset.data, TextData):
        return preset
    return preset.model_copy(update={"data": preset.data.without_synthetic()})


def available_presets() -> dict[str, Path]:
    """The shipped presets by name, but for those that only a person's own text completes."""
    paths = sorted(PRESETS_DIR.glob("*.toml"))
    return {path.stem: path for path in paths if path.stem not in BASE_PRESETS}


def load_preset(
    name_or_path: str, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> tuple[str, Preset]:
    """Read a preset by its name or path.

    Args:
        name_or_path: a name among :func:`available_presets`, or a TOML file.
        overrides: ``section.key=value`` texts, the value in TOML notation or a bare string.
        changes: values by ``section.key``, which the overrides come after.

    Returns:
        The preset's name (the file's stem) and the preset.

    Raises:
        PresetError: it is unknown, or it or an override says something impossible.
    """
    if name_or_path in BASE_PRESETS:
        raise PresetError(
            f"{name_or_path} trains on your own text: leave the name out and give "
            f"{BASE_PRESETS[name_or_path]}"
        )
    known = available_presets()
    path = known.get(name_or_path, Path(name_or_path))
    return path.stem, build_preset(_read(path, known), overrides, path.stem, changes)


def build_preset(
    data: dict[str, Any],
    overrides: Sequence[str],
    name: str,
    changes: Mapping[str, Any] | None = None,
) -> Preset:
    """Make a preset of what a file or a record says.

    Args:
        data: as in the TOML file; is changed.
        overrides: as for :func:`load_preset`.
        name: whose it is, for what is wrong with it.
        changes: as for :func:`load_preset`.

    Raises:
        PresetError: it or an override says something impossible.
    """
    for key, value in (changes or {}).items():
        _put(data, key, value, key)
    for override in overrides:
        _apply(data, override)
    try:
        return Preset.model_validate(data)
    except ValidationError as error:
        raise PresetError(f"{name}: {_complaint(error)}") from error


def text_changes(key: str, location: str) -> dict[str, Any]:
    """Changes of a preset that put a person's text at a key."""
    return {f"{key}.name": file_name(location), f"{key}.location": location}


def _read(path: Path, known: dict[str, Path]) -> dict[str, Any]:
    if not path.is_file():
        raise PresetError(
            f"no preset {str(path)!r}: give a TOML file, a checkpoint's training.json or one of "
            f"{', '.join(known)}"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PresetError(f"{path}: {error}") from error


def _complaint(error: ValidationError, section: str = "") -> str:
    """The first thing that is wrong: the key and why."""
    first = error.errors()[0]
    # Behind the key of a union stands the tag of the one that was chosen.
    parts = [part for part in first["loc"] if part not in ("text", "parallel")]
    key = ".".join(str(part) for part in ([section] if section else []) + parts)
    return (f"{key}: " if key else "") + first["msg"].removeprefix("Value error, ")


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise PresetError(f"--set {override!r}: write section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    _put(data, key, value, override)


def _put(data: dict[str, Any], key: str, value: object, override: str) -> None:
    *sections, last = key.split(".")
    table = data
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise PresetError(f"--set {override!r}: {section} is a value, not a section")
    table[last] = value


def preset_record(preset: Preset) -> dict[str, Any]:
    """The preset as plain JSON data, for ``training.json``; local files are but names there."""
    record: dict[str, Any] = json.loads(preset.model_dump_json(exclude_none=True))
    data = record["data"]
    for value in (*data.values(), data.get("background", {}).get("source")):
        if isinstance(value, dict) and "location" in value:
            value["location"] = public_origin(value["location"])
    return record
