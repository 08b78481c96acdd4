"""What a saved run must agree with to be gone on with, and its random numbers."""

from typing import Any

import torch
from torch import Tensor

WORDS_ONLY = ("description", "card", "name", "location")
"""Parts of a preset that a run may change on its way: words, and what a text is called and where
it lies, since the record also has the checksum of each."""


def differences(saved: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """Dotted keys that two records give different values, but for those that are only words."""
    changed: list[str] = []
    for key in sorted(saved.keys() | present.keys()):
        one, other = saved.get(key), present.get(key)
        # A setting that is newer than the state and switched off is no change.
        if key in WORDS_ONLY or one == other or (key not in saved and other == 0):
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            changed.extend(f"{key}.{inner}" for inner in differences(one, other))
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
