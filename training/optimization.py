"""What the settings of the training loop stand for: the schedule, the precision, the optimizer."""

import math

import torch
from torch import nn

from models.precision import has_bfloat16
from training.preset import Optimization


def learning_rate_factor(settings: Optimization, step: int) -> float:
    """Factor of the learning rate at a step (from 0): linear warm-up, then the schedule.

    ``cosine`` falls to 0 at the last step (Loshchilov & Hutter 2017).
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    left = settings.steps - settings.warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - settings.warmup_steps) / max(left, 1)))


def autocast_dtype(settings: Optimization, device: torch.device) -> torch.dtype | None:
    """The type that matrix products run in, or None for float32.

    ``auto`` is bfloat16 where the hardware multiplies it: on others it is slower than float32.
    """
    if settings.precision == "float32":
        return None
    if settings.precision == "bfloat16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if has_bfloat16(device) else None
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else None


def precision_name(dtype: torch.dtype | None) -> str:
    """What records call the type that :func:`autocast_dtype` chose."""
    return "bfloat16" if dtype else "float32"


def make_optimizer(model: nn.Module, settings: Optimization) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over all parameters."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), lr=rate, weight_decay=decay, fused=True)
