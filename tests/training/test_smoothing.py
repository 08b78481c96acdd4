"""The smoothed loss and its gradient are torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from training.smoothing import smoothed_loss, smoothed_output_loss

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_loss_and_gradient_are_torchs(smoothing: float, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(37, 29)).to(device, dtype).requires_grad_()
    targets = torch.randint(29, (37,)).to(device)
    objective, likelihood = smoothed_loss(logits, targets, smoothing)
    (objective / 37).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    found = logits.grad
    assert found is not None
    assert found.dtype == dtype
    logits.grad = None
    wide = logits.float() if dtype == torch.bfloat16 else logits
    expected = functional.cross_entropy(wide, targets, label_smoothing=smoothing)
    expected.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.testing.assert_close(objective / 37, expected)
    torch.testing.assert_close(found, logits.grad)
    plain = functional.cross_entropy(wide, targets, reduction="sum")
    torch.testing.assert_close(likelihood, plain.detach())
    assert not likelihood.requires_grad


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_consistency_of_two_passes_is_r_drop(
    smoothing: float, dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    rows = 41  # more than a chunk has, and no multiple of it
    logits = (2 * torch.randn(2 * rows, 29)).to(device, dtype).requires_grad_()
    targets = torch.randint(29, (rows,)).to(device)
    objective, likelihood = smoothed_loss(logits, targets, smoothing, consistency=5.0)
    (objective / 7).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    found = logits.grad
    logits.grad = None
    wide = logits.float() if dtype == torch.bfloat16 else logits
    twice = targets.repeat(2)
    one, two = torch.log_softmax(wide, -1).chunk(2)
    apart = (one.exp() * (one - two)).sum() + (two.exp() * (two - one)).sum()
    smoothed = functional.cross_entropy(wide, twice, label_smoothing=smoothing, reduction="sum")
    expected = smoothed + 5.0 * apart / 2
    (expected / 7).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.testing.assert_close(objective, expected)
    torch.testing.assert_close(found, logits.grad)
    torch.testing.assert_close(likelihood, functional.cross_entropy(wide, twice, reduction="sum"))


def test_two_equal_passes_are_not_apart() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(33, 29), torch.randint(29, (33,))
    alone, _ = smoothed_loss(logits, targets, 0.1)
    together, _ = smoothed_loss(logits.repeat(2, 1), targets, 0.1, consistency=5.0)
    torch.testing.assert_close(together, 2 * alone)


@pytest.mark.parametrize("consistency", [0.0, 5.0])
def test_rows_behind_the_tokens_have_no_loss(consistency: float) -> None:
    torch.manual_seed(0)
    passes = 2 if consistency else 1
    targets = torch.randint(29, (33,))
    real = torch.randn(33 * passes, 29, requires_grad=True)
    filled = torch.cat([real.detach(), torch.randn(7, 29)]).requires_grad_()
    losses = [smoothed_loss(logits, targets, 0.1, consistency) for logits in (real, filled)]
    for one, other in zip(*losses, strict=True):
        assert torch.equal(one, other)
    for objective, _ in losses:
        objective.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert real.grad is not None
    assert filled.grad is not None
    assert torch.equal(filled.grad[: len(real)], real.grad)
    assert (filled.grad[len(real) :] == 0).all()


Losses = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]


def output_loss(
    size: int, smoothing: float, *, in_bfloat16: bool, consistency: float = 0.0, rows: int = 11
) -> Losses:
    """The loss of an output layer, and its gradients: of features, weight and bias."""
    torch.manual_seed(size)
    layer = nn.Linear(24, size)
    with torch.no_grad():
        # Nothing that bfloat16 would have to round.
        for parameter in layer.parameters():
            parameter.copy_((4 * parameter).bfloat16())
    features = torch.randn(rows + 5, 24).bfloat16().float().requires_grad_()
    targets = torch.randint(size, (rows // 2 if consistency else rows,))
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
        objective, likelihood = smoothed_output_loss(
            features, layer, targets, smoothing, consistency
        )
    (objective / 7).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    leaves = (features, layer.weight, layer.bias)
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(gradients) == 3
    return objective.detach(), likelihood, gradients


@pytest.mark.parametrize("size", [1, 29, 64, 8003])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_an_output_layer_is_that_of_its_logits(size: int, smoothing: float) -> None:
    found, expected = (output_loss(size, smoothing, in_bfloat16=narrow) for narrow in (True, False))
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0.01, atol=0.05)
    for one, other in zip(found[2], expected[2], strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm()) <= 0.01 * float(other.norm()) + 1e-6


def test_the_consistency_of_an_output_layer_goes_by_its_logits() -> None:
    found, expected = (
        output_loss(29, 0.1, in_bfloat16=narrow, consistency=5.0, rows=12)
        for narrow in (True, False)
    )
    torch.testing.assert_close(found[0], expected[0], rtol=0.02, atol=0.1)


def test_threads_share_out_the_tokens() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            found.append(output_loss(29, 0.1, in_bfloat16=True, rows=37))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other[:2], found[0][:2])
        torch.testing.assert_close(other[2], found[0][2], rtol=1e-2, atol=1e-5)
