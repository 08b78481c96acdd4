"""Requests that go past FastAPI's router are answered as those that go through it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import Request, Response
from fastapi.testclient import TestClient

from app.api import direct
from app.api.libretranslate.routes import router as libretranslate_router
from app.api.openai.routes import router as openai_router
from app.api.routes import router

StartService = Callable[..., TestClient]

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("/generate", {"json": {"prompt": "a", "seed": 1, "max_new_tokens": 5}}),
    "events": ("/generate", {"json": {"prompt": "a", "seed": 1, "stream": True}}),
    "translate": ("/translate", {"json": {"text": ["go", "we lost"], "beam_size": 2}}),
    "LibreTranslate": ("/translate", {"json": {"source": "en", "target": "fr", "q": "go"}}),
    "a form": ("/translate", {"data": {"q": "go", "source": "en", "target": "fr"}}),
    "bleu": ("/bleu", {"json": {"hypotheses": ["va"], "references": [["va"]]}}),
    "OpenAI": ("/v1/completions", {"json": {"prompt": "a", "seed": 1, "max_tokens": 4}}),
    "detect": ("/detect", {"json": {"q": "This is English."}}),
    "no JSON": ("/translate", {"content": b"{", "headers": {"content-type": "application/json"}}),
    "no type": ("/generate", {"content": b"{}", "headers": {"content-type": "text/plain"}}),
    "no body": ("/bleu", {}),
    "a wrong field": ("/generate", {"json": {"prompt": "a", "temprature": 1}}),
    "a wrong model": ("/translate", {"json": {"text": "go", "model": "nobody"}}),
    "OpenAI's errors": ("/v1/completions", {"json": {"prompt": "a", "n": 0}}),
    "LibreTranslate's errors": (
        "/translate",
        {"json": {"source": "en", "target": "xx", "q": "go"}},
    ),
    "too large": ("/translate", {"json": {"text": "go " * 700_000}}),
    "a query": ("/translate?x=1", {"json": {"text": "go"}}),
    "a slash too many": ("/translate/", {"json": {"text": "go"}}),
}
VARYING = ("timings", "created", "id")


def told(client: TestClient, path: str, content: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
    answer = client.post(path, follow_redirects=False, **content)
    headers = dict(answer.headers)
    headers.pop("x-request-id")
    if not headers.get("content-type", "").endswith("json"):
        return answer.status_code, headers, answer.text.partition('"timings"')[0]
    headers.pop("content-length")  # times have more digits or fewer
    body = answer.json()
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name not in VARYING}
    return answer.status_code, headers, body


@pytest.fixture
def routed_client(start_service: StartService, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    with monkeypatch.context() as patch:
        patch.setattr(direct, "direct_handlers", lambda _: {})
        return start_service()


@pytest.mark.parametrize("case", REQUESTS)
def test_the_short_way_leads_to_the_same_answer(
    client: TestClient, routed_client: TestClient, case: str
) -> None:
    path, content = REQUESTS[case]
    assert told(client, path, content) == told(routed_client, path, content)


def test_which_endpoints_it_leads_to(client: TestClient) -> None:
    """All that take a body, by POST; whatever else is at these paths is the router's."""
    handlers = direct.direct_handlers((router, openai_router, libretranslate_router))
    assert handlers.keys() == {"/generate", "/translate", "/bleu", "/v1/completions", "/detect"}
    for path in handlers:
        answer = client.get(path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"


def test_what_nobody_expects_is_told_and_logged(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start_service()
    monkeypatch.setattr("app.service.service.Service.translate", lambda *_: 1 / 0)
    answer = client.post("/translate", json={"text": "go"})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"


@pytest.mark.parametrize(
    ("method", "path", "root_path", "is_direct"),
    [
        ("POST", "/translate", "", True),
        ("POST", "/here/translate", "/here", True),
        ("GET", "/translate", "", False),
        ("POST", "/there/translate", "/here", False),
        ("POST", "/metrics", "", False),
    ],
)
def test_what_goes_the_short_way(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str, root_path: str, is_direct: bool
) -> None:
    """A prefix that a proxy adds is no part of the path."""
    ways: list[str] = []

    async def answer(request: Request) -> Response:
        ways.append("direct")
        return Response()

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        ways.append("router")
        await Response()(scope, receive, send)

    monkeypatch.setattr(direct, "direct_handlers", lambda _: {"/translate": answer})
    scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": []}

    async def ignore(*_: Any) -> Any:
        return {"type": "http.request"}

    asyncio.run(direct.DirectMiddleware(behind, ())(scope, ignore, ignore))
    assert ways == ["direct" if is_direct else "router"]
