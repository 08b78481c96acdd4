"""Writing an imported model as a checkpoint folder."""

import datetime
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from models.checkpoint import read_checkpoint
from models.checkpoint_model import Model, load_model, save_checkpoint
from models.checkpoint_schema import ImportedWeights, Languages, TrainingRecord
from models.tokenizers import Tokenizer
from training.command_line import require_folder_name
from training.importing.weights import ImportingError, file_sha256
from training.record import gatehouse_version

CARD = """# {name}

Imported by Gatehouse on {date} from `{file}` ({format}), SHA-256 `{sha256}`.
Gatehouse knows neither the data that it was trained on nor how good it is.

- Parameters: {millions:.2f} M, stored as float32
- Vocabulary: {vocabulary}
- Licence: {licence}
{notes}
## Hyperparameters

| name | value |
| --- | --- |
{hyperparameters}
"""


def checkpoint_folder(out_dir: Path, name: str) -> Path:
    """The folder of a new checkpoint.

    Raises:
        ImportingError: something is there already.
        ValueError: the name is no folder's name.
    """
    require_folder_name(name)
    folder = out_dir / name
    if folder.exists():
        raise ImportingError(f"{folder} is there already: remove it, or give another --name")
    return folder


def write_checkpoint(
    folder: Path,
    model: Model,
    *,
    tokenizers: Mapping[str, Tokenizer],
    languages: Languages | None,
    weights_format: str,
    file: Path,
    licence: str,
    notes: Sequence[str] = (),
) -> None:
    """Write the folder, and load it again to know that it can be.

    The weights are stored in float32, as they came: the outputs stay those of the original.

    Raises:
        CheckpointError: it cannot be loaded.
        OSError: the disk refuses.
    """
    imported = ImportedWeights(format=weights_format, file=file.name, sha256=file_sha256(file))
    record = TrainingRecord(
        name=folder.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data=[],
        imported=imported,
        licence=licence,
        seed=0,
        steps=0,
        metrics_note="Imported: Gatehouse has measured nothing.",
        versions=_versions(),
    )
    save_checkpoint(
        folder,
        model,
        tokenizers=tokenizers,
        languages=languages,
        training=record,
        card=_card(record, imported, model, tokenizers, notes),
        weights_dtype=torch.float32,
    )
    load_model(read_checkpoint(folder), torch.device("cpu"))


def _card(
    record: TrainingRecord,
    imported: ImportedWeights,
    model: Model,
    tokenizers: Mapping[str, Tokenizer],
    notes: Sequence[str],
) -> str:
    return CARD.format(
        name=record.name,
        date=record.created[:10],
        **imported.model_dump(),
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        vocabulary=", ".join(
            f"{role}: {tokenizer.kind}, {tokenizer.vocabulary_size} tokens"
            for role, tokenizer in tokenizers.items()
        ),
        licence=record.licence,
        notes="".join(f"- The import {note}\n" for note in notes),
        hyperparameters="\n".join(
            f"| {name} | {value} |" for name, value in model.config.model_dump().items()
        ),
    )


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gatehouse": gatehouse_version(),
    }
