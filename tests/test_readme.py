"""README.md tells the truth: its requests, sent to the shipped models, get the answers it shows."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.app.conftest import wait_until_ready

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXCHANGE = re.compile(
    r"```sh\ncurl -s localhost:8000(?P<path>/\S+)"
    r"(?: \\\n)?(?: +-H 'Content-Type: application/json' \\\n +-d '(?P<body>.*?)')?\n```\n+"
    r"```json\n(?P<answer>.*?)\n```",
    re.DOTALL,
)
STREAM = re.compile(
    r"```sh\ncurl -sN localhost:8000(?P<path>/\S+) -H 'Content-Type: application/json' \\\n"
    r" +-d '(?P<body>.*?)'\n```\n+```text\n(?P<answer>.*?)\n```",
    re.DOTALL,
)
EXCHANGES = [match.groupdict() for match in EXCHANGE.finditer(README)]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    settings = Settings(checkpoints_dir=ROOT / "checkpoints", device="cpu", num_threads=1)
    with TestClient(create_app(settings)) as client:
        wait_until_ready(client, timeout_seconds=90)
        yield client


def test_every_endpoint_is_shown() -> None:
    assert {exchange["path"] for exchange in EXCHANGES} >= {"/translate", "/generate", "/bleu"}


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange["path"])
def test_an_answer_is_what_the_service_returns(
    client: TestClient, exchange: dict[str, str | None]
) -> None:
    path, body = str(exchange["path"]), exchange["body"]
    response = client.get(path) if body is None else client.post(path, json=json.loads(body))
    assert response.status_code == 200, response.text
    assert_same(without_times(response.json()), without_times(json.loads(str(exchange["answer"]))))


def test_a_stream_is_what_the_service_returns(client: TestClient) -> None:
    (shown,) = [match.groupdict() for match in STREAM.finditer(README)]
    response = client.post(shown["path"], json=json.loads(shown["body"]))
    assert response.status_code == 200, response.text
    found, wanted = events_of(response.text), events_of(shown["answer"])
    assert [name for name, _ in found] == [name for name, _ in wanted]
    for (_, data), (_, shown_data) in zip(found, wanted, strict=True):
        assert_same(without_times(data), without_times(shown_data))


def events_of(text: str) -> list[tuple[str, Any]]:
    """Names and data of server-sent events."""
    events = re.findall(r"event: (\w+)\ndata: (.*)", text)
    return [(name, json.loads(data)) for name, data in events]


def without_times(answer: Any) -> Any:
    """The answer but for what differs from run to run and from machine to machine."""
    if isinstance(answer, dict):
        volatile = ("timings", "device", "load_seconds")
        return {key: without_times(value) for key, value in answer.items() if key not in volatile}
    return [without_times(item) for item in answer] if isinstance(answer, list) else answer


def assert_same(found: Any, shown: Any) -> None:
    """Equal, numbers within what another processor rounds differently."""
    if isinstance(shown, dict):
        assert found.keys() == shown.keys()
        for key, value in shown.items():
            assert_same(found[key], value)
    elif isinstance(shown, list):
        assert len(found) == len(shown)
        for one, other in zip(found, shown, strict=True):
            assert_same(one, other)
    elif isinstance(shown, float):
        assert found == pytest.approx(shown, rel=1e-3)
    else:
        assert found == shown
