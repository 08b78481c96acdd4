"""Tiny random checkpoints, and services over them: in this process and in one of their own."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx2 as httpx
import pytest
import torch
from fastapi.testclient import TestClient

from app.keys import ApiKey, KeyKind
from app.main import create_app
from app.runtime import Runtime
from app.settings import PROJECT_DIR, Settings
from models.checkpoint_model import build_model, save_checkpoint
from models.checkpoint_schema import DataSource, Languages, TrainingRecord
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.tokenizers import (
    CharacterTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordTokenizer,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,'!?\n"
ENGLISH = ["I am cold .", "He is happy .", "the time machine", "go", "we lost"]
FRENCH = ["J'ai froid .", "Il est content .", "la machine", "va", "nous avons perdu"]

TIMEOUT_SECONDS = 120
"""A guard, not a promise: a busy machine takes its time to start processes."""

NO_TOKEN_LIMIT = {"GATEHOUSE_MAX_NEW_TOKENS_LIMIT": "1000000"}
ENDLESS: dict[str, Any] = {
    "text": ["I am cold ."] * 4,
    "beam_size": 1,
    "max_new_tokens": 1_000_000,
}
"""Works until somebody ends it: greedy word models of random weights do not end by themselves."""

StartService = Callable[..., TestClient]


def known_key(name: str, kind: KeyKind) -> tuple[str, ApiKey]:
    """What :func:`app.keys.make_key` gives, but the same each time: tests are named after it."""
    secret = "gth_" + f"{name}-{kind}-".ljust(43, "x")
    return secret, ApiKey(name, kind, hashlib.sha256(secret.encode()).digest())


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
    save_random_model(folder, config, {"text": tokenizer}, None)


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
    save_random_model(folder, config, tokenizers, Languages(source=source, target=target))


def save_random_model(
    folder: Path,
    config: LanguageModelConfig | Seq2SeqConfig,
    tokenizers: dict[str, Tokenizer],
    languages: Languages | None,
) -> None:
    """Write a checkpoint of a model that has learnt nothing."""
    save_checkpoint(
        folder,
        build_model(config),
        tokenizers=tokenizers,
        languages=languages,
        training=training_record(folder.name),
        card="# A random model\n",
    )


def save_odd_models(root: Path) -> None:
    """Models in which rules show that the ordinary ones hide."""
    torch.manual_seed(3)
    letters = CharacterTokenizer.train("abc ")
    words = WordTokenizer.train(["the time machine was here and there"])
    pieces = SentencePieceTokenizer.train(ENGLISH * 20, 281, normalization="nmt_nfkc")
    for name, tokenizer in (("four-letters", letters), ("words", words)):
        config = LanguageModelConfig(vocabulary_size=tokenizer.vocabulary_size, hidden_size=8)
        save_random_model(root / name, config, {"text": tokenizer}, None)
    translator = Seq2SeqConfig(
        source_vocabulary_size=pieces.vocabulary_size,
        target_vocabulary_size=letters.vocabulary_size,
        embedding_size=8,
        hidden_size=8,
        decoder="attention",
    )
    languages = Languages(source="en", target="abc")
    save_random_model(root / "pieces", translator, {"source": pieces, "target": letters}, languages)


@pytest.fixture(scope="session", autouse=True)
def _no_engine_is_left_behind() -> Iterator[None]:
    """Set up first and torn down last: a thread in a step would crash the interpreter's exit."""
    yield
    assert "gatehouse-engine" not in {thread.name for thread in threading.enumerate()}


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
        "engine": "inline",
        "num_threads": 1,
        "drain_timeout_seconds": 5,
    }
    return Settings(**{**defaults, **overrides})


def wait_until_ready(client: TestClient, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
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


@pytest.fixture(scope="session")
def odd_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A ready service over :func:`save_odd_models`."""
    root = tmp_path_factory.mktemp("odd-checkpoints")
    save_odd_models(root)
    with TestClient(create_app(make_settings(root)), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


@pytest.fixture
def start_service(checkpoints_dir: Path) -> Iterator[StartService]:
    """Starts services with settings or a runtime of a test's own, ready unless told otherwise."""
    with ExitStack() as stack:

        def start(*, ready: bool = True, runtime: Runtime | None = None, **overrides: Any) -> Any:
            root = overrides.pop("checkpoints_dir", checkpoints_dir)
            settings = make_settings(root, **overrides)
            app = create_app(settings, runtime)
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            if ready:
                wait_until_ready(client)
            return client

        yield start


class Server:
    """``gatehouse serve`` on a free port, or on one that another has left."""

    def __init__(
        self, checkpoints_dir: Path, folder: Path, port: int = 0, /, **settings: str
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEHOUSE_")}
        environment |= {"PYTHONPATH": str(PROJECT_DIR), "PYTHONWARNINGS": "error"}
        environment |= {"GATEHOUSE_NUM_THREADS": "1", **settings}
        command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--device", "cpu"]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--checkpoints", str(checkpoints_dir)],
                env=environment,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.greeting = [self.process.stdout.readline().rstrip() for _ in range(3)]
        assert "listens on " in self.greeting[0], self.log.read_text()
        self.address = self.greeting[0].rpartition(" ")[2]
        # The server closes idle connections after 5 seconds: at the same time as the client by
        # itself, which might then ask on one that is just being closed.
        limits = httpx.Limits(keepalive_expiry=2)
        self.client = httpx.Client(base_url=self.address, timeout=TIMEOUT_SECONDS, limits=limits)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if self.client.get("/health/ready").status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def wait_until_not_ready(self) -> Any:
        """What it says as soon as it is not: a moment later it may say something else."""
        refusals: list[httpx.Response] = []

        def is_away() -> bool:
            refusals.append(self.client.get("/health/ready"))
            return refusals[-1].status_code == 503

        self.wait_for(is_away)
        return refusals[-1].json()

    def engine_pid(self) -> int:
        """Of the engine's process, which the server has started."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return int(children)

    def metric(self, name: str) -> float:
        """Sum of a metric's samples."""
        lines = self.client.get("/metrics").text.splitlines()
        found = [line for line in lines if re.match(rf"{name}[ {{]", line)]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def is_idle(self) -> bool:
        """Whether nothing is decoded, and nothing waits for it."""
        names = ("rows_running", "texts_running", "queue_depth")
        return not any(self.metric(f"gatehouse_{name}") for name in names)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.005)

    @contextmanager
    def begun(self, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
        """A request that was sent and whose answer nobody has read; the client goes at the end."""
        port = int(self.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS) as connection:
            connection.sendall(message(body, path))
            yield connection

    def wait_until_it_decodes(self) -> None:
        self.wait_for(lambda: self.metric("gatehouse_texts_running") > 0)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_SECONDS)

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


StartServer = Callable[..., Server]


def message(body: dict[str, Any], path: str = "/generate", *, cut: int = 0) -> bytes:
    """The bytes of a request, without the last of its body."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content[: len(content) - cut]


@pytest.fixture
def start_server(checkpoints_dir: Path, tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers over the tiny checkpoints, ready unless told otherwise."""
    with ExitStack() as stack:

        def start(*, ready: bool = True, **settings: str) -> Server:
            server = Server(checkpoints_dir, tmp_path, **settings)
            stack.callback(server.close)
            if ready:
                server.wait_until_ready()
            return server

        yield start


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet counts as dead."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium: for a module's tests alone, since others want the event loop for themselves."""
    from tests.app.browser import running_browser

    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ready server over the checkpoints that the project ships, for tests that leave it so."""
    folder = tmp_path_factory.mktemp("shipped")
    # No limit on tokens: what a test means to stop goes on until then, however late that is.
    server = Server(PROJECT_DIR / "checkpoints", folder, **NO_TOKEN_LIMIT)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def server(checkpoints_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ready server over the tiny checkpoints, over a real socket, for tests that leave it so."""
    folder = tmp_path_factory.mktemp("server")
    server = Server(checkpoints_dir, folder)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()
