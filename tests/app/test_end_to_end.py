"""A real server in a process of its own, over a real socket."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2 as httpx
import pytest

from app.settings import PROJECT_DIR
from tests.app.conftest import TIMEOUT_SECONDS, Server, StartServer, is_alive


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
    assert client.get("/docs").status_code == 200
    assert client.get("/openapi.json").status_code == 200


def test_a_body_over_the_limit_over_a_socket(server: Server) -> None:
    headers = {"content-type": "application/json"}
    response = server.client.post("/generate", content=b" " * 2_100_000, headers=headers)
    assert response.status_code == 413
    pieces = (b" " * 65_536 for _ in range(40))
    response = server.client.post("/generate", content=pieces, headers=headers)
    assert response.status_code == 413


def test_health_answers_while_a_long_request_runs(server: Server) -> None:
    body = {"prompt": ["the"] * 4, "n": 16, "max_new_tokens": 1_000}
    answers = []

    def post() -> None:
        with httpx.Client(base_url=server.address, timeout=60) as client:
            answers.append(client.post("/generate", json=body))

    thread = threading.Thread(target=post)
    thread.start()
    slowest_seconds = 0.0
    while thread.is_alive():
        started_at = time.monotonic()
        assert server.client.get("/health/ready").status_code == 200
        slowest_seconds = max(slowest_seconds, time.monotonic() - started_at)
    assert answers[0].status_code == 200
    assert slowest_seconds < 1


def test_a_client_that_goes_away_frees_the_engine(server: Server) -> None:
    body = {"text": ["I am cold ."] * 64, "beam_size": 16, "max_new_tokens": 1_000}
    with (
        httpx.Client(base_url=server.address, timeout=0.3) as hasty,
        pytest.raises(httpx.ReadTimeout),
    ):
        hasty.post("/translate", json=body)
    server.wait_for(lambda: server.metric("gatehouse_cancelled_total") == 1)
    gone_at = time.monotonic()
    server.wait_for(
        lambda: (
            not any(
                server.metric(f"gatehouse_{name}")
                for name in ("rows_running", "texts_running", "queue_depth")
            )
        )
    )
    assert time.monotonic() - gone_at < 1


def test_sigterm_finishes_what_runs_and_ends_with_0(start_server: StartServer) -> None:
    server = start_server()
    engine_pid = server.engine_pid()
    statuses = []

    def post() -> None:
        body = {"prompt": ["the"] * 2, "n": 16, "max_new_tokens": 500}
        with httpx.Client(base_url=server.address, timeout=60) as client:
            statuses.append(client.post("/generate", json=body).status_code)

    thread = threading.Thread(target=post)
    thread.start()
    server.wait_until_it_decodes()
    assert server.stop() == 0, server.log.read_text()
    assert not is_alive(engine_pid)
    thread.join()
    assert statuses == [200]
    assert "Traceback" not in server.log.read_text()


def test_sigterm_does_not_wait_for_ever(start_server: StartServer) -> None:
    server = start_server(GATEHOUSE_DRAIN_TIMEOUT_SECONDS="1")
    body = {"text": ["I am cold ."] * 64, "beam_size": 16, "max_new_tokens": 1_000}
    answers = []

    def post() -> None:
        answers.append(httpx.post(f"{server.address}/translate", json=body, timeout=60))

    thread = threading.Thread(target=post)
    thread.start()
    server.wait_until_it_decodes()
    started_at = time.monotonic()
    assert server.stop() == 0, server.log.read_text()
    assert time.monotonic() - started_at < 5
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
