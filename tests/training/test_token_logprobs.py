"""Log-probabilities of given tokens, and their gradients, are torch's."""

import pytest
import torch
from torch import nn

from training.token_logprobs import pad_rows, token_logprobs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def found_and_expected(
    size: int, rows: int, dtype: torch.dtype, *, autocast: bool, device: str = "cpu"
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probabilities and three gradients, by the function and by the definition."""
    torch.manual_seed(0)
    features = torch.randn(rows, 24, dtype=dtype, device=device, requires_grad=True)
    layer = nn.Linear(24, size, dtype=dtype, device=device)
    targets = torch.randint(size, (rows,), device=device)
    weights = torch.randn(rows, dtype=dtype, device=device)
    wanted = [features, layer.weight, layer.bias]

    def by_definition(inputs: torch.Tensor) -> torch.Tensor:
        logprobs = torch.log_softmax(layer(inputs).to(dtype), -1)
        return logprobs[:rows].gather(-1, targets[:, None])[:, 0]

    both = []
    for compute in (lambda inputs: token_logprobs(inputs, layer, targets), by_definition):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logprobs = compute(pad_rows(features))
        gradients = torch.autograd.grad((logprobs * weights).sum(), wanted)
        both.append([logprobs.detach(), *gradients])
    return both[0], both[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_torchs(dtype: torch.dtype, device: str) -> None:
    found, expected = found_and_expected(29, 37, dtype, autocast=False, device=device)
    assert found[0].dtype == dtype
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [29, 64, 1000])
def test_they_are_torchs_in_bfloat16(size: int) -> None:
    found, expected = found_and_expected(size, 37, torch.float32, autocast=True)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.05)


def test_threads_change_nothing() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(found_and_expected(1000, 100, torch.float32, autocast=True)[0][0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_gradient_in_bfloat16_is_finite_where_a_token_is_improbable() -> None:
    layer = nn.Linear(4, 64)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.zero_()
        layer.bias[5] = 500.0
    features = torch.ones(2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs = token_logprobs(features, layer, torch.tensor([5, 6]))
    assert logprobs.tolist() == pytest.approx([0.0, -500.0])
    (bias,) = torch.autograd.grad(logprobs.sum(), layer.bias)
    expected = torch.zeros(64)
    expected[5], expected[6] = -1, 1
    torch.testing.assert_close(bias, expected)
