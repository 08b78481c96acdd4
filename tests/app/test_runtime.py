import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from app.exceptions import DrainingError, NotReadyError, StartupError
from app.runtime import Runtime
from app.service.translation import TranslationRequest
from tests.app.conftest import make_settings


def fail_unexpectedly(*_: object, **__: object) -> Any:
    raise RuntimeError("secret")


def test_life_from_loading_to_draining(checkpoints_dir: Path) -> None:
    async def scenario() -> None:
        runtime = Runtime(make_settings(checkpoints_dir))
        with pytest.raises(NotReadyError, match="being loaded"):
            runtime.service()
        await runtime.start()
        await runtime.wait_until_loaded()
        assert runtime.not_ready_because() is None
        result = await runtime.service().translate(TranslationRequest(("go",)))
        assert result.model == "en-fr"
        await runtime.stop()
        assert runtime.not_ready_because() == "the service is shutting down"
        with pytest.raises(DrainingError):
            runtime.service()

    asyncio.run(scenario())


def test_draining_begins_at_once_and_once(checkpoints_dir: Path) -> None:
    async def scenario() -> None:
        runtime = Runtime(make_settings(checkpoints_dir))
        await runtime.start()
        await runtime.wait_until_loaded()
        service = runtime.service()
        running = asyncio.create_task(service.translate(TranslationRequest(("go",))))
        await asyncio.sleep(0)
        runtime.begin_drain()
        with pytest.raises(DrainingError):
            runtime.service()
        runtime.begin_drain()
        await runtime.stop()
        assert (await running).translations

    asyncio.run(scenario())


def test_stopping_waits_for_loading(checkpoints_dir: Path) -> None:
    async def scenario() -> None:
        runtime = Runtime(make_settings(checkpoints_dir))
        await runtime.start()
        await runtime.stop()
        assert runtime.catalog is not None

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", ["cut weights", "no tokenizer", "bad default", "no such model"])
def test_what_cannot_be_served_never_becomes_ready(
    checkpoints_dir: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "letters"
    shutil.copytree(checkpoints_dir / "letters", folder)
    settings: dict[str, Any] = {}
    if damage == "cut weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        complaint = "model.safetensors"
    elif damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        complaint = "tokenizer.json"
    elif damage == "bad default":
        settings["default_translate_model"] = complaint = "letters"
    else:
        settings["models"] = ("nope",)
        complaint = "nope"

    async def scenario() -> None:
        told: list[bool] = []
        runtime = Runtime(
            make_settings(tmp_path, **settings), on_startup_failure=lambda: told.append(True)
        )
        await runtime.start()
        with pytest.raises(StartupError, match=complaint):
            await runtime.wait_until_loaded()
        assert told == [True]
        assert complaint in (runtime.not_ready_because() or "")
        await runtime.stop()

    asyncio.run(scenario())


def test_an_unexpected_failure_tells_no_details(checkpoints_dir: Path) -> None:
    async def scenario() -> None:
        runtime = Runtime(make_settings(checkpoints_dir), engine_starter=fail_unexpectedly)
        await runtime.start()
        with pytest.raises(StartupError, match="the log has the details"):
            await runtime.wait_until_loaded()

    asyncio.run(scenario())
