"""``POST /admin/models/{name}/reload``, over HTTP and by SIGHUP."""

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient

from app.keys import make_key
from tests.app.conftest import Server, StartService
from tests.app.test_reloading import save_letters, save_translator, spoil

pytestmark = pytest.mark.chaos

SECRET, KEY = make_key("root", "admin")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_letters(tmp_path / "root" / "letters", 0)
    save_translator(tmp_path / "root" / "en-fr", 0)
    return tmp_path / "root"


def reload(client: TestClient | httpx.Client, name: str = "letters") -> Any:
    headers = {"Authorization": f"Bearer {SECRET}"}
    return client.post(f"/admin/models/{name}/reload", headers=headers)


def test_models_and_metrics_tell_the_new_fingerprint(
    root: Path, start_service: StartService
) -> None:
    client = start_service(checkpoints_dir=root, api_keys=(KEY.entry,))
    before = client.get("/models/letters").json()
    assert reload(client).json() == {
        "name": "letters",
        "changed": False,
        "fingerprint": before["fingerprint"],
        "previous_fingerprint": before["fingerprint"],
        "load_seconds": before["load_seconds"],
    }
    save_letters(root / "letters", 1)
    answer = reload(client).json()
    after = client.get("/models/letters").json()
    assert answer["changed"]
    assert answer["previous_fingerprint"] == before["fingerprint"] != after["fingerprint"]
    assert answer["fingerprint"] == after["fingerprint"]
    assert after["parameters"] != before["parameters"]
    metrics = client.get("/metrics").text
    assert before["fingerprint"] not in metrics
    assert f'fingerprint="{after["fingerprint"]}"' in metrics
    completion = client.post("/v1/completions", json={"model": "letters", "prompt": "a"}).json()
    assert completion["system_fingerprint"].endswith(after["fingerprint"][:16])


def test_a_broken_folder_is_a_problem_that_names_the_file(
    root: Path, start_service: StartService
) -> None:
    client = start_service(checkpoints_dir=root, api_keys=(KEY.entry,))
    spoil(root / "letters", "cut")
    response = reload(client)
    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "reload_failed"
    assert "letters/model.safetensors" in response.json()["detail"]
    assert client.post("/generate", json={"prompt": "a"}).status_code == 200
    assert client.get("/health/ready").status_code == 200
    unknown = reload(client, "nobody")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_model")
    own = {"Authorization": f"Bearer {SECRET}"}
    assert client.get("/admin/models/letters/reload", headers=own).status_code == 405


def test_only_an_admin_reloads(root: Path, start_service: StartService) -> None:
    client = start_service(checkpoints_dir=root, api_keys=(KEY.entry,))
    refused = client.post("/admin/models/letters/reload")
    assert (refused.status_code, refused.json()["code"]) == (401, "missing_api_key")


def test_a_service_that_never_loads_reloads_nothing(
    tmp_path: Path, start_service: StartService
) -> None:
    response = reload(start_service(checkpoints_dir=tmp_path, ready=False, api_keys=(KEY.entry,)))
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")


@pytest.fixture
def server(root: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(root, tmp_path, GATEHOUSE_API_KEYS=KEY.entry)
    yield server
    server.close()


def test_sighup_and_the_endpoint_over_a_socket_under_load(root: Path, server: Server) -> None:
    os.kill(server.process.pid, signal.SIGHUP)  # while it loads: no harm
    server.wait_until_ready()
    body = {"prompt": "the", "max_new_tokens": 40, "temperature": 0, "model": "letters"}
    statuses: list[int] = []
    texts: set[str] = set()
    is_over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.address, timeout=30) as client:
            while not is_over.is_set():
                response = client.post("/generate", json=body)
                statuses.append(response.status_code)
                texts.add(response.json()["outputs"][0]["text"])

    def fingerprint() -> str:
        return str(server.client.get("/models/letters").json()["fingerprint"])

    def differs(old: str) -> bool:
        return fingerprint() != old

    def has_answered(many: int) -> bool:
        return len(statuses) > many

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(6):
            answered, before = len(statuses), fingerprint()
            save_letters(root / "letters", 1 - turn % 2)
            if turn % 2:
                assert reload(server.client).json()["changed"]
                assert fingerprint() != before
            else:
                os.kill(server.process.pid, signal.SIGHUP)
                server.wait_for(partial(differs, before))
            server.wait_for(partial(has_answered, answered + 4))
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert len(texts) == 2, "a text of neither model"
    assert server.metric("gatehouse_texts_failed_total") == 0
    assert server.metric("gatehouse_engine_restarts_total") == 0
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()
