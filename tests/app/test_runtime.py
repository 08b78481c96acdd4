import asyncio
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from app.engine.process import ProcessLink
from app.engine.request import EndReason
from app.engine.supervisor import SupervisedEngine
from app.exceptions import DrainingError, NotReadyError, StartupError
from app.runtime import Runtime
from app.service.translation import TranslationRequest
from tests.app.conftest import make_settings
from tests.app.engine.fake_engine import (
    DIES,
    GUARD_SECONDS,
    break_at_spec,
    ends_of,
    load_spec,
    make_request,
    refuse_spec,
    until,
)

BothEngines = pytest.mark.parametrize("engine", ["inline", "process"])


async def start(checkpoints_dir: Path, **settings: Any) -> tuple[Runtime, SupervisedEngine]:
    """A loaded service over a fake engine."""
    runtime = Runtime(make_settings(checkpoints_dir, **settings), engine_loader=load_spec)
    await runtime.start()
    await runtime.wait_until_loaded()
    assert runtime.engine is not None
    return runtime, runtime.engine


def kill_engine(engine: SupervisedEngine) -> None:
    assert isinstance(engine.link, ProcessLink)
    assert engine.link.pid is not None
    os.kill(engine.link.pid, signal.SIGKILL)


@BothEngines
def test_life_from_loading_to_draining(checkpoints_dir: Path, engine: str) -> None:
    async def scenario() -> None:
        runtime = Runtime(make_settings(checkpoints_dir, engine=engine))
        with pytest.raises(NotReadyError, match="being loaded"):
            runtime.service()
        await runtime.start()
        assert runtime.not_ready_because() == "the models are being loaded"
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


@BothEngines
@pytest.mark.parametrize("moment_seconds", [0.0, 0.2])
def test_stopping_while_the_models_load(
    checkpoints_dir: Path, engine: str, moment_seconds: float
) -> None:
    async def scenario() -> None:
        told: list[bool] = []
        runtime = Runtime(
            make_settings(checkpoints_dir, engine=engine),
            on_startup_failure=lambda: told.append(True),
        )
        await runtime.start()
        await asyncio.sleep(moment_seconds)
        async with asyncio.timeout(GUARD_SECONDS):
            await runtime.stop()
            await runtime.wait_until_loaded()
        assert runtime.failure is None
        assert not told
        assert runtime.engine is None or runtime.engine.link is None

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


def test_what_the_loader_refuses_is_told_as_it_is(checkpoints_dir: Path) -> None:
    async def scenario() -> None:
        runtime = Runtime(make_settings(checkpoints_dir), engine_loader=refuse_spec)
        await runtime.start()
        with pytest.raises(StartupError, match=r"^damaged checkpoint: a file is missing$"):
            await runtime.wait_until_loaded()
        await runtime.stop()

    asyncio.run(scenario())


def test_an_unexpected_failure_tells_no_details(checkpoints_dir: Path) -> None:
    async def scenario() -> None:
        runtime = Runtime(make_settings(checkpoints_dir), engine_loader=break_at_spec)
        await runtime.start()
        with pytest.raises(StartupError, match="the log has the details") as caught:
            await runtime.wait_until_loaded()
        assert "secret" not in str(caught.value)
        await runtime.stop()

    asyncio.run(scenario())


def test_the_settings_reach_the_loader(checkpoints_dir: Path) -> None:
    async def scenario() -> None:
        specs = []

        def load(spec: Any) -> Any:
            specs.append(spec)
            return load_spec(spec)

        settings = make_settings(
            checkpoints_dir, models=("letters",), precision="bfloat16", row_budget=32, num_threads=2
        )
        runtime = Runtime(settings, engine_loader=load)
        await runtime.start()
        await runtime.wait_until_loaded()
        (spec,) = specs
        assert spec.checkpoints == (checkpoints_dir / "letters",)
        assert (spec.device, spec.precision) == ("cpu", "bfloat16")
        assert (spec.num_threads, spec.row_budget) == (2, 32)
        assert runtime.engine is not None
        assert runtime.engine.stats().row_budget == 32
        assert runtime.catalog is not None
        # What it became is what the engine says, not what was asked for.
        assert runtime.catalog.get("letters").precision == "float32"
        await runtime.stop()

    asyncio.run(scenario())


def test_readiness_and_metrics_tell_the_truth_when_the_engine_dies(checkpoints_dir: Path) -> None:
    async def scenario() -> None:
        runtime, engine = await start(checkpoints_dir, engine="process")
        value = runtime.metrics.registry.get_sample_value
        stream = engine.submit([make_request(1, model="letters", tokens=10**9)])
        await until(lambda: engine.stats().running == 1)
        await until(lambda: bool(value("gatehouse_step_rows_count", {"model": "letters"})))
        assert value("gatehouse_ready") == 1
        kill_engine(engine)
        assert await ends_of(stream) == {1: EndReason.FAILED}
        away = "the engine died and is being started again"
        assert runtime.not_ready_because() == away
        with pytest.raises(NotReadyError, match=away):
            await runtime.service().translate(TranslationRequest(("go",)))
        assert value("gatehouse_ready") == 0
        assert value("gatehouse_texts_failed_total") == 1
        assert b"gatehouse_texts_accepted_total 1.0" in generate_latest(runtime.metrics.registry)
        await until(lambda: runtime.not_ready_because() is None)
        assert value("gatehouse_ready") == 1
        assert value("gatehouse_engine_restarts_total") == 1
        assert value("gatehouse_texts_failed_total") == 1
        ends = await ends_of(engine.submit([make_request(2, model="letters")]))
        assert ends == {2: EndReason.FINISHED}
        await runtime.stop()

    asyncio.run(scenario())


def test_readiness_needs_a_fresh_step(checkpoints_dir: Path) -> None:
    async def scenario() -> None:
        runtime, engine = await start(checkpoints_dir, engine="process", max_step_age_seconds=2)
        assert isinstance(engine.link, ProcessLink)
        assert engine.link.pid is not None
        os.kill(engine.link.pid, signal.SIGSTOP)  # as in a step that never ends
        await until(lambda: runtime.not_ready_because() is not None)
        reason = runtime.not_ready_because()
        assert reason is not None
        assert re.fullmatch(r"the engine's last step is \d+ seconds ago", reason)
        os.kill(engine.link.pid, signal.SIGCONT)
        await until(lambda: runtime.not_ready_because() is None)
        await runtime.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("change", ["another checkpoint", "gone"])
def test_a_checkpoint_that_changed_is_not_served_with_the_old_tokenizer(
    checkpoints_dir: Path, tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(checkpoints_dir / "letters", root / "letters")
    shutil.copytree(checkpoints_dir / "en-fr", root / "en-fr")
    kept = tmp_path / "kept"

    async def scenario() -> None:
        runtime, engine = await start(root)
        shutil.move(root / "letters", kept)
        if change == "another checkpoint":
            shutil.copytree(checkpoints_dir / "both-ways", root / "letters")
        await ends_of(engine.submit([make_request(1, model="en-fr", prompt=(DIES,))]))
        await until(lambda: engine.stats().restarts >= 2)
        # As the log says it, for whoever asks only whether the service is ready.
        await until(lambda: complaint in str(runtime.not_ready_because()))
        shutil.rmtree(root / "letters", ignore_errors=True)
        shutil.move(kept, root / "letters")
        await until(lambda: runtime.not_ready_because() is None)
        await runtime.stop()

    complaint = "letters has changed" if change == "another checkpoint" else "damaged checkpoint"
    asyncio.run(scenario())
    assert complaint in caplog.text
