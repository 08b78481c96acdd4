"""A real server in a process of its own, over a real socket."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from app.server import run_server
from app.settings import PROJECT_DIR
from tests.app.conftest import (
    ENDLESS,
    NO_TOKEN_LIMIT,
    TIMEOUT_SECONDS,
    Server,
    StartServer,
    is_alive,
    make_settings,
)

HARD = {**ENDLESS, "text": ENDLESS["text"] * 16, "beam_size": 16}


@pytest.fixture(scope="module")
def tireless(checkpoints_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for requests that end only when somebody ends them."""
    server = Server(checkpoints_dir, tmp_path_factory.mktemp("tireless"), **NO_TOKEN_LIMIT)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


def test_the_start_says_where_to_go(server: Server) -> None:
    assert server.greeting[1] == f"Try it:  {server.address}/"
    assert server.greeting[2] == "Models:  both-ways, en-fr, en-fr-small, fr-en-plain, letters"


def test_every_endpoint_answers(server: Server) -> None:
    client = server.client
    outputs = client.post("/generate", json={"prompt": "the", "seed": 1}).json()["outputs"]
    assert outputs[0]["seed"] == 1
    translations = client.post("/translate", json={"text": "go"}).json()["translations"]
    assert translations[0]["text"]
    scores = client.post("/bleu", json={"hypotheses": ["a"], "references": ["a"]}).json()["scores"]
    assert scores["bleu"]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|")
    assert len(client.get("/models").json()["models"]) == 5
    assert client.get("/models/letters").json()["kind"] == "language_model"
    assert client.get("/health/live").json() == {"status": "alive"}
    assert client.get("/health/ready").json() == {"status": "ready"}
    assert "gatehouse_queue_depth 0.0" in client.get("/metrics").text

    # The engine's process alone has torch, which takes seconds to load, and 250 MB.
    def has_torch(pid: int) -> bool:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()

    assert not has_torch(server.process.pid)
    assert has_torch(server.engine_pid())
    assert client.get("/docs").status_code == 200
    assert client.get("/openapi.json").status_code == 200


def test_a_body_over_the_limit_over_a_socket(server: Server) -> None:
    headers = {"content-type": "application/json"}
    response = server.client.post("/generate", content=b" " * 2_100_000, headers=headers)
    assert response.status_code == 413
    pieces = (b" " * 65_536 for _ in range(40))
    response = server.client.post("/generate", content=pieces, headers=headers)
    assert response.status_code == 413


def test_health_answers_while_a_long_request_runs(tireless: Server) -> None:
    seconds = []
    with tireless.begun("/translate", HARD):
        tireless.wait_until_it_decodes()
        for _ in range(50):
            started_at = time.monotonic()
            assert tireless.client.get("/health/ready").status_code == 200
            seconds.append(time.monotonic() - started_at)
        assert tireless.metric("gatehouse_texts_running") > 0
    # Most of them: this machine may be busy with something else, too.
    assert sorted(seconds)[len(seconds) // 2] < 1
    tireless.wait_for(tireless.is_idle)


def test_a_client_that_goes_away_frees_the_engine(tireless: Server) -> None:
    names = ("gatehouse_cancelled_total", "gatehouse_texts_cancelled_total")
    before = [tireless.metric(name) for name in names]
    with tireless.begun("/translate", HARD):
        tireless.wait_until_it_decodes()
    tireless.wait_for(lambda: tireless.metric(names[0]) == before[0] + 1)
    # By itself it would not have ended.
    tireless.wait_for(tireless.is_idle)
    assert tireless.metric(names[1]) == before[1] + len(HARD["text"])


def test_sigterm_finishes_what_runs_and_ends_with_0(start_server: StartServer) -> None:
    server = start_server(GATEHOUSE_DRAIN_TIMEOUT_SECONDS="50")
    engine_pid = server.engine_pid()
    statuses = []
    # Seconds of work, so that it is seen to run.
    body: dict[str, Any] = {**HARD, "text": ENDLESS["text"] * 8, "max_new_tokens": 1_000}

    def post() -> None:
        with httpx.Client(base_url=server.address, timeout=TIMEOUT_SECONDS) as client:
            statuses.append(client.post("/translate", json=body).status_code)

    thread = threading.Thread(target=post)
    thread.start()
    server.wait_for(lambda: server.metric("gatehouse_texts_accepted_total") == len(body["text"]))
    assert server.stop() == 0, server.log.read_text()
    assert not is_alive(engine_pid)
    thread.join()
    assert statuses == [200]
    assert "Traceback" not in server.log.read_text()


def test_signals_are_awaited_before_the_greeting(
    checkpoints_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class GreetedError(Exception):
        """Far enough."""

    def greet(*_: object, **__: object) -> None:
        raise GreetedError

    monkeypatch.setattr("app.server.print", greet, raising=False)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(GreetedError):
            run_server(make_settings(checkpoints_dir), listener, ["letters"])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        for number in (signal.SIGINT, signal.SIGTERM):
            assert signal.getsignal(number) not in (before[number], signal.SIG_DFL)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_signals_may_come_as_soon_as_the_greeting_is_there(start_server: StartServer) -> None:
    server = start_server(ready=False)
    server.process.send_signal(signal.SIGHUP)
    assert server.stop() == 0, server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_sigterm_does_not_wait_for_ever(start_server: StartServer) -> None:
    server = start_server(GATEHOUSE_DRAIN_TIMEOUT_SECONDS="1", **NO_TOKEN_LIMIT)
    answers = []

    def post() -> None:
        address = f"{server.address}/translate"
        answers.append(httpx.post(address, json=HARD, timeout=TIMEOUT_SECONDS))

    thread = threading.Thread(target=post)
    thread.start()
    server.wait_until_it_decodes()
    started_at = time.monotonic()
    assert server.stop() == 0, server.log.read_text()
    assert time.monotonic() - started_at < 20  # far less than the minute that it would get
    thread.join()
    # Whoever was cut off is told so, and may try again elsewhere.
    assert answers[0].status_code == 503
    assert answers[0].headers["content-type"] == "application/problem+json"
    assert answers[0].headers["retry-after"] == "1"
    assert answers[0].json()["code"] == "draining"
    assert "Traceback" not in server.log.read_text()


def run(*words: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEHOUSE_")}
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *words],
        env={**environment, "PYTHONPATH": str(PROJECT_DIR), **settings},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def test_mishaps_of_a_real_start(checkpoints_dir: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        taken = run("serve", "--port", port, "--checkpoints", str(checkpoints_dir), folder=tmp_path)
    empty = run("serve", "--port", "0", "--checkpoints", str(tmp_path), folder=tmp_path)
    (tmp_path / ".env").write_text("GATEHOUSE_PROT=1\n")
    unknown = run("serve", folder=tmp_path)
    for outcome, complaint in (
        (taken, "Address already in use; choose another with --port"),
        (empty, "no checkpoint found in"),
        (unknown, "unknown setting GATEHOUSE_PROT: did you mean GATEHOUSE_PORT?"),
    ):
        assert outcome.returncode == 1
        assert complaint in outcome.stderr
        assert outcome.stderr.count("\n") == 1


def test_damaged_weights_end_the_start_with_the_files_name(
    checkpoints_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "letters"
    folder.mkdir()
    for file in (checkpoints_dir / "letters").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    outcome = run("serve", "--port", "0", "--checkpoints", str(tmp_path), folder=tmp_path)
    assert outcome.returncode == 1
    assert "model.safetensors" in outcome.stderr.splitlines()[-1]
    assert "Traceback" not in outcome.stderr


def test_a_gpu_that_is_not_there_is_named(checkpoints_dir: Path, tmp_path: Path) -> None:
    words = ("--port", "0", "--device", "cuda:99", "--checkpoints", str(checkpoints_dir))
    outcome = run("serve", *words, folder=tmp_path)
    assert outcome.returncode == 1
    reason = outcome.stderr.splitlines()[-1]
    assert reason.startswith("gatehouse: device cuda:99 was asked for, but PyTorch")


def test_translate_by_a_server_equals_translate_by_the_models(
    server: Server, checkpoints_dir: Path
) -> None:
    content = "".join(f"{text}\n" for text in ["go", "", "we lost", "He is happy ."] * 60)
    command = [sys.executable, "-m", "app.cli", "translate", "--from", "en", "--to", "fr"]

    def run(*words: str) -> str:
        done = subprocess.run(
            [*command, *words],
            input=content,
            cwd=PROJECT_DIR,
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT_SECONDS * 2,
        )
        assert not done.stderr
        return done.stdout

    by_server = run("--server", server.address)
    assert by_server == run("--checkpoints", str(checkpoints_dir))
    assert by_server.count("\n") == 240


def test_translate_by_a_server_that_is_not_there() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "translate", "--server", "http://127.0.0.1:9"],
        input="go\n",
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gatehouse: line 1: http://127.0.0.1:9: ")
    assert done.stderr.count("\n") == 1
