"""Checkpoint folders: everything that a trained model needs to be served, without pickle.

A folder holds ``model.safetensors`` (the weights), ``config.json``, the tokenizers' files,
``training.json`` (how it was made and how good it is) and ``README.md`` (the model card).
``docs/checkpoint-format.md`` describes each file.
"""

import hashlib
import json
import math
import operator
import shutil
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from models.checkpoint_schema import (
    CheckpointConfig,
    Languages,
    TokenizerEntry,
    TrainingRecord,
)
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.language_model import LanguageModel
from models.seq2seq import Seq2Seq
from models.tokenizers import Tokenizer, TokenizerError, load_tokenizer

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TRAINING_FILE = "training.json"
CARD_FILE = "README.md"
TOKENIZER_SUFFIX = {"character": ".json", "word": ".json", "sentencepiece": ".model"}

Model = LanguageModel | Seq2Seq
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


def build_model(config: LanguageModelConfig | Seq2SeqConfig) -> Model:
    """A freshly initialised model of the configured kind.

    Raises:
        ValueError: the configuration asks for what cannot be built.
    """
    if isinstance(config, LanguageModelConfig):
        return LanguageModel(config)
    return Seq2Seq(config)


def read_checkpoint(path: Path) -> CheckpointInfo:
    """Read and check everything but the values of the weights.

    Raises:
        CheckpointError: a file is missing, damaged, of a newer format, or contradicts another.
    """
    config = _read_config(path / CONFIG_FILE)
    training = _parse(TrainingRecord, path / TRAINING_FILE, _read_json(path / TRAINING_FILE))
    # Before anything is made of their contents: what reads them need not expect the worst.
    for name in (WEIGHTS_FILE, *(entry.file for entry in config.tokenizers.values())):
        if _checksum(path / name) != config.sha256.get(name):
            raise CheckpointError(
                f"{path / name}: is not the file that {CONFIG_FILE} was written for: "
                "its SHA-256 differs"
            )
    tokenizers = _read_tokenizers(path, config)
    parameter_count = _count_parameters(path / WEIGHTS_FILE)
    return CheckpointInfo(
        path=path,
        name=path.resolve().name,
        config=config.model,
        languages=config.languages,
        tokenizers=tokenizers,
        training=training,
        fingerprint=_checksum(path / CONFIG_FILE),
        parameter_count=parameter_count,
    )


def load_model(info: CheckpointInfo, device: torch.device) -> Model:
    """Build the model and load its weights, in float32 and evaluation mode.

    Raises:
        CheckpointError: the weights are damaged, not finite, or of the wrong shapes.
    """
    file = info.path / WEIGHTS_FILE
    try:
        # Shapes first, without memory: a wrong size must not ask for more than the machine has.
        with torch.device("meta"):
            expected = _unique_tensors(build_model(info.config))
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{file}: does not fit {CONFIG_FILE}: missing {sorted(missing)[:3]}, "
            f"unexpected {sorted(unexpected)[:3]}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{file}: {name} has shape {list(tensor.shape)}, but {CONFIG_FILE} "
                f"asks for {list(expected[name].shape)}"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f"{file}: {name} holds {tensor.dtype}, not floating point")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{file}: {name} holds values that are not finite")
    model = build_model(info.config)
    with torch.no_grad():
        for name, parameter in _unique_tensors(model).items():
            parameter.copy_(tensors[name])
    return model.to(device).eval()


def save_checkpoint(
    path: Path,
    model: Model,
    *,
    tokenizers: Mapping[str, Tokenizer],
    languages: Languages | None,
    training: TrainingRecord,
    card: str,
    weights_dtype: torch.dtype = torch.float16,
) -> None:
    """Write a checkpoint folder; files of its own in an existing folder are replaced.

    Every file is written beside the folder first and moved in at the end, ``config.json`` last.
    A full disk leaves the old checkpoint whole; a kill between two moves leaves a folder that
    :func:`read_checkpoint` refuses, since the checksums differ.

    Raises:
        OSError: the disk refuses.
        ValueError: a weight is not finite in the precision that it is stored in.
    """
    path.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        (staging / WEIGHTS_FILE).write_bytes(save(_stored_tensors(model, weights_dtype)))
        entries = _save_tokenizers(staging, tokenizers)
        config = CheckpointConfig(
            format_version=FORMAT_VERSION,
            sha256={file.name: _checksum(file) for file in sorted(staging.iterdir())},
            model=model.config,
            languages=languages,
            tokenizers=entries,
        )
        for name, text in (
            (TRAINING_FILE, training.model_dump_json(indent=2) + "\n"),
            (CARD_FILE, card),
            (CONFIG_FILE, config.model_dump_json(indent=2) + "\n"),
        ):
            (staging / name).write_text(text, encoding="utf-8")
        stale = {*path.glob("*tokenizer.json"), *path.glob("*tokenizer.model")}
        for file in sorted(staging.iterdir(), key=lambda file: file.name == CONFIG_FILE):
            file.replace(path / file.name)
            stale.discard(path / file.name)
        for file in stale:
            file.unlink()
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _save_tokenizers(
    folder: Path, tokenizers: Mapping[str, Tokenizer]
) -> dict[str, TokenizerEntry]:
    """Write each tokenizer once, however many roles it has; return the file of each role."""
    saved: dict[int, TokenizerEntry] = {}
    shared = len({id(tokenizer) for tokenizer in tokenizers.values()}) == 1
    for role, tokenizer in tokenizers.items():
        if id(tokenizer) not in saved:
            stem = "tokenizer" if shared else f"{role}-tokenizer"
            file = stem + TOKENIZER_SUFFIX[tokenizer.kind]
            tokenizer.save(folder / file)
            saved[id(tokenizer)] = TokenizerEntry(kind=tokenizer.kind, file=file)
    return {role: saved[id(tokenizer)] for role, tokenizer in tokenizers.items()}


def _stored_tensors(model: Model, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, tensor in _unique_tensors(model).items():
        tensors[name] = tensor.detach().to("cpu", dtype).contiguous()
        if not torch.isfinite(tensors[name]).all():
            raise ValueError(f"the weights of {name} are not finite in {str(dtype)[6:]}")
    return tensors


def _checksum(file: Path) -> str:
    return hashlib.sha256(_read_bytes(file)).hexdigest()


def _unique_tensors(model: Model) -> dict[str, torch.Tensor]:
    """Parameters by name; a tensor that several names share appears under the first."""
    return dict(model.named_parameters())


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
