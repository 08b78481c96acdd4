"""Dropout by bytes: the share that it drops, its scale, its gradient, its randomness."""

import pytest
import torch

import models.dropout
from models.dropout import dropout
from models.kernels.dropping import BLOCK


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.3, 0.5, 0.9])
def test_it_drops_the_share_that_was_asked_for_and_keeps_the_expectation(
    probability: float,
) -> None:
    torch.manual_seed(0)
    outputs = dropout(torch.ones(1000, 997), probability, True)
    assert float((outputs == 0).float().mean()) == pytest.approx(probability, abs=0.004)
    assert len(set(outputs.flatten()[:5000].tolist())) == 2
    assert float(outputs.mean()) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5, 11), (0, 4)])
def test_any_shape_and_type(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        outputs = dropout(torch.ones(shape, dtype=dtype), 0.5, True)
        assert outputs.shape == shape
        assert outputs.dtype == dtype


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.001, True), (0.5, False)])
def test_nothing_is_dropped_without_need(probability: float, training: bool) -> None:
    inputs = torch.randn(50, 3)
    assert torch.equal(dropout(inputs, probability, training), inputs)


def test_never_everything() -> None:
    assert bool((dropout(torch.ones(100, 1000), 0.9999, True) > 0).any())


def test_the_gradient_passes_where_an_element_was_kept() -> None:
    inputs = torch.randn(40, 40, requires_grad=True)
    outputs = dropout(inputs, 0.5, True)
    outputs.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert inputs.grad is not None
    assert torch.equal(inputs.grad != 0, outputs != 0)
    assert set(inputs.grad.flatten().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("size", [100, BLOCK, 3 * BLOCK + 5, 20 * BLOCK + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_threads_drop_what_one_does(
    dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.dropout, "_WORTH_SHARING", 1)
    inputs = torch.randn(size).to(dtype)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(2)
            found.append(dropout(inputs, 0.3, True))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    kept = found[0] != 0
    scaled = inputs[kept].float() * (256 / (256 - 77))
    torch.testing.assert_close(found[0][kept], scaled.to(dtype))


def test_no_byte_of_a_word_says_what_another_does() -> None:
    torch.manual_seed(0)
    kept = (dropout(torch.ones(1 << 20), 0.5, True) > 0).float().view(-1, 8)
    shares = torch.corrcoef(kept.T)
    assert float((shares - torch.eye(8)).abs().max()) < 0.02
    # Nor one word what the next does.
    joined = torch.cat([kept[:-1], kept[1:]], 1)
    assert float((torch.corrcoef(joined.T) - torch.eye(16)).abs().max()) < 0.02


def test_the_seed_decides_and_every_call_draws_anew() -> None:
    def draw() -> list[torch.Tensor]:
        torch.manual_seed(5)
        return [dropout(torch.ones(64), 0.5, True) for _ in range(2)]

    first, second = draw(), draw()
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])
