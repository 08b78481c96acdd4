"""What a run writes down of itself, and training again from it.

A checkpoint's ``training.json`` can stand in the place of a preset: it holds the whole preset,
and what else the weights depend on.
"""

import argparse
import logging
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from models.checkpoint import CheckpointInfo, checkpoint_name
from models.checkpoint_schema import DataSource, TrainingRecord
from training.own_text import OPTIONS, VALIDATION_OPTIONS
from training.preset import ParallelData, PresetError, TextData, available_presets
from training.sources import is_public, public_origin

LOGGER = logging.getLogger("training")
_QUOTES = "\"'"
"""In which TOML may have a string."""


def gatehouse_version() -> str:
    """That of the installed Gatehouse."""
    try:
        return version("gatehouse")
    except PackageNotFoundError:
        return "not installed"  # run from a checkout; no reason to lose a training run


def code_commit() -> str | None:
    """The git commit that the code is run from, None where it is no checkout.

    ``-dirty`` stands behind it where files were changed since.
    """
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():  # or git would name a checkout around it
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git here, or it distrusts the owner
        return None
    return answer.stdout.strip()


def is_record(preset: str) -> bool:
    """Whether what stands in the place of a preset is a checkpoint's ``training.json``."""
    return preset not in available_presets() and Path(preset).suffix == ".json"


def read_record(file: Path) -> TrainingRecord:
    """Read a checkpoint's ``training.json``.

    Raises:
        PresetError: it cannot be read, is no such file, or is of an average.
    """
    try:
        record = TrainingRecord.model_validate_json(file.read_bytes())
    except OSError as error:
        raise PresetError(f"{file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PresetError(
            f"{file}: is no training.json of a checkpoint: {where} {first['msg']}"
        ) from error
    if record.averaged:
        names = " and ".join(
            f"{averaged.name} (fingerprint {averaged.fingerprint})" for averaged in record.averaged
        )
        raise PresetError(
            f"{file}: {record.name} was not trained, but is the average of {names}: "
            "gatehouse average makes it of these"
        )
    return record


def recorded_preset(record: TrainingRecord) -> dict[str, Any]:
    """The preset as it was used: with the precision in fact, whatever this machine would take."""
    preset = dict(record.preset)
    if record.precision:
        preset["training"] = {**preset.get("training", {}), "precision": record.precision}
    return preset


def recorded_location(record: TrainingRecord, data: TextData | ParallelData) -> str | None:
    """Where the text is that was read in the place of the preset's own, or None for that.

    Synthetic pairs are looked for where the preset says.

    Args:
        record: of the run.
        data: of its preset.

    Raises:
        PresetError: it is a local file, of which records keep the name only, and not here.
    """
    texts = (data.without_synthetic() if isinstance(data, ParallelData) else data).texts()
    recorded = record.data[: len(texts)]
    if [text.name for text in recorded] != [text.name for text in texts]:
        if len(recorded) == 1 and is_public(recorded[0].origin):
            return recorded[0].origin
    elif all(is_public(text.location) or Path(text.location).exists() for text in texts):
        return None
    raise PresetError(
        f"{record.name} was trained on {' and '.join(text.name for text in recorded)}, which "
        "only its owner has: say where it is with --data PATH (several files: their folder)"
    )


def require_the_same_beginning(
    record: TrainingRecord, texts: Sequence[DataSource], initial: CheckpointInfo | None
) -> None:
    """Check that a run can come to the recorded weights.

    Args:
        record: of the run that is to be done again.
        texts: that were read now.
        initial: the checkpoint that the run begins with, or None.

    Raises:
        PresetError: the texts or the initial checkpoint are others.
    """
    if len(texts) != len(record.data):
        was, now = (" and ".join(text.name for text in some) for some in (record.data, texts))
        raise PresetError(
            f"{record.name} was trained on {was}, and this run would be on {now}: omit "
            "--synthetic, and every --set that names a text"
        )
    for read, recorded in zip(texts, record.data, strict=True):
        if read.sha256 != recorded.sha256:
            raise PresetError(
                f"{read.name}: is not the text of {record.name}: its SHA-256 should be "
                f"{recorded.sha256} and is {read.sha256}"
            )
    wanted = record.initial.fingerprint if record.initial else None
    if wanted != (initial.fingerprint if initial else None):
        began = record.initial.name if record.initial else "no other checkpoint"
        raise PresetError(
            f"{record.name} began with {began}"
            + (f" (fingerprint {wanted}): give it by --initial" if wanted else ": omit --initial")
        )


def prepare_repetition(record: TrainingRecord, threads: int | None, processes: int) -> None:
    """Take the recorded number of threads, unless another is asked for; warn of what differs."""
    if threads is None and record.versions.get("threads", "").isdigit():
        torch.set_num_threads(int(record.versions["threads"]))
    if record.processes != processes:
        LOGGER.warning(
            "%s was trained by %d processes and not by %d: the weights will differ; "
            "torchrun --nproc-per-node %d repeats it",
            *(record.name, record.processes, processes, record.processes),
        )


def arguments_that_matter(arguments: argparse.Namespace) -> list[str]:
    """The command line but for what does not change the weights.

    Of a path only the last part: where a person keeps a file is nobody else's business.
    """
    kept = [Path(arguments.preset).name] if arguments.preset else []
    for option in ("data", *OPTIONS, *VALIDATION_OPTIONS, "synthetic"):
        location = getattr(arguments, option)
        if location is not None:
            shown = location if is_public(location) else Path(location).name
            kept += [f"--{option.replace('_', '-')}", shown]
    for option, code in (("--from", arguments.from_language), ("--to", arguments.to_language)):
        kept += [option, code] if code else []
    if arguments.initial is not None:
        kept += ["--initial", checkpoint_name(arguments.initial)]
    for override in arguments.set:
        key, _, value = override.partition("=")
        is_place = key.endswith(".location")
        kept += ["--set", f"{key}={public_origin(value.strip(_QUOTES))}" if is_place else override]
    return kept
