"""Bringing what the host has to the device that computes, without waiting for that device.

A GPU fetches from pinned memory when it comes to it; for a copy from any other memory the host
waits until the GPU has done all work before it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def is_apart(device: torch.device) -> bool:
    """Whether a device computes beside the host, as a GPU does: nobody should wait for it."""
    return device.type != "cpu"


def on_device(
    values: Sequence[int] | Sequence[float] | Sequence[Sequence[int]],
    device: torch.device,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """A list as a tensor on a device.

    Args:
        values: numbers, or lists of equal length.
        device: where the tensor is wanted.
        dtype: of the tensor.
    """
    # Through NumPy, which is quicker to read a list of Python's numbers.
    return send(torch.from_numpy(np.array(values)).to(dtype), device)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host, on a device."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)
