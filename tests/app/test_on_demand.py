"""Models join a running service and leave it, in both kinds of engine."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from app.exceptions import NotReadyError, UnknownModelError
from app.runtime import Runtime
from app.service.generation import GenerationRequest
from models.decoding.params import DecodingParams
from tests.app.conftest import make_settings, save_language_model
from tests.app.engine.fake_engine import until

BothEngines = pytest.mark.parametrize("engine", ["inline", "process"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(("begun", "other", "third")):
        save_language_model(tmp_path / name, hidden_size=12 + 8 * number)
    return tmp_path


@asynccontextmanager
async def running(
    root: Path, engine: Literal["inline", "process"] = "inline"
) -> AsyncIterator[Runtime]:
    runtime = Runtime(make_settings(root, engine=engine, models=("begun",)))
    await runtime.start()
    try:
        await runtime.wait_until_loaded()
        yield runtime
    finally:
        await runtime.stop()


async def text_of(runtime: Runtime, model: str, tokens: int = 20) -> str:
    params = DecodingParams(max_new_tokens=tokens, beam_size=1)
    request = GenerationRequest(prompts=("a",), model=model, params=params)
    return (await runtime.service().generate(request)).outputs[0].text


def names(runtime: Runtime) -> list[str]:
    assert runtime.catalog is not None
    return [model.name for model in runtime.catalog.models]


@BothEngines
def test_a_model_comes_answers_goes_and_comes_again(
    root: Path, engine: Literal["inline", "process"]
) -> None:
    async def run() -> None:
        async with running(root, engine) as runtime:
            models = runtime.models_on_demand()
            assert names(runtime) == ["begun"]
            with pytest.raises(UnknownModelError):
                await text_of(runtime, "other")
            first = await models.load("other")
            assert names(runtime) == ["begun", "other"]
            text = await text_of(runtime, "other")
            assert text != await text_of(runtime, "begun")
            assert (await models.load("other")) is first
            models.unload("other")
            assert names(runtime) == ["begun"]
            assert runtime.engine is not None
            assert list(runtime.engine.stats().rows_running) == ["begun"]
            again = await models.load("other")
            assert again.revision == first.revision + 1
            assert await text_of(runtime, "other") == text

    asyncio.run(run())


def test_what_was_submitted_before_a_model_left_is_finished(root: Path) -> None:
    async def run() -> None:
        async with running(root) as runtime:
            models = runtime.models_on_demand()
            await models.load("other")
            short = await text_of(runtime, "other", 100)
            asking = asyncio.create_task(text_of(runtime, "other", 100))
            # It may have run and ended by the time that anyone looks who is running.
            while runtime.engine is None or runtime.engine.stats().accepted < 2:
                await asyncio.sleep(0)
            models.unload("other")
            assert await asking == short

    asyncio.run(run())


def test_an_engine_that_dies_comes_back_with_the_models_that_had_joined(root: Path) -> None:
    async def run() -> None:
        async with running(root, "process") as runtime:
            await runtime.models_on_demand().load("other")
            text = await text_of(runtime, "other")
            assert runtime.engine is not None
            assert runtime.engine.link is not None
            runtime.engine.link.kill("the test kills it")
            while not runtime.engine.stats().restarts or runtime.not_ready_because():
                await asyncio.sleep(0.02)
            assert await text_of(runtime, "other") == text

    asyncio.run(run())


@BothEngines
def test_a_load_that_nobody_waits_for_any_more_leaves_nothing_behind(
    root: Path, engine: Literal["inline", "process"]
) -> None:
    async def run() -> None:
        async with running(root, engine) as runtime:
            models = runtime.models_on_demand()
            running_engine = runtime.engine
            assert running_engine is not None
            given_up = asyncio.create_task(models.load("other"))
            stays = [asyncio.create_task(models.load("third")) for _ in range(2)]
            await asyncio.sleep(0)
            for task in (given_up, stays[0]):
                task.cancel()
            # Who asks meanwhile has the load that is under way.
            first, second = await asyncio.gather(models.load("third"), stays[1])
            assert first is second
            await until(lambda: "other" not in models.loading)
            assert names(runtime) == ["begun", "third"]
            await until(lambda: list(running_engine.stats().rows_running) == ["begun", "third"])
            assert await text_of(runtime, "third")
            assert (await models.load("other")).revision == 1
            assert await text_of(runtime, "other")

    asyncio.run(run())


def test_what_cannot_be_loaded_changes_nothing(root: Path) -> None:
    async def run() -> None:
        async with running(root) as runtime:
            models = runtime.models_on_demand()
            for name in ("nobody", "", ".", "..", "../begun", str(root / "other")):
                with pytest.raises(UnknownModelError):
                    await models.check(name)
                with pytest.raises(UnknownModelError):
                    await models.load(name)
            (root / "other" / "model.safetensors").write_bytes(b"nothing")
            with pytest.raises(NotReadyError, match=r"model\.safetensors"):
                await models.load("other")
            shutil.rmtree(root / "third")
            with pytest.raises(UnknownModelError):
                await models.load("third")
            with pytest.raises(ValueError, match="began with"):
                models.unload("begun")
            assert names(runtime) == ["begun"]

    asyncio.run(run())
