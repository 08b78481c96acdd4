import pytest
import torch

from app.engine.device import resolve_device, resolve_precision
from app.exceptions import StartupError

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda:0")
    assert resolve_device("cpu") == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        StartupError, match=r"device cuda was asked for, but PyTorch .* sees no CUDA"
    ):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cuda") == torch.device("cuda:0")
    with pytest.raises(StartupError, match="sees only 2 CUDA"):
        resolve_device("cuda:2")


def _set_bfloat16(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    """The GPU that is asked about is of Ampere, or of Turing; another one is the other way."""

    def capability(device: torch.device) -> tuple[int, int]:
        return (8, 0) if present == (device == GPU) else (7, 5)

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)


@pytest.mark.parametrize(
    ("name", "device", "has_bfloat16", "precision"),
    [
        ("auto", CPU, False, "int8"),
        ("int8", CPU, False, "int8"),
        ("float32", CPU, False, "float32"),
        ("bfloat16", CPU, False, "bfloat16"),
        ("auto", GPU, True, "bfloat16"),
        ("auto", GPU, False, "float16"),
        ("bfloat16", GPU, True, "bfloat16"),
        ("float16", GPU, True, "float16"),
        ("float16", GPU, False, "float16"),
        ("float32", GPU, False, "float32"),
    ],
)
def test_a_precision_that_the_device_computes_in(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    device: torch.device,
    has_bfloat16: bool,
    precision: str,
) -> None:
    _set_bfloat16(monkeypatch, has_bfloat16)
    assert resolve_precision(name, device) == precision


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("float16", CPU, "precision float16 was asked for on cpu, but .* use int8 or bfloat16"),
        ("int8", GPU, "precision int8 was asked for on cuda:0, but .* the CPU only"),
        ("bfloat16", GPU, "precision bfloat16 was asked for on cuda:0, but .* use float16"),
        ("int4", CPU, "there is no precision int4: choose float32, bfloat16, float16, int8"),
    ],
)
def test_another_precision_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, device: torch.device, message: str
) -> None:
    _set_bfloat16(monkeypatch, present=False)
    with pytest.raises(StartupError, match=message):
        resolve_precision(name, device)
