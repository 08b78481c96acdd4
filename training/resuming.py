"""A run's saved state: its file, what it must agree with to be gone on with, its random numbers."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from models.config import LanguageModelConfig, Seq2SeqConfig
from training.distributed import Processes

STATE_FILE = "state.pt"
WORDS_ONLY = ("description", "card", "name", "location")
"""Parts of a preset that a run may change on its way: words, and what a text is called and where
it lies, since the record also has the checksum of each."""
_CONFIGS: dict[Any, type[BaseModel]] = {
    "language_model": LanguageModelConfig,
    "seq2seq": Seq2SeqConfig,
}


class RunError(Exception):
    """A run cannot go on; the message says why and what to do."""


def write_state(run_dir: Path, state: dict[str, Any]) -> None:
    """Write a run's state, whole or not at all.

    Raises:
        RunError: the disk refuses.
    """
    file = run_dir / STATE_FILE
    partial = file.with_suffix(".partial")
    try:
        torch.save(state, partial)
        partial.replace(file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise RunError(f"{file}: the run's state cannot be written: {error}") from error


def changes(state: dict[str, Any], record: dict[str, Any], precision: str) -> list[str]:
    """What the run of a state has other than the present one, in words.

    Args:
        state: as saved.
        record: of the present run.
        precision: that it computes in.
    """
    changed = differences(state["record"], record)
    saved = state.get("precision")  # which earlier versions did not save
    if saved is None:
        return changed
    # Whether it was asked for by name or by ``auto`` changes nothing; what that stands for does.
    changed = [key for key in changed if key != "training.precision"]
    if saved != precision:
        changed.append(
            f"training.precision, which was {saved} and is {precision} here: --set "
            f"training.precision={saved} goes on with it"
        )
    return changed


def require_a_common_beginning(
    processes: Processes, model: nn.Module, *facts: dict[str, Any] | int | str
) -> None:
    """Check that all processes have the same weights, and whatever else there is to compare.

    Raises:
        RunError: they have not.
    """
    if processes.count == 1:
        return
    weights = hashlib.sha256()
    for parameter in model.parameters():
        weights.update(parameter.detach().cpu().numpy().tobytes())
    own = (*facts, weights.hexdigest())
    if any(other != own for other in processes.gather(own)):
        raise RunError(
            "the processes do not begin alike: start each with the same command, data and "
            "--out folder, which all must be able to read"
        )


def differences(saved: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """Dotted keys that two records give different values, but for those that are only words."""
    return _differences(_with_whole_model(saved), _with_whole_model(present))


def _with_whole_model(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose model says what its preset leaves to the defaults."""
    model = record.get("model", {})
    config = _CONFIGS.get(model.get("kind"))
    if config is None:
        return record
    fields = config.model_fields.items()
    defaults = {name: field.default for name, field in fields if not field.is_required()}
    return {**record, "model": {**defaults, **model}}


def _differences(saved: dict[str, Any], present: dict[str, Any]) -> list[str]:
    changed: list[str] = []
    for key in sorted(saved.keys() | present.keys()):
        one, other = saved.get(key), present.get(key)
        # A setting that is newer than the state and switched off is no change.
        if key in WORDS_ONLY or one == other or (key not in saved and other == 0):
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            changed.extend(f"{key}.{inner}" for inner in _differences(one, other))
        else:
            changed.append(key)
    return changed


def by_process(random: Tensor) -> Tensor:
    """Random states as ``[processes, bytes]``; older states have one process and one dimension."""
    return random.view(-1, random.shape[-1])


def random_state(device: torch.device) -> tuple[Tensor, Tensor]:
    """Where torch's random numbers stand on the host and on the device; empty for a CPU."""
    is_gpu = device.type == "cuda"
    own = torch.cuda.get_rng_state(device) if is_gpu else torch.empty(0, dtype=torch.uint8)
    return torch.get_rng_state(), own


def restore_random_state(device: torch.device, host: Tensor, own: Tensor | None) -> None:
    """Put back what :func:`random_state` gave; a run that has changed its device keeps some."""
    # torch reads a view as if it began where its storage does, and may crash.
    torch.set_rng_state(host.clone())
    if device.type == "cuda" and own is not None and len(own):
        torch.cuda.set_rng_state(own.clone(), device)
