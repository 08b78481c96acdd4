"""The schedule, the precision and the optimizer."""

import math

import pytest
import torch
from torch import nn

from tests.training.tiny_runs import loop_settings
from training.optimization import autocast_dtype, learning_rate_factor, make_optimizer

CPU = torch.device("cpu")


def test_the_learning_rate_warms_up_and_falls() -> None:
    constant = loop_settings(warmup_steps=4)
    assert [learning_rate_factor(constant, step) for step in (0, 1, 3, 4, 11)] == [
        *(0.25, 0.5, 1.0, 1.0, 1.0)
    ]
    cosine = loop_settings(steps=104, warmup_steps=4, schedule="cosine")
    assert learning_rate_factor(cosine, 4) == 1.0
    assert learning_rate_factor(cosine, 29) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert learning_rate_factor(cosine, 54) == pytest.approx(0.5)
    assert learning_rate_factor(cosine, 103) == pytest.approx(0.000247, abs=1e-6)
    factors = [learning_rate_factor(cosine, step) for step in range(4, 104)]
    assert factors == sorted(factors, reverse=True)
    only_warm_up = loop_settings(steps=4, warmup_steps=9, schedule="cosine")
    assert learning_rate_factor(only_warm_up, 3) == pytest.approx(4 / 9)
    assert learning_rate_factor(loop_settings(), 0) == 1.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_the_optimizer_is_the_one_named(name: str, kind: type[torch.optim.Optimizer]) -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), loop_settings(optimizer=name, weight_decay=0.5))
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_precision_is_as_asked_or_what_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert autocast_dtype(loop_settings(precision="float32"), CPU) is None
    assert autocast_dtype(loop_settings(precision="bfloat16"), CPU) is torch.bfloat16
    for capabilities, expected in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, None),
        ({}, None),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert autocast_dtype(loop_settings(precision="auto"), CPU) is expected
    for supported, expected in ((True, torch.bfloat16), (False, None)):
        capability = (8 if supported else 7, 5)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, is_=capability: is_)
        assert autocast_dtype(loop_settings(precision="auto"), torch.device("cuda")) is expected
