"""Headers for browsers: on every answer, and other origins only where they are listed."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.security_headers import SECURITY_HEADERS
from app.exceptions import StartupError
from app.settings import load_settings

Start = Callable[..., TestClient]
ORIGIN = "https://example.org"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/health/live", None),
        ("GET", "/metrics", None),
        ("GET", "/nope", None),
        ("DELETE", "/generate", None),
        ("POST", "/generate", {"prompt": "a", "max_new_tokens": 1}),
        ("POST", "/generate", {"prompt": "a", "max_new_tokens": 1, "stream": True}),
        ("POST", "/generate", {"prompt": 3}),
        ("POST", "/v1/completions", {"prompt": 3}),
        ("POST", "/detect", {"q": 3}),
        ("GET", "/static-offline-docs/swagger-ui.css", None),
        ("GET", "/admin", None),
    ],
)
def test_an_answer_is_data_and_nothing_else(
    client: TestClient, method: str, path: str, body: Any
) -> None:
    response = client.request(method, path, json=body)
    for name, value in SECURITY_HEADERS.items():
        assert response.headers.get_list(name) == [value], name
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_pages_have_policies_of_their_own(client: TestClient, path: str) -> None:
    (policy,) = client.get(path).headers.get_list("content-security-policy")
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["frame-ancestors"] == "'none'"
    assert "unsafe" not in policy
    assert "http" not in policy
    for name in set(SECURITY_HEADERS) - {"Content-Security-Policy"}:
        assert client.get(path).headers.get_list(name) == [SECURITY_HEADERS[name]]


def test_the_docs_call_no_other_server(client: TestClient) -> None:
    assert '"validatorUrl": null' in client.get("/docs").text


# -------------------------------------------------------------------- CORS


def preflight(client: TestClient, origin: str = ORIGIN) -> Any:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        # OpenAI's clients send headers of their own.
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    return client.options("/generate", headers=headers)


def allowed(response: Any) -> str | None:
    value: str | None = response.headers.get("access-control-allow-origin")
    return value


def test_no_other_origin_is_let_in_by_default(client: TestClient) -> None:
    assert preflight(client).status_code == 405
    assert allowed(preflight(client)) is None
    assert allowed(client.get("/models", headers={"Origin": ORIGIN})) is None


def test_listed_origins_are_let_in_and_no_others(start_service: Start) -> None:
    client = start_service(cors_origins=(ORIGIN,))
    answer = preflight(client)
    assert answer.status_code == 200
    assert allowed(answer) == ORIGIN
    headers = answer.headers["access-control-allow-headers"]
    assert headers == "authorization,content-type,x-stainless-lang"
    assert allowed(client.get("/models", headers={"Origin": ORIGIN})) == ORIGIN
    for other in ("https://example.org.evil.net", "http://example.org", "null"):
        assert preflight(client, other).status_code == 400
        assert allowed(client.get("/models", headers={"Origin": other})) is None
    # Nobody's cookies or stored passwords are of any use here.
    assert "access-control-allow-credentials" not in answer.headers


def test_errors_too_can_be_read_by_a_listed_origin(start_service: Start) -> None:
    client = start_service(cors_origins=(ORIGIN,), key_requests_per_minute=1)
    headers = {"Origin": ORIGIN}
    client.get("/models", headers=headers)
    refused = client.get("/models", headers=headers)
    assert refused.status_code == 429
    assert allowed(refused) == ORIGIN
    assert "Retry-After" in refused.headers["access-control-expose-headers"]
    # A preflight carries no key, and counts for nobody.
    assert preflight(client).status_code == 200


@pytest.mark.parametrize(
    "value", ["example.org", "https://example.org/", "https://a b", "https://"]
)
def test_what_is_no_origin_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEHOUSE_CORS_ORIGINS", value)
    with pytest.raises(StartupError, match=r"GATEHOUSE_CORS_ORIGINS: .* is no origin"):
        load_settings(env_file=None)


def test_origins_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEHOUSE_CORS_ORIGINS", "https://a.example, http://localhost:3000,*")
    origins = load_settings(env_file=None).cors_origins
    assert origins == ("https://a.example", "http://localhost:3000", "*")
