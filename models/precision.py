"""What a served model computes in."""

from typing import Literal, TypeVar, cast, get_args

import torch
from torch import nn

from models.quantization import quantize
from models.recurrent import RecurrentStack
from models.team import TEAM
from models.whole_step import join_kernels

Precision = Literal["float32", "bfloat16", "float16", "int8"]

_FLOATS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

ModelType = TypeVar("ModelType", bound=nn.Module)


def choose_precision(name: str, device: torch.device) -> Precision:
    """Turn the name of a precision into one that a device computes in.

    Args:
        name: ``auto`` (int8 on a CPU; bfloat16 on a GPU, or float16 on one without it) or a
            :data:`Precision`.
        device: where the models will be.

    Raises:
        ValueError: the device cannot run the precision, or it is none.
    """
    if name == "auto":
        if device.type == "cpu":
            return "int8"
        return "bfloat16" if has_bfloat16(device) else "float16"
    if name not in get_args(Precision):
        raise ValueError(f"there is no precision {name}: choose {', '.join(get_args(Precision))}")
    reason = ""
    if name == "int8" and device.type != "cpu":
        reason = "int8 is computed on the CPU only: use bfloat16 or float16"
    if name == "float16" and device.type == "cpu":
        reason = "processors have no fast float16: use int8 or bfloat16"
    if name == "bfloat16" and device.type == "cuda" and not has_bfloat16(device):
        reason = "this GPU has no bfloat16: use float16"
    if reason:
        raise ValueError(f"precision {name} was asked for on {device}, but {reason}")
    return cast(Precision, name)


def has_bfloat16(gpu: torch.device) -> bool:
    """Whether a GPU multiplies in bfloat16 (Ampere or later): others emulate it, slowly."""
    return torch.cuda.get_device_capability(gpu)[0] >= 8


def keep_float32_exact() -> None:
    """Switch off TF32, in which a GPU computes float32 products with 10 bits of mantissa.

    cuDNN's recurrent layers use it unless told otherwise, and answers would then differ from
    the CPU's in the third digit.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    # Setting `fp32_precision` of single operators instead would have `cudnn.flags()` raise.
    torch.backends.cudnn.allow_tf32 = False


def use_threads(count: int, precision: Precision, light_count: int | None = None) -> None:
    """Have a processor compute on so many threads, in this process.

    In int8 these are the kernels' own. PyTorch then has one: its others would keep the processor
    busy while they wait for work, which is always too small for them.

    Args:
        count: at least 1.
        precision: what models compute in.
        light_count: while few rows run in int8; None: no others.
    """
    is_int8 = precision == "int8"
    torch.set_num_threads(1 if is_int8 else count)
    if is_int8:
        TEAM.resize(count, light_count)
    else:
        TEAM.resize(1)


def set_precision(model: ModelType, precision: Precision) -> ModelType:
    """Have a float32 model compute in another precision from now on, in place.

    Args:
        model: in evaluation mode; for int8, on the CPU.
        precision: see :mod:`models.quantization` for int8.

    Returns:
        The model itself.
    """
    if precision == "int8":
        quantize(model)
        join_kernels(model)
        return model
    model.to(_FLOATS[precision])
    for module in model.modules():
        if isinstance(module, RecurrentStack):
            module.pair_directions()
    return model
