"""Checkpoint folders that nobody should serve: at the start, and at a reload under a service."""

import asyncio
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.exceptions import ReloadError, StartupError
from app.runtime import Runtime
from tests.app.conftest import make_settings
from tests.app.test_reloading import ASKED, save_letters, save_translator, started
from tests.models.checkpoint_folders import sign

pytestmark = pytest.mark.chaos

Fault = Callable[[Path], None]


def cut_short(folder: Path) -> None:
    for name in ("training.json", "tokenizer.json"):
        (folder / name).unlink()


def swap(folder: Path) -> None:
    other = folder.parent.parent / "other" / "letters"
    save_letters(other, 0, hidden_size=30)
    shutil.copy(other / "model.safetensors", folder)


def flip(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    sign(folder)


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def put_pickle(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (folder / "sprung",))

    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    sign(folder)


def not_finite(weights: dict[str, torch.Tensor]) -> None:
    weights["output.bias"][3] = torch.nan


def other_shape(weights: dict[str, torch.Tensor]) -> None:
    weights["output.bias"] = torch.zeros(2)


FAULTS: dict[str, tuple[Fault, str]] = {
    "cut short": (cut_short, r"training\.json: missing from the checkpoint folder"),
    "swapped files": (swap, r"model\.safetensors: .* its SHA-256 differs"),
    "flipped bit": (flip, r"model\.safetensors: .* its SHA-256 differs"),
    "wrong shapes": (
        lambda folder: change_weights(folder, other_shape),
        r"model\.safetensors: output\.bias has shape \[2\]",
    ),
    "NaN weights": (
        lambda folder: change_weights(folder, not_finite),
        r"model\.safetensors: output\.bias holds values that are not finite",
    ),
    "a path that escapes": (
        lambda folder: change_config(
            folder, lambda c: c["tokenizers"]["text"].update(file="../en-fr/config.json")
        ),
        r"config\.json: tokenizers\.text\.file: ",
    ),
    "a newer format": (
        lambda folder: change_config(folder, lambda c: c.update(format_version=99)),
        r"config\.json: format 99 is newer than this Gatehouse reads",
    ),
    "a pickle in disguise": (put_pickle, r"model\.safetensors: not a readable safetensors file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_at_the_start_the_service_does_not_become_ready(tmp_path: Path, fault: str) -> None:
    root = tmp_path / "root"
    save_letters(root / "letters", 0)
    damage, complaint = FAULTS[fault]
    damage(root / "letters")

    async def scenario() -> None:
        runtime = Runtime(make_settings(root))
        await runtime.start()
        with pytest.raises(StartupError, match=f"^damaged checkpoint: .*letters/{complaint}"):
            await runtime.wait_until_loaded()
        assert runtime.not_ready_because() is not None
        await runtime.stop()

    asyncio.run(scenario())
    assert not (root / "letters" / "sprung").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_at_a_reload_the_old_model_goes_on(tmp_path: Path, fault: str) -> None:
    root = tmp_path / "root"
    save_letters(root / "letters", 0)
    save_translator(root / "en-fr", 0)
    damage, complaint = FAULTS[fault]

    async def scenario() -> None:
        runtime = await started(root, "inline")
        ask = ASKED["generate 'a' 1 True"]
        before = await ask(runtime)
        save_letters(root / "letters", 1)
        damage(root / "letters")
        running = [asyncio.create_task(ask(runtime)) for _ in range(8)]
        with pytest.raises(ReloadError, match=f"^damaged checkpoint: .*letters/{complaint}"):
            await runtime.reloader().reload("letters")
        assert {await task for task in running} == {before}
        assert await ask(runtime) == before
        assert runtime.not_ready_because() is None
        await runtime.stop()

    asyncio.run(scenario())
    assert not (root / "letters" / "sprung").exists()
