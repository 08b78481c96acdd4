"""What a served model computes in."""

from typing import Literal, TypeVar

import torch
from torch import nn

from models.cells import LinearPair
from models.quantization import quantize
from models.recurrent import RecurrentStack

Precision = Literal["float32", "bfloat16", "float16", "int8"]

_FLOATS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

ModelType = TypeVar("ModelType", bound=nn.Module)


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
        return model
    model.to(_FLOATS[precision])
    for module in model.modules():
        if isinstance(module, RecurrentStack):
            module.pair_directions(LinearPair)
    return model
