"""A model is replaced under load: no request fails, and no answer is of two models."""

import asyncio
import gc
import os
import random
import re
import shutil
import signal
import weakref
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engine import loading
from app.engine.process import ProcessLink
from app.exceptions import DrainingError, NotReadyError, ReloadError, UnknownModelError
from app.reloading import revision_of
from app.runtime import Runtime
from app.service.generation import GenerationRequest, GenerationResult
from app.service.translation import TranslationRequest
from models.checkpoint_model import Model, load_model
from models.checkpoint_schema import Languages
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.decoding.params import DecodingParams
from models.tokenizers import CharacterTokenizer, WordTokenizer
from tests.app.conftest import (
    ENGLISH,
    FRENCH,
    make_settings,
    save_random_model,
)
from tests.app.engine.fake_engine import GUARD_SECONDS, until
from tests.models.checkpoint_folders import sign

pytestmark = pytest.mark.chaos

BothEngines = pytest.mark.parametrize("engine", ["inline", "process"])
PROMPTS = ("", "a", "the time", "no end")
TEXTS = ("go", "we lost", "I am cold .")
ALPHABETS = ("abcdefghijklmnopqrstuvwxyz ", "\n'zyxwvutsrqponmlkjihgfedcba ")
"""The same letter has another token in each: weights of the one with a tokenizer of the other
would give a third text."""

Ask = Callable[[Runtime], Coroutine[Any, Any, str]]


def save_letters(folder: Path, variant: int, **changes: Any) -> None:
    torch.manual_seed(10 + variant)
    tokenizer = CharacterTokenizer.train(ALPHABETS[variant])
    options: dict[str, Any] = {"hidden_size": 12 + 8 * variant, **changes}
    config = LanguageModelConfig(vocabulary_size=tokenizer.vocabulary_size, **options)
    save_random_model(folder, config, {"text": tokenizer}, None)


def save_translator(folder: Path, variant: int, target: str = "fr") -> None:
    torch.manual_seed(20 + variant)
    texts = (ENGLISH, FRENCH) if variant == 0 else (["un", *ENGLISH], ["deux trois", *FRENCH])
    source, wanted = map(WordTokenizer.train, texts)
    config = Seq2SeqConfig(
        source_vocabulary_size=source.vocabulary_size,
        target_vocabulary_size=wanted.vocabulary_size,
        embedding_size=8,
        hidden_size=12 + 8 * variant,
        decoder="attention",
    )
    languages = Languages(source="en", target=target)
    save_random_model(folder, config, {"source": source, "target": wanted}, languages)


SAVE: dict[str, Callable[..., None]] = {"letters": save_letters, "en-fr": save_translator}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, save in SAVE.items():
        save(tmp_path / "root" / name, 0)
    return tmp_path / "root"


def generation(prompt: str, seed: int, *, stream: bool) -> Ask:
    params = DecodingParams(max_new_tokens=40, temperature=1.0, seed=seed, num_outputs=2)
    request = GenerationRequest((prompt, "again"), "letters", params, logprobs=True)

    async def ask(runtime: Runtime) -> str:
        service = runtime.service()
        if not stream:
            return repr((await service.generate(request)).outputs)
        async with aclosing(service.stream_generation(request)) as events:
            result = [event async for event in events][-1]
        assert isinstance(result, GenerationResult)
        return repr(result.outputs)

    return ask


def translation(text: str, *, beam_size: int) -> Ask:
    request = TranslationRequest((text, text), beam_size=beam_size, alignments=True)

    async def ask(runtime: Runtime) -> str:
        return repr((await runtime.service().translate(request)).translations)

    return ask


ASKED: dict[str, Ask] = {
    **{
        f"generate {prompt!r} {seed} {stream}": generation(prompt, seed, stream=stream)
        for prompt in PROMPTS
        for seed in (1, 2)
        for stream in (False, True)
    },
    **{
        f"translate {text!r} {beam_size}": translation(text, beam_size=beam_size)
        for text in TEXTS
        for beam_size in (1, 4)
    },
}


async def started(root: Path, engine: str, **settings: Any) -> Runtime:
    runtime = Runtime(make_settings(root, engine=engine, **settings))
    await runtime.start()
    await runtime.wait_until_loaded()
    return runtime


async def answers_of(folder: Path, variant: int) -> dict[str, str]:
    """What the models of one variant answer when nothing is ever reloaded."""
    for name, save in SAVE.items():
        save(folder / name, variant)
    runtime = await started(folder, "inline")
    answers = {name: await ask(runtime) for name, ask in ASKED.items()}
    await runtime.stop()
    return answers


@BothEngines
@pytest.mark.parametrize("seed", [1, 2])
def test_under_load_every_answer_is_wholly_of_one_model(
    root: Path, tmp_path: Path, engine: str, seed: int
) -> None:
    async def scenario() -> None:
        expected = [await answers_of(tmp_path / str(variant), variant) for variant in (0, 1)]
        assert all(expected[0][name] != expected[1][name] for name in ASKED)
        runtime = await started(root, engine)
        choice = random.Random(seed)
        # Odd while a model is being replaced, when either may answer.
        changes = dict.fromkeys(SAVE, 0)
        over = False
        seen = [0, 0]

        async def client() -> None:
            while not over:
                name = choice.choice(list(ASKED))
                model = "letters" if name.startswith("generate") else "en-fr"
                before = changes[model]
                answer = await ASKED[name](runtime)
                found = [variant for variant in (0, 1) if answer == expected[variant][name]]
                assert found, f"of neither model: {name}"
                if changes[model] == before and before % 2 == 0:
                    assert found == [before // 2 % 2], "of the old model when the new one serves"
                seen[found[0]] += 1

        async def answered(variant: int) -> None:
            """Each model answers a few times before it is replaced, however slow that is."""
            wanted = seen[variant] + 4
            await until(lambda: seen[variant] >= wanted)

        clients = [asyncio.create_task(client()) for _ in range(12)]
        for turn in range(6):
            await asyncio.sleep(choice.random() * 0.1)
            for model in choice.sample(list(SAVE), 2):
                SAVE[model](root / model, 1 - turn % 2)
                changes[model] += 1
                reload = await runtime.reloader().reload(model)
                changes[model] += 1
                assert reload.is_changed
                assert reload.new.revision == turn + 1
            await answered(1 - turn % 2)
        await asyncio.sleep(0.05)
        over = True
        await asyncio.gather(*clients)
        assert min(seen) > 10
        assert runtime.engine is not None
        stats = runtime.engine.stats()
        assert (stats.failed, stats.cancelled, stats.restarts) == (0, 0, 0)
        assert stats.accepted == stats.finished
        assert stats.rows_running == {"en-fr": 0, "letters": 0}
        await runtime.stop()

    asyncio.run(scenario())


def spoil(folder: Path, fault: str) -> str:
    """Puts something in the place of a checkpoint that cannot take it; returns the complaint."""
    if fault == "gone":
        shutil.rmtree(folder)
        return r"config\.json: missing"
    if fault == "not finite":
        save_letters(folder, 1, cell="lstm")
        weights = load_file(folder / "model.safetensors")
        weights["output.bias"][0] = torch.nan
        save_file(weights, folder / "model.safetensors")
        sign(folder)
        return r"model\.safetensors: output\.bias holds values that are not finite"
    if fault == "other kind":
        shutil.rmtree(folder)
        save_translator(folder, 1)
        return "kind seq2seq instead of language_model: start the service again"
    if fault == "bidirectional":
        save_letters(folder, 1, bidirectional=True)
        return "tasks none instead of generate"
    weights_file = folder / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1])
    return r"model\.safetensors: "


@BothEngines
@pytest.mark.parametrize("fault", ["cut", "gone", "not finite", "other kind", "bidirectional"])
def test_a_folder_that_cannot_take_its_place_leaves_the_old_model_serving(
    root: Path, engine: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        runtime = await started(root, engine)
        ask = ASKED["generate 'a' 1 False"]
        before = await ask(runtime)
        assert runtime.catalog is not None
        fingerprint = runtime.catalog.get("letters").info.fingerprint
        complaint = spoil(root / "letters", fault)
        caplog.clear()
        with pytest.raises(ReloadError, match=complaint):
            await runtime.reloader().reload("letters")
        assert [r.levelname for r in caplog.records] == ["ERROR"]
        assert re.search(complaint, caplog.text)
        assert await ask(runtime) == before
        assert runtime.not_ready_because() is None
        assert runtime.catalog.get("letters").info.fingerprint == fingerprint
        assert described(runtime) == {"letters": fingerprint, **only(described(runtime), "en-fr")}
        # Once it is mended, it is taken.
        shutil.rmtree(root / "letters", ignore_errors=True)
        save_letters(root / "letters", 1)
        assert (await runtime.reloader().reload("letters")).is_changed
        assert await ask(runtime) != before
        value = runtime.metrics.registry.get_sample_value
        for outcome in ("failed", "changed"):
            labels = {"model": "letters", "outcome": outcome}
            assert value("gatehouse_model_reloads_total", labels) == 1
        await runtime.stop()

    asyncio.run(scenario())


def only(found: dict[str, str], name: str) -> dict[str, str]:
    return {name: found[name]}


def described(runtime: Runtime) -> dict[str, str]:
    """Fingerprints by model, as the metrics tell them."""
    (family,) = (
        family
        for family in runtime.metrics.registry.collect()
        if family.name == "gatehouse_model_info"
    )
    found = {s.labels["model"]: s.labels["fingerprint"] for s in family.samples}
    assert len(found) == len(family.samples), "a model has two fingerprints"
    return found


def test_languages_stay_as_they_are(root: Path) -> None:
    async def scenario() -> None:
        runtime = await started(root, "inline")
        save_translator(root / "en-fr", 1, target="de")
        with pytest.raises(ReloadError, match="languages en, de instead of en, fr"):
            await runtime.reloader().reload("en-fr")
        await runtime.stop()

    asyncio.run(scenario())


@BothEngines
def test_a_link_is_pointed_at_another_version(root: Path, engine: str) -> None:
    async def scenario() -> None:
        (root / "letters").rename(root.parent / "version-0")
        save_letters(root.parent / "version-1", 1)
        (root / "letters").symlink_to(root.parent / "version-0")
        runtime = await started(root, engine)
        ask = ASKED["generate 'a' 1 False"]
        old = await ask(runtime)
        (root / "next").symlink_to(root.parent / "version-1")
        (root / "next").replace(root / "letters")
        reload = await runtime.reloader().reload("letters")
        assert (reload.is_changed, reload.new.name, reload.new.revision) == (True, "letters", 1)
        assert await ask(runtime) != old
        await runtime.stop()

    asyncio.run(scenario())


def test_a_model_that_is_unloaded_meanwhile_does_not_come_back(root: Path) -> None:
    async def scenario() -> None:
        runtime = await started(root, "inline")
        engine, catalog = runtime.engine, runtime.service().catalog
        assert engine is not None
        save_letters(root / "letters", 1)
        reload = asyncio.ensure_future(runtime.reloader().reload("letters"))
        await until(lambda: bool(engine._loading))
        engine.retire_model(revision_of(catalog.get("letters")), name_too=True)
        catalog.remove("letters")
        with pytest.raises(ReloadError, match="unloaded meanwhile"):
            await reload
        assert [model.name for model in catalog.models] == ["en-fr"]
        assert list(engine.stats().rows_running) == ["en-fr"]
        await runtime.stop()

    asyncio.run(scenario())


def test_an_unchanged_folder_is_not_loaded_again(root: Path) -> None:
    async def scenario() -> None:
        runtime = await started(root, "inline")
        reload = await runtime.reloader().reload("letters")
        assert not reload.is_changed
        assert reload.new.revision == 0
        with pytest.raises(UnknownModelError):
            await runtime.reloader().reload("nobody")
        await runtime.stop()

    asyncio.run(scenario())


def test_an_engine_that_dies_comes_back_with_the_model_that_served(root: Path) -> None:
    async def scenario() -> None:
        runtime = await started(root, "process")
        ask = ASKED["generate 'a' 1 False"]
        old = await ask(runtime)
        save_letters(root / "letters", 1)
        await runtime.reloader().reload("letters")
        new = await ask(runtime)
        assert new != old
        engine = runtime.engine
        assert engine is not None
        assert isinstance(engine.link, ProcessLink)
        engine.link.kill("a test")
        await until(lambda: runtime.not_ready_because() is not None)
        await until(lambda: engine.link is not None)
        assert isinstance(engine.link, ProcessLink)
        assert engine.link.pid is not None
        os.kill(engine.link.pid, signal.SIGSTOP)  # or it might be back before the reload fails
        save_letters(root / "letters", 0)
        with pytest.raises(NotReadyError):
            await runtime.reloader().reload("letters")
        save_letters(root / "letters", 1)
        os.kill(engine.link.pid, signal.SIGCONT)
        await until(lambda: runtime.not_ready_because() is None)
        assert await ask(runtime) == new
        # Reloads go on from there.
        save_letters(root / "letters", 0)
        assert (await runtime.reloader().reload("letters")).new.revision == 2
        assert await ask(runtime) == old
        await runtime.stop()

    asyncio.run(scenario())


def test_a_reload_goes_on_when_nobody_waits_for_it(root: Path) -> None:
    async def scenario() -> None:
        runtime = await started(root, "inline")
        save_letters(root / "letters", 1)
        waiting = asyncio.create_task(runtime.reloader().reload("letters"))
        await asyncio.sleep(0)
        waiting.cancel()
        assert runtime.catalog is not None
        catalog = runtime.catalog
        await until(lambda: catalog.get("letters").revision == 1)
        await runtime.stop()

    asyncio.run(scenario())


@BothEngines
def test_shutting_down_in_the_middle_of_a_reload(root: Path, engine: str) -> None:
    async def scenario() -> None:
        runtime = await started(root, engine)
        save_letters(root / "letters", 1)
        reload = asyncio.create_task(runtime.reloader().reload("letters"))
        await asyncio.sleep(0.005)
        async with asyncio.timeout(GUARD_SECONDS):
            await runtime.stop()
            done, _ = await asyncio.wait([reload])
        error = done.pop().exception()
        assert error is None or isinstance(error, DrainingError | NotReadyError)

    asyncio.run(scenario())


def test_all_models_are_reloaded_and_a_broken_one_holds_up_no_other(root: Path) -> None:
    async def scenario() -> None:
        runtime = Runtime(make_settings(root))
        runtime.begin_reload()  # too early: nothing happens
        await runtime.start()
        await runtime.wait_until_loaded()
        spoil(root / "en-fr", "cut")
        save_letters(root / "letters", 1)
        runtime.begin_reload()
        catalog = runtime.catalog
        assert catalog is not None
        await until(lambda: catalog.get("letters").revision == 1)
        assert catalog.get("en-fr").revision == 0
        await runtime.stop()
        runtime.begin_reload()

    asyncio.run(scenario())


def test_models_that_were_replaced_are_given_back_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the garbage collector, which does not look at what was there at the start."""
    loaded: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    def load_and_note(*arguments: Any) -> Model:
        model = load_model(*arguments)
        loaded.add(model)
        return model

    # Looking through all objects instead would break the tuples that the engine's thread is
    # making just then.
    monkeypatch.setattr(loading, "load_model", load_and_note)

    async def scenario() -> None:
        runtime = await started(root, "inline")
        gc.collect()
        alive = len(loaded)
        assert alive
        for turn in range(4):
            save_letters(root / "letters", 1 - turn % 2)
            gc.collect()  # of what saving made
            gc.disable()
            await runtime.reloader().reload("letters")
            await until(lambda: len(loaded) == alive)
            gc.enable()
        await runtime.stop()

    try:
        asyncio.run(scenario())
    finally:
        gc.enable()
