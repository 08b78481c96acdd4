"""Tiny random checkpoints, and services over them."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fastapi.testclient import TestClient

from app.main import create_app
from app.runtime import Runtime
from app.settings import Settings
from models.checkpoint import DataSource, Languages, TrainingRecord, build_model, save_checkpoint
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.tokenizers import CharacterTokenizer, Tokenizer, WordTokenizer

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,'!?\n"
ENGLISH = ["I am cold .", "He is happy .", "the time machine", "go", "we lost"]
FRENCH = ["J'ai froid .", "Il est content .", "la machine", "va", "nous avons perdu"]

StartService = Callable[..., TestClient]


def training_record(name: str) -> TrainingRecord:
    return TrainingRecord(
        name=name,
        created="2026-01-01",
        data=[DataSource(name="nothing", origin="made up", sha256="0" * 64)],
        licence="CC0-1.0",
        attribution="Nobody",
        seed=0,
        steps=0,
        metrics={"perplexity": 60.0},
        metrics_note="random weights",
    )


def save_language_model(
    folder: Path, *, bidirectional: bool = False, hidden_size: int = 12
) -> None:
    torch.manual_seed(1)
    tokenizer = CharacterTokenizer.train(CHARACTERS)
    config = LanguageModelConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        embedding_size=8,
        hidden_size=hidden_size,
        bidirectional=bidirectional,
    )
    _save(folder, config, {"text": tokenizer}, None)


def save_translator(
    folder: Path,
    source: str,
    target: str,
    *,
    decoder: Literal["context", "attention"] = "attention",
    hidden_size: int = 12,
) -> None:
    torch.manual_seed(2)
    texts = {"en": ENGLISH, "fr": FRENCH}
    tokenizers: dict[str, Tokenizer] = {
        "source": WordTokenizer.train(texts[source]),
        "target": WordTokenizer.train(texts[target]),
    }
    config = Seq2SeqConfig(
        source_vocabulary_size=tokenizers["source"].vocabulary_size,
        target_vocabulary_size=tokenizers["target"].vocabulary_size,
        embedding_size=8,
        hidden_size=hidden_size,
        decoder=decoder,
    )
    _save(folder, config, tokenizers, Languages(source=source, target=target))


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


@pytest.fixture(scope="session")
def checkpoints_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five models: two language models, one of them bidirectional, and three translators."""
    root = tmp_path_factory.mktemp("checkpoints")
    save_language_model(root / "letters")
    save_language_model(root / "both-ways", bidirectional=True, hidden_size=20)
    save_translator(root / "en-fr", "en", "fr", hidden_size=16)
    save_translator(root / "en-fr-small", "en", "fr", hidden_size=12)
    save_translator(root / "fr-en-plain", "fr", "en", decoder="context")
    return root


def make_settings(checkpoints_dir: Path, **overrides: Any) -> Settings:
    defaults: dict[str, Any] = {
        "checkpoints_dir": checkpoints_dir,
        "device": "cpu",
        "num_threads": 1,
        "drain_timeout_seconds": 5,
    }
    return Settings(**{**defaults, **overrides})


def wait_until_ready(client: TestClient, timeout_seconds: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while client.get("/health/ready").status_code != 200:
        assert time.monotonic() < deadline, client.get("/health/ready").text
        time.sleep(0.01)


@pytest.fixture(scope="session")
def client(checkpoints_dir: Path) -> Iterator[TestClient]:
    """A ready service over the tiny checkpoints, for tests that leave it as it was."""
    app = create_app(make_settings(checkpoints_dir))
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


@pytest.fixture
def start_service(checkpoints_dir: Path) -> Iterator[StartService]:
    """Starts services with settings or a runtime of a test's own, ready unless told otherwise."""
    with ExitStack() as stack:

        def start(*, ready: bool = True, runtime: Runtime | None = None, **overrides: Any) -> Any:
            settings = make_settings(checkpoints_dir, **overrides)
            app = create_app(settings, runtime)
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            if ready:
                wait_until_ready(client)
            return client

        yield start
