"""The smoothed loss and its gradient are torch's."""

import pytest
import torch
from torch.nn import functional

from training.smoothing import smoothed_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_loss_and_gradient_are_torchs(smoothing: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(37, 29)).to(dtype).requires_grad_()
    targets = torch.randint(29, (37,))
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
