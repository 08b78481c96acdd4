"""Every error is a problem, whatever went wrong, and repeats nothing of the request."""

import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.responses import StreamingResponse

import app.exceptions
from app.api.errors import ERROR_KINDS, MEDIA_TYPE
from app.exceptions import EngineFailedError, GatehouseError, QueueFullError, StartupError

JSON = {"content-type": "application/json"}


def check_problem(response: Any, code: str) -> dict[str, Any]:
    kind = ERROR_KINDS[code]
    assert response.status_code == kind.status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"urn:gatehouse:error:{code}"
    assert (problem["title"], problem["status"], problem["code"]) == (kind.title, kind.status, code)
    assert problem["detail"]
    return problem


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe", b"[" * 100_000, b'{"prompt": ' + b"9" * 5_000 + b"}", b'{"a": nul}'],
)
def test_a_body_that_is_no_json(client: TestClient, content: bytes) -> None:
    check_problem(client.post("/generate", content=content, headers=JSON), "invalid_json")


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"null"])
def test_a_body_that_is_no_object(client: TestClient, content: bytes) -> None:
    problem = check_problem(
        client.post("/generate", content=content, headers=JSON), "invalid_request"
    )
    assert problem["errors"][0]["field"] == ""


def test_a_body_that_is_not_declared_as_json(client: TestClient) -> None:
    for headers in ({"content-type": "text/plain"}, {}):
        response = client.post("/generate", content=b'{"prompt": "a"}', headers=headers)
        check_problem(response, "unsupported_media_type")


def test_numbers_that_json_does_not_have(client: TestClient) -> None:
    content = b'{"prompt": "a", "temperature": NaN, "top_p": Infinity}'
    problem = check_problem(
        client.post("/generate", content=content, headers=JSON), "invalid_request"
    )
    assert [error["field"] for error in problem["errors"]] == ["temperature", "top_p"]


def test_unknown_paths_and_methods(client: TestClient) -> None:
    check_problem(client.get("/nope"), "not_found")
    check_problem(client.get("/static-offline-docs/nope.js"), "not_found")
    response = client.get("/generate")
    check_problem(response, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_nothing_of_the_request_is_repeated(client: TestClient) -> None:
    secret = "Xyzzy"
    for body in (
        {"prompt": {"a": secret}},
        {"prompt": "a", "n": secret},
        {"prompt": "a", "model": secret},
        {"prompt": secret * 2_000},
        secret,
    ):
        response = client.post("/generate", json=body)
        assert response.status_code in (404, 422)
        assert secret not in response.text
    for path in (f"/{secret}", f"/models/{secret}"):
        assert secret not in client.get(path).text


def test_odd_names_of_fields_are_reported_safely(client: TestClient) -> None:
    body = {"prompt": "a", "x" * 5_000: 2, **{f"f{i}": i for i in range(500)}}
    problem = check_problem(client.post("/generate", json=body), "invalid_request")
    fields = [error["field"] for error in problem["errors"]]
    assert max(map(len, fields)) < 110
    assert len(fields) <= 20
    assert "and 498 more" in problem["detail"]
    for surrogate in ({"\ud800": 1}, {"prompt": {"\ud800": 1}}, {"prompt": ["\ud800"]}):
        response = client.post("/generate", content=json.dumps(surrogate), headers=JSON)
        check_problem(response, "invalid_request")


def test_every_exception_of_the_tree_has_a_status() -> None:
    def below(parent: type[GatehouseError]) -> list[type[GatehouseError]]:
        return [parent, *(leaf for child in parent.__subclasses__() for leaf in below(child))]

    codes = {kind.code for kind in below(GatehouseError) if kind.__module__ == "app.exceptions"}
    assert codes - {StartupError.code} <= set(ERROR_KINDS)
    documented = re.findall(r"\d{3} (\w+)", app.exceptions.__doc__ or "")
    assert set(documented) <= set(ERROR_KINDS)


def with_route(client: TestClient, error: Exception) -> Any:
    """Answers of a route that raises."""
    application: Any = client.app

    async def route() -> None:
        raise error

    application.add_api_route("/boom", route)
    return client.get("/boom")


def test_unexpected_exceptions_tell_no_details(
    start_service: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    client = start_service()
    response = with_route(client, RuntimeError("secret"))
    check_problem(response, "internal_error")
    assert "secret" not in response.text
    # The answer has what every other one has, and the log tells the error under its id.
    missing = set(client.get("/health/live").headers) - set(response.headers)
    assert not missing
    (logged,) = (each.exc_info for each in caplog.records if each.exc_info is not None)
    assert "secret" in str(logged)


def test_half_an_answer_is_cut_off(start_service: Callable[..., TestClient]) -> None:
    client = start_service()
    application: Any = client.app

    async def route() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "half"
            raise RuntimeError("secret")

        return StreamingResponse(parts())

    application.add_api_route("/half", route)
    raising = TestClient(application, raise_server_exceptions=True)
    with pytest.raises(RuntimeError, match="secret"):
        raising.get("/half")


def test_errors_that_pass_say_when_to_try_again(start_service: Callable[..., TestClient]) -> None:
    response = with_route(start_service(), QueueFullError("full", retry_after_seconds=7))
    check_problem(response, "queue_full")
    assert response.headers["retry-after"] == "7"
    response = with_route(start_service(), EngineFailedError("failed"))
    check_problem(response, "engine_failed")
    assert response.headers["retry-after"] == "1"


def test_an_error_without_a_status_is_internal(start_service: Callable[..., TestClient]) -> None:
    check_problem(with_route(start_service(), StartupError("secret path")), "internal_error")
