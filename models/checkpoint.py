"""Checkpoint folders: everything that a trained model needs to be served, without pickle.

A folder holds ``model.safetensors`` (the weights), ``config.json``, the tokenizers' files,
``training.json`` (how it was made and how good it is) and ``README.md`` (the model card).
``docs/checkpoint-format.md`` describes each file.

What is here needs no torch: a process that has others compute starts in half the time without it.
The model itself is built, loaded and saved by :mod:`models.checkpoint_model`.
"""

import hashlib
import json
import math
import operator
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from models.checkpoint_schema import (
    CheckpointConfig,
    Languages,
    TokenizerEntry,
    TrainingRecord,
)
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.tokenizers import Tokenizer, TokenizerError, load_tokenizer

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TRAINING_FILE = "training.json"
CARD_FILE = "README.md"

_Schema = TypeVar("_Schema", bound=BaseModel)


class CheckpointError(Exception):
    """A checkpoint folder cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint but for its weights.

    Attributes:
        path: the folder.
        name: the folder's name.
        config: the model's hyperparameters.
        languages: direction of a translation model, else None.
        tokenizers: ``text`` for a language model, ``source`` and ``target`` for a Seq2Seq.
        training: how it was made.
        fingerprint: hexadecimal SHA-256 of ``config.json``, which holds the checksums of the
            weights and tokenizers: equal fingerprints mean equal answers.
        parameter_count: numbers in the weights file.
    """

    path: Path
    name: str
    config: LanguageModelConfig | Seq2SeqConfig
    languages: Languages | None
    tokenizers: Mapping[str, Tokenizer]
    training: TrainingRecord
    fingerprint: str
    parameter_count: int


def find_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders at a path: the path itself, or those right below it, by name.

    Hidden ones are left out: a kill in the middle of :func:`save_checkpoint` leaves one behind.

    Raises:
        CheckpointError: a folder may not be read.
    """
    try:
        if (root / CONFIG_FILE).is_file():
            return [root]
        if not root.is_dir():
            return []
        return sorted(
            path
            for path in root.iterdir()
            if not path.name.startswith(".") and (path / CONFIG_FILE).is_file()
        )
    except OSError as error:
        raise CheckpointError(f"{error.filename or root}: {error.strerror}") from error


def checkpoint_name(path: Path) -> str:
    """The name of a checkpoint: that of its folder, or of the link that stands for it.

    So a link may be pointed at another version of a model, which then has the same name.
    """
    return Path(os.path.normpath(path.absolute())).name  # Path.resolve would follow the link


def read_checkpoint(path: Path) -> CheckpointInfo:
    """Read and check everything but the values of the weights.

    Raises:
        CheckpointError: a file is missing, damaged, of a newer format, or contradicts another.
    """
    config = _read_config(path / CONFIG_FILE)
    training = _parse(TrainingRecord, path / TRAINING_FILE, _read_json(path / TRAINING_FILE))
    # Before anything is made of their contents: what reads them need not expect the worst.
    for name in (WEIGHTS_FILE, *(entry.file for entry in config.tokenizers.values())):
        if checksum(path / name) != config.sha256.get(name):
            raise CheckpointError(
                f"{path / name}: is not the file that {CONFIG_FILE} was written for: "
                "its SHA-256 differs"
            )
    tokenizers = _read_tokenizers(path, config)
    parameter_count = _count_parameters(path / WEIGHTS_FILE)
    return CheckpointInfo(
        path=path,
        name=checkpoint_name(path),
        config=config.model,
        languages=config.languages,
        tokenizers=tokenizers,
        training=training,
        fingerprint=checksum(path / CONFIG_FILE),
        parameter_count=parameter_count,
    )


def checksum(file: Path) -> str:
    """Hexadecimal SHA-256.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return hashlib.sha256(_read_bytes(file)).hexdigest()


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing from the checkpoint folder") from None
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_bytes(file))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: holds no JSON object")
    return data


def _parse(schema: type[_Schema], file: Path, data: dict[str, Any]) -> _Schema:
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{file}: {where}: {first['msg']}") from error


def _read_config(file: Path) -> CheckpointConfig:
    data = _read_json(file)
    version = data.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{file}: format_version is missing or not a number")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: format {version} is newer than this Gatehouse reads ({FORMAT_VERSION}); "
            "update Gatehouse"
        )
    return _parse(CheckpointConfig, file, data)


def _read_tokenizers(path: Path, config: CheckpointConfig) -> dict[str, Tokenizer]:
    if isinstance(config.model, LanguageModelConfig):
        sizes = {"text": config.model.vocabulary_size}
    else:
        sizes = {
            "source": config.model.source_vocabulary_size,
            "target": config.model.target_vocabulary_size,
        }
    if config.tokenizers.keys() != sizes.keys():
        raise CheckpointError(
            f"{path / CONFIG_FILE}: a {config.model.kind} needs the tokenizers {sorted(sizes)}, "
            f"not {sorted(config.tokenizers)}"
        )
    tokenizers: dict[str, Tokenizer] = {}
    loaded: dict[TokenizerEntry, Tokenizer] = {}
    for role, entry in config.tokenizers.items():
        file = path / entry.file
        _read_bytes(file)
        try:
            if entry not in loaded:
                loaded[entry] = load_tokenizer(file, entry.kind)
            tokenizers[role] = loaded[entry]
        except TokenizerError as error:
            raise CheckpointError(str(error)) from error
        if tokenizers[role].vocabulary_size != sizes[role]:
            raise CheckpointError(
                f"{file}: has {tokenizers[role].vocabulary_size} tokens, but {CONFIG_FILE} "
                f"asks for {sizes[role]}"
            )
    return tokenizers


def _count_parameters(file: Path) -> int:
    """Sum of the sizes in a safetensors header."""
    content = _read_bytes(file)
    try:
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        return sum(math.prod(map(operator.index, shape)) for shape in shapes)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        struct.error,
    ) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file: {error}") from error
