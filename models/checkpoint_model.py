"""The model of a checkpoint: built, loaded with its weights, saved with all that belongs to it."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch.overrides import TorchFunctionMode

from models.checkpoint import (
    CARD_FILE,
    CONFIG_FILE,
    FORMAT_VERSION,
    TRAINING_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    CheckpointInfo,
    checksum,
)
from models.checkpoint_schema import (
    CheckpointConfig,
    Languages,
    TokenizerEntry,
    TrainingRecord,
)
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.language_model import LanguageModel
from models.seq2seq import Seq2Seq
from models.tokenizers import Tokenizer

Model = LanguageModel | Seq2Seq
TOKENIZER_SUFFIX = {"character": ".json", "word": ".json", "sentencepiece": ".model"}


_DRAWS = frozenset({"kaiming_uniform_", "normal_", "uniform_"})


class _WithoutDraws(TorchFunctionMode):
    """Leaves the initial weights undrawn: they are about to be read.

    On the meta device PyTorch would import its compiler for them, which takes longer than all
    the rest of loading.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in _DRAWS:
            return kwargs.get("tensor", *args[:1])
        return function(*args, **kwargs)


def build_model(config: LanguageModelConfig | Seq2SeqConfig) -> Model:
    """A freshly initialised model of the configured kind.

    Raises:
        ValueError: the configuration asks for what cannot be built.
    """
    if isinstance(config, LanguageModelConfig):
        return LanguageModel(config)
    return Seq2Seq(config)


def load_model(info: CheckpointInfo, device: torch.device) -> Model:
    """Build the model and load its weights, in float32 and evaluation mode.

    Raises:
        CheckpointError: the weights are damaged, not finite, or of the wrong shapes.
    """
    file = info.path / WEIGHTS_FILE
    try:
        # Shapes first, without memory: a wrong size must not ask for more than the machine has.
        with _WithoutDraws(), torch.device("meta"):
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
    with _WithoutDraws():
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
    :func:`models.checkpoint.read_checkpoint` refuses, since the checksums differ.

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
            sha256={file.name: checksum(file) for file in sorted(staging.iterdir())},
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


def _unique_tensors(model: Model) -> dict[str, torch.Tensor]:
    """Parameters by name; a tensor that several names share appears under the first."""
    return dict(model.named_parameters())
