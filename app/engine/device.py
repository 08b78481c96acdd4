"""Which device the models run on."""

from typing import cast, get_args

import torch

from app.exceptions import StartupError
from models.precision import Precision


def resolve_device(name: str) -> torch.device:
    """Turn the ``device`` setting into a device that is really there.

    Args:
        name: ``auto`` (the first GPU where torch sees one, else the CPU), ``cpu``, ``cuda``
            or ``cuda:N``.

    Raises:
        StartupError: a GPU was asked for that torch cannot see.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    index = int(name.partition(":")[2] or 0)
    if not torch.cuda.is_available():
        raise StartupError(
            f"device {name} was asked for, but PyTorch {torch.__version__} sees no CUDA GPU: "
            "use --device cpu (or auto), or install a CUDA build of PyTorch"
        )
    if index >= torch.cuda.device_count():
        raise StartupError(
            f"device {name} was asked for, but PyTorch sees only {torch.cuda.device_count()} "
            f"CUDA GPU(s): cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        )
    return torch.device("cuda", index)


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Turn the ``precision`` setting into one that the device computes in.

    Args:
        name: ``auto`` (int8 on a CPU; bfloat16 on a GPU, or float16 on one without it) or a
            :data:`models.precision.Precision`.
        device: where the models will be.

    Raises:
        StartupError: the device cannot run the precision, or it is none.
    """
    has_bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        if device.type == "cpu":
            return "int8"
        return "bfloat16" if has_bfloat16 else "float16"
    if name not in get_args(Precision):
        raise StartupError(f"there is no precision {name}: choose {', '.join(get_args(Precision))}")
    reason = ""
    if name == "int8" and device.type != "cpu":
        reason = "int8 is computed on the CPU only: use bfloat16 or float16"
    if name == "float16" and device.type == "cpu":
        reason = "processors have no fast float16: use int8 or bfloat16"
    if name == "bfloat16" and not has_bfloat16:
        reason = "this GPU has no bfloat16: use float16"
    if reason:
        raise StartupError(f"precision {name} was asked for on {device}, but {reason}")
    return cast(Precision, name)
