"""The smoothed loss and its gradient are torch's."""

import pytest
import torch
from torch.nn import functional

from training.smoothing import smoothed_loss

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


@pytest.mark.parametrize("size", [1, 29, 64, 8003])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_kernel_computes_what_tensor_operations_do(size: int, smoothing: float) -> None:
    torch.manual_seed(size)
    logits = (4 * torch.randn(11, size)).bfloat16()
    targets = torch.randint(size, (11,))
    found = {}
    for name, given in (("kernel", logits), ("operations", logits.float())):
        leaf = given.clone().requires_grad_()
        objective, likelihood = smoothed_loss(leaf, targets, smoothing)
        objective.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert leaf.grad is not None
        found[name] = (objective.detach(), likelihood, leaf.grad.bfloat16())
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other)


def test_threads_share_out_the_tokens() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(37, 29).bfloat16(), torch.randint(29, (37,))
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            leaf = logits.clone().requires_grad_()
            objective, likelihood = smoothed_loss(leaf, targets, 0.1)
            objective.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            assert leaf.grad is not None
            found.append((objective.detach(), likelihood, leaf.grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
        assert torch.equal(other[2], found[0][2])
