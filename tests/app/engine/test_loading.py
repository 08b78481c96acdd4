import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.catalog import read_checkpoints
from app.engine import loading
from app.engine.loading import start_engine


@pytest.fixture
def _tf32_as_before() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("_tf32_as_before")
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_float32_is_float32_on_a_gpu(
    checkpoints_dir: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    monkeypatch.setattr(loading, "resolve_device", lambda _: torch.device(device))
    loaded = []
    monkeypatch.setattr(loading, "load_model", lambda *arguments: loaded.append(arguments))
    monkeypatch.setattr(loading, "_worker_model", lambda *_: None)
    checkpoints = read_checkpoints(checkpoints_dir, ["letters"])
    engine = start_engine(checkpoints, device=device, num_threads=None, queue_capacity=1)
    asyncio.run(engine.client.drain(0))
    assert loaded
    inexact = device == "cpu"
    assert torch.backends.cuda.matmul.allow_tf32 is inexact
    assert torch.backends.cudnn.allow_tf32 is inexact
    assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is inexact
