"""Which device the models run on."""

import platform

import torch

from app.exceptions import StartupError
from models.precision import Precision, choose_precision


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


def describe_arithmetic(device: torch.device) -> str:
    """What the bits of an answer depend on, besides weights and precision, in words.

    On a CPU it is the instructions that PyTorch has chosen its kernels for; another version of
    PyTorch may compute them otherwise.

    Args:
        device: where the models are.
    """
    if device.type == "cpu":
        kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    else:
        major, minor = torch.cuda.get_device_capability(device)
        kind = f"{torch.cuda.get_device_name(device)} {major}.{minor}"
    return f"{device.type} {kind}, PyTorch {torch.__version__}"


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Turn the ``precision`` setting into one that the device computes in.

    Args:
        name: as :func:`models.precision.choose_precision` takes it.
        device: where the models will be.

    Raises:
        StartupError: the device cannot run the precision, or it is none.
    """
    try:
        return choose_precision(name, device)
    except ValueError as error:
        raise StartupError(str(error)) from None
