"""A model is replaced under load: no request fails, and no answer is of two models."""

import asyncio
import json
import random
import shutil
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine.process import ProcessLink
from app.exceptions import NotReadyError, ReloadError, UnknownModelError
from app.runtime import Runtime
from app.service.generation import GenerationRequest
from app.service.translation import TranslationRequest
from models.checkpoint import build_model, save_checkpoint
from models.checkpoint_schema import Languages
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.decoding.params import DecodingParams
from models.tokenizers import CharacterTokenizer, Tokenizer, WordTokenizer
from tests.app.conftest import ENGLISH, FRENCH, make_settings, training_record
from tests.app.engine.fake_engine import until

BothEngines = pytest.mark.parametrize("engine", ["inline", "process"])
PROMPTS = ("", "a", "the time", "no end")
TEXTS = ("go", "we lost", "I am cold .")
ALPHABETS = ("abcdefghijklmnopqrstuvwxyz ", "\n'zyxwvutsrqponmlkjihgfedcba ")
"""The same letter has another token in each: weights of the one with a tokenizer of the other
would give a third text."""

Ask = Callable[[Runtime], Awaitable[str]]


def save_letters(folder: Path, variant: int, **changes: Any) -> None:
    torch.manual_seed(10 + variant)
    tokenizer = CharacterTokenizer.train(ALPHABETS[variant])
    config = LanguageModelConfig(
        vocabulary_size=tokenizer.vocabulary_size, hidden_size=12 + 7 * variant, **changes
    )
    _save(folder, config, {"text": tokenizer}, None)


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
    _save(folder, config, {"source": source, "target": wanted}, languages)


def _save(
    folder: Path,
    config: LanguageModelConfig | Seq2SeqConfig,
    tokenizers: dict[str, Tokenizer],
    languages: Languages | None,
) -> None:
    save_checkpoint(
        folder,
        build_model(config),
        tokenizers=tokenizers,
        languages=languages,
        training=training_record(folder.name),
        card="# A random model\n",
    )


SAVE = {"letters": save_letters, "en-fr": save_translator}


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
