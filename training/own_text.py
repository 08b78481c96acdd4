"""Training on a person's own text without a preset: files in, a whole preset out."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.checkpoint import CheckpointInfo, read_checkpoint
from training.corpora import read_cut
from training.languages import choose_languages
from training.preset import (
    PRESETS_DIR,
    TRAINING_ONLY_FIELDS,
    ParallelData,
    Preset,
    load_preset,
    text_changes,
)
from training.sizing import (
    MINIMUM_CHARACTERS,
    MINIMUM_SENTENCES,
    ParallelSize,
    prose_settings,
    translation_settings,
)
from training.sources import DataError, file_name, read_data

MAX_LINE_CHARACTERS = 100_000
"""Longer lines are no paragraphs: the text has lost its line ends, or is not prose."""
OPTIONS = ("pairs", "source", "target", "text")
VALIDATION_OPTIONS = ("valid_pairs", "valid_source", "valid_target")
INITIAL_LEARNING_RATE = 0.0005
"""Lower than for new weights, which have nothing to forget."""

Changes = dict[str, Any]
"""Dotted keys of a preset and their values."""


@dataclass(frozen=True)
class OwnText:
    """A run on a person's own text.

    Attributes:
        name: of the model, if its user gives none.
        preset: everything that the run depends on.
        summary: what was derived from the data, for people.
        example: a text to try the model with.
    """

    name: str
    preset: Preset
    summary: str
    example: str


def add_own_text_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that stand in for a preset."""
    group = parser.add_argument_group(
        "your own text, instead of a preset",
        "Files or URLs, in UTF-8, also packed by gzip. Sizes and steps are derived from how much "
        "text there is; --set changes them.",
    )
    group.add_argument("--pairs", metavar="FILE", help="lines of SOURCE tab TARGET")
    group.add_argument("--source", metavar="FILE", help="one sentence a line, with --target")
    group.add_argument("--target", metavar="FILE", help="their translations, line by line")
    group.add_argument("--valid-pairs", metavar="FILE", help="pairs to validate on, as --pairs")
    group.add_argument("--valid-source", metavar="FILE", help="the same, as --source")
    group.add_argument("--valid-target", metavar="FILE", help="the same, as --target")
    group.add_argument(
        "--from", dest="from_language", metavar="CODE", help="source language, e.g. en"
    )
    group.add_argument("--to", dest="to_language", metavar="CODE", help="target language")
    group.add_argument("--text", metavar="FILE", help="prose, for a language model")


def is_own_text(arguments: argparse.Namespace) -> bool:
    """Whether the command line names a person's own text.

    Raises:
        ValueError: it contradicts itself.
    """
    given = {name: getattr(arguments, name) for name in OPTIONS}
    if any(value == "" for value in given.values()):
        raise ValueError("the name of a file is empty")
    asked = [name for name, value in given.items() if value is not None]
    pair_options = (*VALIDATION_OPTIONS, "from_language", "to_language")
    if asked == ["text"] and arguments.synthetic is not None:
        raise ValueError("--synthetic goes with sentence pairs")
    if not asked or asked == ["text"]:
        for name in pair_options:
            if getattr(arguments, name) is not None:
                option = name.replace("_language", "").replace("_", "-")
                raise ValueError(f"--{option} goes with --pairs, or with --source and --target")
    if not asked:
        return False
    if arguments.preset or arguments.data:
        raise ValueError(
            f"give either a preset (and --data for its text) or --{asked[0]}, not both"
        )
    if asked not in (["pairs"], ["source", "target"], ["text"]):
        raise ValueError("give --pairs, or --source and --target, or --text")
    if (arguments.valid_source is None) != (arguments.valid_target is None):
        raise ValueError("--valid-source and --valid-target go together")
    if arguments.valid_pairs is not None and arguments.valid_source is not None:
        raise ValueError("give either --valid-pairs or --valid-source and --valid-target")
    return True


def read_own_text(arguments: argparse.Namespace, cache_dir: Path) -> OwnText:
    """Measure a person's text and make a preset for it.

    Args:
        arguments: of which :func:`is_own_text` holds.
        cache_dir: where downloads are kept.

    Raises:
        DataError: the text cannot be read or used, or is too short.
        PresetError: ``--set`` says something impossible.
        CheckpointError: the initial checkpoint cannot be read.
        ValueError: the languages are not known.
    """
    if arguments.text is not None:
        return _read_prose(arguments, cache_dir)
    return _read_pairs(arguments, cache_dir)


def _read_pairs(arguments: argparse.Namespace, cache_dir: Path) -> OwnText:
    files = {
        "source": arguments.pairs or arguments.source,
        "target": arguments.target,
        "validation_source": arguments.valid_pairs or arguments.valid_source,
        "validation_target": arguments.valid_target,
    }
    files = {role: location for role, location in files.items() if location}
    training = [file_name(files[role]) for role in ("source", "target") if role in files]
    source, target = choose_languages(training, arguments.from_language, arguments.to_language)
    name = f"{source}-{target}-{_stem(training[0], (source, target))}"
    changes: Changes = {"data.source_language": source, "data.target_language": target}
    for role, location in files.items():
        changes |= text_changes(f"data.{role}", location)
    changes |= synthetic_changes(arguments)
    whole = {"data.test_share": 0.0, "data.validation_share": 0.0}
    draft = _preset("translation", arguments, changes | whole).data
    assert isinstance(draft, ParallelData)
    # Only measured here: --set may ask for shares, which need no cut yet.
    draft = draft.model_copy(update={"test_share": 0.0, "validation_share": 0.0})
    cut, records = read_cut(draft, None, cache_dir)
    for role, record in zip(files, records, strict=True):
        changes[f"data.{role}.sha256"] = record.sha256
    sides = [side for pair in cut.train for side in (pair.source, pair.target)]
    size = ParallelSize(
        sentences=len({pair.source for pair in cut.train}),
        characters=sum(map(len, sides)),
        distinct_characters=len(set().union(*sides)),
    )
    if size.sentences < MINIMUM_SENTENCES:
        raise DataError(
            f"{' and '.join(training)}: {size.sentences} distinct source sentences are too few to "
            f"split into training, validation and test: {MINIMUM_SENTENCES} are needed"
        )
    has_validation = "validation_source" in files
    settings = translation_settings(size, has_validation=has_validation)
    if arguments.initial:  # whose tokenizers are taken
        settings = {key: v for key, v in settings.items() if not key.startswith("tokenizer.")}
    preset = _preset("translation", arguments, _carded(changes, name) | dict(settings))
    measured = (
        f"{len(cut.train):,} pairs, {size.sentences:,} distinct source sentences, "
        f"{size.characters:,} characters"
    )
    # Neither the shortest nor a long one.
    example = min(cut.train[:1000], key=lambda pair: abs(len(pair.source) - 40)).source
    return OwnText(name, preset, _summary(measured, settings, preset), example)


def _read_prose(arguments: argparse.Namespace, cache_dir: Path) -> OwnText:
    name = _stem(file_name(arguments.text), ())
    changes = text_changes("data.source", arguments.text)
    text, record = read_data(_preset("prose", arguments, changes).data.source, None, cache_dir)
    changes["data.source.sha256"] = record.sha256
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE_CHARACTERS:
            raise DataError(
                f"{record.name}: line {number} has {len(line):,} characters, and a paragraph may "
                f"have {MAX_LINE_CHARACTERS:,}: break it into lines, for example with fold -s"
            )
    if len(text.strip()) < MINIMUM_CHARACTERS:
        raise DataError(
            f"{record.name}: {len(text.strip()):,} characters are too few to split into training "
            f"and validation: {MINIMUM_CHARACTERS:,} are needed"
        )
    settings = prose_settings(len(text))
    preset = _preset("prose", arguments, _carded(changes, name) | dict(settings))
    measured = f"{len(text):,} characters, {len(set(text)):,} different ones"
    example = " ".join(text[:200].split()[:3]) + " "
    return OwnText(name, preset, _summary(measured, settings, preset), example)


def synthetic_changes(arguments: argparse.Namespace) -> Changes:
    """What ``--synthetic`` changes in a preset of sentence pairs."""
    if arguments.synthetic is None:
        return {}
    return text_changes("data.synthetic", arguments.synthetic)


def _preset(base: str, arguments: argparse.Namespace, changes: Mapping[str, Any]) -> Preset:
    """The base preset with what was derived, then what an initial checkpoint and --set say."""
    changes = dict(changes)
    if arguments.initial:
        initial = read_checkpoint(arguments.initial)
        config = initial.config
        sizes = {key for key in type(config).model_fields if key.endswith("vocabulary_size")}
        # None is a shape, too: of one-hot vectors.
        shape = config.model_dump(exclude={*TRAINING_ONLY_FIELDS, *sizes})
        is_fitting = (shape["kind"] == "seq2seq") == (base == "translation")
        # Another kind is refused later, by name.
        if is_fitting:
            changes |= {f"model.{key}": value for key, value in shape.items()}
            changes["training.learning_rate"] = INITIAL_LEARNING_RATE
            changes |= _tokenizer_of(initial)
    return load_preset(str(PRESETS_DIR / f"{base}.toml"), arguments.set, changes)[1]


def _tokenizer_of(initial: CheckpointInfo) -> Changes:
    """What the checkpoint's tokenizers were trained by, as far as it says."""
    recorded = initial.training.preset
    if not recorded:
        return {}
    return {
        "tokenizer": dict(recorded["tokenizer"]),
        "data.preparation": recorded["data"].get("preparation", "none"),
    }


def _carded(changes: Changes, name: str) -> Changes:
    return {**changes, "card.title": name}


def _stem(name: str, languages: tuple[str, ...]) -> str:
    """A file's name without suffixes, as part of a model's name."""
    parts = [part for part in name.split(".") if part]
    stem = parts[0] if parts else "model"
    for code in languages:
        stem = re.sub(rf"(^|[-_]){re.escape(code)}($|[-_])", "-", stem, flags=re.IGNORECASE)
    return re.sub(r"[^\w-]+", "-", stem).strip("-_") or "model"


def _summary(measured: str, settings: Mapping[str, int | float], preset: Preset) -> str:
    """What was measured and derived, with the values that --set left."""
    record = preset.model_dump()
    values = []
    for key in settings:
        section, _, field = key.partition(".")
        values.append(f"{key}={record[section][field]}")
    return f"read {measured}; derived from that (change with --set): {', '.join(values)}"
