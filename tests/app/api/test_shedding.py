"""A request for which the queue has no room is refused before anything is done for it."""

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.exceptions import QueueFullError
from app.runtime import Runtime

StartService = Callable[..., TestClient]

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("/generate", {"json": {"prompt": "a"}}),
    "stream": ("/generate", {"json": {"prompt": "a", "stream": True}}),
    "translate": ("/translate", {"json": {"text": "go"}}),
    "a q in a text": ("/translate", {"json": {"text": 'go "q": go'}}),
    "LibreTranslate": ("/translate", {"json": {"source": "en", "target": "fr", "q": "go"}}),
    "a form": ("/translate", {"data": {"q": "go", "source": "en", "target": "fr"}}),
    "OpenAI": ("/v1/completions", {"json": {"prompt": "a"}}),
    "an id": ("/generate", {"json": {"prompt": "a"}, "headers": {"X-Request-ID": "one"}}),
}


def full() -> QueueFullError:
    return QueueFullError("the queue has no room for 1 more", retry_after_seconds=7)


@pytest.fixture
def shedding_client(start_service: StartService, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(Runtime, "queue_full", lambda _: full())
    return start_service()


@pytest.mark.parametrize("case", REQUESTS)
def test_the_answer_is_that_of_a_request_which_came_as_far_as_the_queue(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    path, content = REQUESTS[case]
    with monkeypatch.context() as patch:
        patch.setattr("app.engine.books.Books.accept", refuse)
        expected = start_service().post(path, **content)
    monkeypatch.setattr(Runtime, "queue_full", lambda _: full())
    found = start_service().post(path, **content)
    assert found.status_code == expected.status_code == 429
    assert found.json() == expected.json()
    given = content.get("headers", {}).get("X-Request-ID")
    for answer in (found, expected):
        request_id = answer.headers.pop("x-request-id")
        assert given is None or request_id == given
    assert dict(found.headers) == dict(expected.headers)
    assert found.headers["retry-after"] == "7"


def refuse(*_: object) -> None:
    raise full()


def test_nothing_is_done_for_it(shedding_client: TestClient) -> None:
    broken = shedding_client.post("/translate", content=b"{", headers={"content-type": "text/csv"})
    assert broken.json()["code"] == "queue_full"


def test_what_needs_no_place_is_served(shedding_client: TestClient) -> None:
    score = {"hypotheses": ["a b c d"], "references": ["a b c d"]}
    assert shedding_client.post("/bleu", json=score).status_code == 200
    assert shedding_client.get("/models").status_code == 200
    assert shedding_client.get("/health/ready").status_code == 200
    assert shedding_client.get("/translate").status_code == 405


def test_all_are_counted_and_one_line_tells_of_them(
    shedding_client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "app.api.shedding"):
        for _ in range(3):
            shedding_client.post("/generate", json={"prompt": "a"})
        deadline = time.monotonic() + 10
        while not (lines := [r for r in caplog.records if r.name == "app.api.shedding"]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    told = [(vars(line)["outcome"], vars(line)["requests"]) for line in lines]
    assert sum(count for _, count in told) == 3
    assert {outcome for outcome, _ in told} == {"queue_full"}
    metrics = shedding_client.get("/metrics").text
    labels = 'endpoint="generate",model="",outcome="queue_full"'
    assert f"gatehouse_requests_total{{{labels}}} 3.0" in metrics
    assert 'gatehouse_rejected_total{reason="queue_full"} 3.0' in metrics
    assert 'gatehouse_request_seconds_count{endpoint="generate"} 3.0' in metrics
