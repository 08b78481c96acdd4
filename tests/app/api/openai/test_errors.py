"""Every error below /v1 has OpenAI's shape, whatever went wrong."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.errors import ERROR_KINDS, problem
from app.api.openai.errors import openai_error
from app.engine.request import DecodeRequest, EndReason, Event
from app.exceptions import QueueFullError
from app.runtime import Runtime
from tests.app.api.exchange import Exchange, scripted_app
from tests.app.api.test_routes import SlowLoader
from tests.app.conftest import make_settings
from tests.app.service.scripted_engine import end, token

StartService = Callable[..., TestClient]


def check(response: Any, status: int, code: str, param: str | None = None) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    message: str = error["message"]
    assert message
    return message


@pytest.mark.parametrize("code", ERROR_KINDS)
def test_every_kind_of_error_has_a_type_that_fits_its_status(code: str) -> None:
    answer = openai_error(problem(code, "what is wrong", headers={"Retry-After": "3"}))
    error = json.loads(bytes(answer.body))["error"]
    expected = {429: "rate_limit_error"}.get(
        answer.status_code,
        "server_error" if answer.status_code >= 500 else "invalid_request_error",
    )
    assert error["type"] == expected
    assert error["message"] == "what is wrong"
    assert answer.headers["retry-after"] == "3"


def test_requests_that_never_reach_an_endpoint(client: TestClient) -> None:
    check(client.get("/v1/nope"), 404, "not_found")
    check(client.post("/v1/chat/completions", json={}), 404, "not_found")
    response = client.get("/v1/completions")
    check(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    headers = {"content-type": "application/json"}
    url = "/v1/completions"
    check(client.post(url, content=b"{", headers=headers), 400, "invalid_json")
    check(client.post(url, content=b"[]", headers=headers), 400, "invalid_request")
    check(client.post(url, content=b"{}"), 415, "unsupported_media_type")
    check(client.post(url, content=b" " * 2_100_000, headers=headers), 413, "body_too_large")
    check(
        client.post(url, content=b'{"prompt": "a", "prompt": "b"}', headers=headers),
        400,
        "invalid_request",
        "prompt",
    )


def test_a_path_that_only_begins_like_the_dialect_has_native_errors(client: TestClient) -> None:
    assert client.get("/v1nope").json()["code"] == "not_found"


def test_models_that_do_not_complete(client: TestClient) -> None:
    def complete(model: str) -> Any:
        return client.post("/v1/completions", json={"prompt": "a", "model": model})

    check(complete("gpt-3.5-turbo-instruct"), 404, "model_not_found", "model")
    assert "translation" in check(complete("en-fr"), 404, "unsupported_model", "model")
    check(complete("both-ways"), 404, "unsupported_model", "model")
    for name in ("nope", "en-fr", "both-ways"):
        check(client.get(f"/v1/models/{name}"), 404, "model_not_found", "model")


def test_nothing_of_the_request_is_repeated(client: TestClient) -> None:
    secret = "Xyzzy"
    for body in ({"prompt": "a", "user": [secret]}, {"prompt": "a", "suffix": secret}):
        assert secret not in client.post("/v1/completions", json=body).text


def test_a_full_queue_says_when_to_try_again(start_service: StartService) -> None:
    client = start_service(queue_capacity=2, max_texts_per_request=2)
    body = {"prompt": ["a", "a"], "n": 2, "stop": "x"}
    check(client.post("/v1/completions", json=body), 400, "invalid_request", "n")

    async def scenario() -> None:
        app, runtime = scripted_app(_failing)
        runtime.scripted.refusal = QueueFullError("full", retry_after_seconds=7)
        for stream in (False, True):
            exchange = Exchange(app, "/v1/completions", {"prompt": "a", "stream": stream})
            await exchange.run()
            assert (exchange.status, exchange.headers["retry-after"]) == (429, "7")
            error = json.loads(exchange.body)["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")

    asyncio.run(scenario())


def test_before_the_models_are_loaded(start_service: StartService, checkpoints_dir: Path) -> None:
    slow = SlowLoader()
    runtime = Runtime(make_settings(checkpoints_dir), engine_loader=slow)
    client = start_service(runtime=runtime, ready=False)
    for response in (
        client.get("/v1/models"),
        client.get("/v1/models/letters"),
        client.post("/v1/completions", json={"prompt": "a"}),
    ):
        check(response, 503, "not_ready")
        assert response.headers["retry-after"] == "1"
    slow.may_go_on.set()


async def _failing(request: DecodeRequest) -> AsyncIterator[Event]:
    yield token(request)
    yield end(request, EndReason.FAILED)


def test_a_stream_that_fails_ends_with_the_error_instead_of_done() -> None:
    async def scenario() -> None:
        app, _ = scripted_app(_failing)
        exchange = Exchange(app, "/v1/completions", {"prompt": "a", "stream": True})
        await exchange.run()
        assert exchange.status == 200
        *_, last = exchange.body.decode().removesuffix("\n\n").split("\n\n")
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["code"], error["type"]) == ("engine_failed", "server_error")
        assert "[DONE]" not in exchange.body.decode()

    asyncio.run(scenario())


def test_a_bug_is_told_in_the_shape_and_without_details(start_service: StartService) -> None:
    client = start_service()
    application: Any = client.app

    async def route() -> None:
        raise RuntimeError("secret")

    application.add_api_route("/v1/boom", route)
    assert "secret" not in check(client.get("/v1/boom"), 500, "internal_error")
