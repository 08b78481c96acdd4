"""Behind a proxy's prefix (ASGI's ``root_path``) every path means what it means without one."""

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from app.api.scope import route_path
from app.exceptions import QueueFullError
from app.runtime import Runtime

StartService = Callable[..., TestClient]


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("/translate", "", "/translate"),
        ("/gatehouse/translate", "/gatehouse", "/translate"),
        ("/gatehouse/translate", "/gatehouse/", "/translate"),
        ("/translate", "/gatehouse", "/translate"),
        ("/gatehouse2/translate", "/gatehouse", "/gatehouse2/translate"),
        ("/gatehouse", "/gatehouse", "/"),
    ],
)
def test_the_path_behind_the_prefix(path: str, root: str, expected: str) -> None:
    assert route_path({"type": "http", "path": path, "root_path": root}) == expected


def test_a_scope_may_have_no_prefix() -> None:
    assert route_path({"type": "http", "path": "/translate"}) == "/translate"


def behind_a_prefix(client: TestClient) -> TestClient:
    prefixed = TestClient(client.app, root_path="/gatehouse", raise_server_exceptions=False)
    # On the event loop that the service is on: no answer would wake another one.
    prefixed.portal = client.portal
    return prefixed


def test_requests_are_counted(start_service: StartService) -> None:
    prefixed = behind_a_prefix(start_service())
    answer = prefixed.post("/gatehouse/translate", json={"text": "go"})
    assert answer.status_code == 200
    metrics = prefixed.get("/gatehouse/metrics").text
    assert 'gatehouse_request_seconds_count{endpoint="translate"} 1.0' in metrics


def test_errors_have_the_shape_of_their_dialect(client: TestClient) -> None:
    prefixed = behind_a_prefix(client)
    unknown = prefixed.post("/gatehouse/v1/completions", json={"prompt": "a", "model": "nobody"})
    assert isinstance(unknown.json()["error"], dict)
    form = prefixed.post("/gatehouse/translate", data={"q": "go", "target": "xx"})
    assert isinstance(form.json()["error"], str)


def test_a_full_queue_refuses(start_service: StartService, monkeypatch: pytest.MonkeyPatch) -> None:
    full = QueueFullError("the queue has no room for 1 more", retry_after_seconds=7)
    monkeypatch.setattr(Runtime, "queue_full", lambda _: full)
    prefixed = behind_a_prefix(start_service())
    # Nothing is done for it, or the body would be found wrong.
    refused = prefixed.post("/gatehouse/translate", content=b"{")
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "7"
