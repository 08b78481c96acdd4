"""Who may do what: keys, their kinds and limits, in every dialect."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.routing import Route

from app.api.access import runtime_of
from app.api.authorization import OPEN_FOLDERS, OPEN_PATHS
from app.main import create_app
from tests.app.api.test_errors import check_problem
from tests.app.conftest import known_key, make_settings, wait_until_ready

Start = Callable[..., TestClient]

ALICE, ALICES = known_key("alice", "user")
BOB, BOBS = known_key("bob", "user")
ROOT, ROOTS = known_key("root", "admin")
ENTRIES = (ALICES.entry, BOBS.entry, ROOTS.entry)
PROMPT = {"prompt": "a", "max_new_tokens": 2, "seed": 1}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def add_admin_routes(app: FastAPI) -> None:
    """Two endpoints as another module would add them, which know nothing of keys."""

    @app.post("/admin/models/{name}/reload")
    async def reload(name: str) -> dict[str, str]:
        return {"reloaded": name}

    @app.get("/admin")
    async def overview() -> dict[str, str]:
        return {"who": "admin"}


@pytest.fixture(scope="module")
def keyed(checkpoints_dir: Any) -> Iterator[TestClient]:
    """A service that asks for keys, with endpoints below /admin."""
    app = create_app(make_settings(checkpoints_dir, api_keys=ENTRIES))
    add_admin_routes(app)
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def closed(app: Any) -> list[tuple[str, str]]:
    """Every endpoint that takes a key, found by walking over the routes."""
    found = []
    for path, operations in app.openapi()["paths"].items():
        if path not in OPEN_PATHS:
            found += [(method.upper(), path) for method in operations]
    return found


def test_every_endpoint_is_closed_without_a_key_but_those_that_are_listed(
    keyed: TestClient,
) -> None:
    endpoints = closed(keyed.app)
    assert len(endpoints) > 10
    for method, path in endpoints:
        response = keyed.request(method, path.format(name="letters"), json={"q": "a"})
        # LibreTranslate's clients expect 400.
        is_libretranslate = path in ("/translate", "/detect")
        assert response.status_code == (400 if is_libretranslate else 401), path
    for method, path in (("GET", "/nope"), ("GET", "/docs/x"), ("DELETE", "/generate")):
        check_problem(keyed.request(method, path), "missing_api_key")
    # Nothing that is served is left out of the description but the pages, which are open.
    routes = [route for route in keyed.app.routes if isinstance(route, Route)]  # type: ignore[attr-defined]  # TestClient's app is a plain callable to mypy
    hidden = {route.path for route in routes} - {path for _, path in endpoints}
    assert hidden <= OPEN_PATHS | {"/admin"}


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_open_pages_need_no_key(keyed: TestClient, path: str) -> None:
    assert keyed.get(path).status_code == 200
    assert keyed.head(path).status_code == 200
    # Nor does one keep anybody out.
    assert keyed.get(path, headers=bearer("wrong")).status_code == 200


def test_open_folders_hold_files_alone(keyed: TestClient) -> None:
    assert keyed.get("/static/main.js").status_code == 200
    assert keyed.get("/static-offline-docs/swagger-ui.css").status_code == 200
    for folder in OPEN_FOLDERS:
        assert keyed.get(f"{folder}../generate").status_code in (401, 404, 405)
        assert keyed.get(f"{folder}%2e%2e/metrics").status_code == 404


@pytest.mark.parametrize("key", [ALICE, BOB, ROOT])
def test_a_key_opens_what_users_may_do(keyed: TestClient, key: str) -> None:
    assert keyed.post("/generate", json=PROMPT, headers=bearer(key)).status_code == 200
    assert keyed.get("/models", headers=bearer(key)).status_code == 200
    assert keyed.get("/metrics", headers=bearer(key)).status_code == 200
    lower = {"authorization": f"bearer   {key} "}
    assert keyed.get("/models", headers=lower).status_code == 200


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Bearer ", "missing_api_key"),
        (f"Basic {ALICE}", "missing_api_key"),
        (ALICE, "missing_api_key"),
        (f"Bearer {ALICE[:-1]}", "invalid_api_key"),
        (f"Bearer {ALICES.digest.hex()}", "invalid_api_key"),
        (f"Bearer {ALICES.entry}", "invalid_api_key"),
        (f"Bearer {ALICE} {ALICE}", "invalid_api_key"),
        (f"Bearer {'x' * 10_000}", "invalid_api_key"),
        ("Bearer \xff\xfe", "invalid_api_key"),
    ],
)
def test_anything_else_opens_nothing(keyed: TestClient, header: str | None, code: str) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    response = keyed.post("/generate", json=PROMPT, headers=headers)  # type: ignore[arg-type]  # httpx takes bytes
    check_problem(response, code)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_key_in_the_address_opens_nothing(keyed: TestClient) -> None:
    for name in ("api_key", "key", "access_token"):
        check_problem(keyed.get(f"/models?{name}={ALICE}"), "missing_api_key")
        assert keyed.post(f"/detect?{name}={ALICE}", data={"q": "a"}).status_code == 400


# ---------------------------------------------------------------- dialects


def test_the_openai_dialect_says_it_as_openai_does(keyed: TestClient) -> None:
    for headers, code in (({}, "missing_api_key"), (bearer("sk-x"), "invalid_api_key")):
        for response in (
            keyed.get("/v1/models", headers=headers),
            keyed.post("/v1/completions", json={"prompt": "a"}, headers=headers),
        ):
            assert response.status_code == 401
            error = response.json()["error"]
            assert error["type"] == "invalid_request_error"
            assert error["code"] == code
            assert error["param"] is None
            assert response.headers["www-authenticate"] == "Bearer"
    body = {"model": "letters", "prompt": "a", "max_tokens": 1}
    assert keyed.post("/v1/completions", json=body, headers=bearer(ALICE)).status_code == 200


@pytest.mark.parametrize("path", ["/translate", "/detect"])
@pytest.mark.parametrize("form", [True, False])
def test_libretranslates_clients_send_the_key_in_the_body(
    keyed: TestClient, path: str, form: bool
) -> None:
    def post(headers: dict[str, str] | None = None, **fields: Any) -> Any:
        body = {"q": "nous avons perdu", **fields}
        if path == "/translate":
            body |= {"source": "fr", "target": "en"}
        sent: dict[str, Any] = {"data": body} if form else {"json": body}
        return keyed.post(path, headers=headers, **sent)

    assert post(api_key=ALICE).status_code == 200
    assert post(bearer(ALICE)).status_code == 200
    # Where there are two, the header's counts.
    assert post(bearer(ALICE), api_key="wrong").status_code == 200
    # A header is looked at before a body in JSON has shown its dialect.
    is_shared = path == "/translate" and not form
    assert post(bearer("wrong"), api_key=ALICE).status_code == (401 if is_shared else 403)
    for response in (post(), post(api_key="")):
        assert response.status_code == 400
        assert response.json() == {"error": "Please contact the server operator to get an API key"}
    wrong = post(api_key="wrong")
    assert wrong.status_code == 403
    assert wrong.json() == {"error": "Invalid API key"}


def test_a_list_of_keys_in_a_form_is_no_key(keyed: TestClient) -> None:
    response = keyed.post("/detect", data={"q": "a", "api_key": [ALICE, ALICE]})
    assert response.status_code == 400


def test_a_native_body_holds_no_key(keyed: TestClient) -> None:
    body = {"text": "go", "api_key": ALICE}
    check_problem(keyed.post("/translate", json=body), "missing_api_key")
    check_problem(keyed.post("/translate", json={"text": "go"}), "missing_api_key")
    check_problem(
        keyed.post("/translate", json={"text": "go"}, headers=bearer("x")), "invalid_api_key"
    )
    translated = keyed.post("/translate", json={"text": "we lost"}, headers=bearer(ALICE))
    assert translated.status_code == 200


def test_an_endpoint_that_forgets_the_key_in_its_body_serves_nobody(checkpoints_dir: Any) -> None:
    app = create_app(make_settings(checkpoints_dir, api_keys=ENTRIES))

    async def forgetful(request: Request) -> Any:
        runtime_of(request)
        raise AssertionError("served")

    route = Route("/translate", forgetful, methods=["POST"])
    app.router.routes.insert(0, route)
    with TestClient(app, raise_server_exceptions=False) as client:
        check_problem(client.post("/translate", json={"text": "go"}), "missing_api_key")


def test_libretranslates_settings_tell_whether_a_key_is_needed(
    keyed: TestClient, client: TestClient
) -> None:
    for service, needed in ((keyed, True), (client, False)):
        settings = service.get("/frontend/settings").json()
        assert (settings["apiKeys"], settings["keyRequired"]) == (needed, needed)


# ------------------------------------------------------------------- admin


ADMIN_REQUESTS = (("POST", "/admin/models/letters/reload"), ("GET", "/admin"), ("GET", "/admin/x"))


@pytest.mark.parametrize(("method", "path"), ADMIN_REQUESTS)
def test_admin_endpoints_take_an_admin_key_alone(keyed: TestClient, method: str, path: str) -> None:
    check_problem(keyed.request(method, path), "missing_api_key")
    check_problem(keyed.request(method, path, headers=bearer("x")), "invalid_api_key")
    refused = keyed.request(method, path, headers=bearer(ALICE))
    check_problem(refused, "admin_key_required")
    assert refused.status_code == 403
    allowed = keyed.request(method, path, headers=bearer(ROOT))
    assert allowed.status_code == (404 if path == "/admin/x" else 200)


@pytest.mark.parametrize(
    "settings",
    [{}, {"api_keys": (ALICES.entry,)}, {"host": "0.0.0.0", "allow_anonymous": True}],
    ids=["no keys", "user keys", "waiver"],
)
def test_without_an_admin_key_nobody_is_admin(checkpoints_dir: Any, settings: Any) -> None:
    app = create_app(make_settings(checkpoints_dir, **settings))
    add_admin_routes(app)
    client = TestClient(app, raise_server_exceptions=False)
    for method, path in ADMIN_REQUESTS:
        for headers in ({}, bearer(ALICE), bearer(ROOT)):
            refused = client.request(method, path, headers=headers)
            check_problem(refused, "admin_disabled")
            assert refused.status_code == 403


def test_an_admin_key_alone_closes_nothing_else_on_this_machine(checkpoints_dir: Any) -> None:
    app = create_app(make_settings(checkpoints_dir, api_keys=(ROOTS.entry,)))
    add_admin_routes(app)
    client = TestClient(app)
    assert client.get("/metrics").status_code == 200
    # Programs for OpenAI send some key, whether one is needed or not.
    assert client.get("/metrics", headers=bearer("sk-none")).status_code == 200
    check_problem(client.get("/admin"), "missing_api_key")
    assert client.get("/admin", headers=bearer(ROOT)).status_code == 200


@pytest.mark.parametrize(
    "path", ["/admin/", "//admin", "/admin//x", "/%61dmin", "/ADMIN", "/static/../admin", "/adminx"]
)
def test_no_other_spelling_leads_past_the_check(keyed: TestClient, path: str) -> None:
    for headers in ({}, bearer(ALICE)):
        response = keyed.get(f"http://testserver{path}", headers=headers)
        assert response.status_code in (401, 403, 404)
        assert "who" not in response.json()


def test_behind_a_prefix_the_same_is_closed(checkpoints_dir: Any) -> None:
    app = create_app(make_settings(checkpoints_dir, api_keys=ENTRIES))
    add_admin_routes(app)
    client = TestClient(app, root_path="/gatehouse")
    assert client.get("/gatehouse/health/live").status_code == 200
    check_problem(client.get("/gatehouse/metrics"), "missing_api_key")
    check_problem(client.get("/gatehouse/admin", headers=bearer(ALICE)), "admin_key_required")
    assert client.get("/gatehouse/admin", headers=bearer(ROOT)).status_code == 200


# ------------------------------------------------------------------ limits


def test_requests_over_a_keys_limit_get_429(start_service: Start) -> None:
    client = start_service(api_keys=ENTRIES, key_requests_per_minute=2)
    for _ in range(2):
        assert client.get("/models", headers=bearer(ALICE)).status_code == 200
    refused = client.post("/generate", json=PROMPT, headers=bearer(ALICE))
    check_problem(refused, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.status_code == 429
    openai = client.get("/v1/models", headers=bearer(ALICE))
    assert openai.json()["error"]["type"] == "rate_limit_error"
    assert openai.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(openai.headers["retry-after"]) >= 1
    translate = client.post("/detect", json={"q": "a", "api_key": ALICE})
    assert translate.status_code == 429
    assert "2 requests" in translate.json()["error"]
    assert int(translate.headers["retry-after"]) >= 1
    # The others are not touched, and neither are the monitor and the health checks.
    assert client.get("/models", headers=bearer(BOB)).status_code == 200
    assert client.get("/metrics", headers=bearer(ALICE)).status_code == 200
    assert client.get("/health/ready", headers=bearer(ALICE)).status_code == 200


def test_tokens_over_a_keys_limit_get_429(start_service: Start) -> None:
    client = start_service(api_keys=ENTRIES, key_tokens_per_minute=20)
    body = {**PROMPT, "max_new_tokens": 10}
    used = 0
    while used < 20:
        answer = client.post("/generate", json=body, headers=bearer(ALICE))
        assert answer.status_code == 200, answer.text
        used += sum(answer.json()["usage"].values())
    refused = client.post("/generate", json=body, headers=bearer(ALICE))
    check_problem(refused, "rate_limit_exceeded")
    assert "20 tokens" in refused.json()["detail"]
    assert client.post("/generate", json=body, headers=bearer(BOB)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_the_tokens_of_every_dialect_count(start_service: Start, stream: bool) -> None:
    for path, body in (
        ("/generate", {**PROMPT, "stream": stream}),
        ("/v1/completions", {"model": "letters", "prompt": "a", "stream": stream}),
        ("/translate", {"text": "we lost", "stream": stream}),
        ("/translate", {"text": "we lost", "split": "sentences", "stream": stream}),
        ("/translate", {"q": "nous avons perdu", "source": "fr", "target": "en"}),
        ("/bleu", {"sources": ["we lost"], "references": ["nous avons perdu"]}),
    ):
        client = start_service(api_keys=ENTRIES, key_tokens_per_minute=1)
        assert client.post(path, json=body, headers=bearer(ALICE)).status_code == 200
        again = client.post(path, json=body, headers=bearer(ALICE))
        assert again.status_code == 429, (path, again.text)


def test_requests_without_a_key_share_one_keys_limits(start_service: Start) -> None:
    client = start_service(key_requests_per_minute=2)
    for headers in ({}, bearer("some")):
        assert client.get("/models", headers=headers).status_code == 200
    check_problem(client.get("/models", headers=bearer("other")), "rate_limit_exceeded")
    # An admin's is a key of its own.
    client = start_service(api_keys=(ROOTS.entry,), key_requests_per_minute=1)
    assert client.get("/models").status_code == 200
    check_problem(client.get("/models"), "rate_limit_exceeded")
    assert client.get("/models", headers=bearer(ROOT)).status_code == 200


def test_what_an_admin_does_is_not_limited(checkpoints_dir: Any) -> None:
    settings = make_settings(checkpoints_dir, api_keys=ENTRIES, key_requests_per_minute=1)
    app = create_app(settings)
    add_admin_routes(app)
    with TestClient(app) as client:
        for _ in range(3):
            assert client.get("/admin", headers=bearer(ROOT)).status_code == 200


# ------------------------------------------------------------- description


def test_the_description_says_where_a_key_is_needed(keyed: TestClient, client: TestClient) -> None:
    described = keyed.get("/openapi.json").json()
    assert described["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    needed: list[Any] = [{"ApiKey": []}]
    for path, operations in described["paths"].items():
        for operation in operations.values():
            assert operation.get("security", []) == ([] if path in OPEN_PATHS else needed), path
    without = client.get("/openapi.json").json()
    assert "securitySchemes" not in without["components"]
    assert "security" not in json.dumps(without["paths"])


# ----------------------------------------------------- nothing of a key is told


def test_no_key_is_in_an_answer_or_a_metric(start_service: Start) -> None:
    client = start_service(api_keys=ENTRIES, key_requests_per_minute=30)
    secrets = (ALICE, ROOT, "wrong-key-nobody-has", ALICES.digest.hex(), ROOTS.digest.hex())
    told = []
    for key in secrets:
        for headers, field in ((bearer(key), None), ({}, key)):
            for path, body in (
                ("/generate", {"prompt": ["a"], "api_key": field, "x": 1}),
                ("/translate", {"q": 3, "api_key": field, key: 1}),
                ("/detect", {"q": "a", "api_key": field}),
                ("/v1/completions", {"prompt": "a", "user": 3}),
            ):
                response = client.post(path, json=body, headers=headers)
                # A field's name is repeated where it does not exist; a value never is.
                told.append(response.text.replace(f"{key}: Extra", "").replace(f'"{key}"', ""))
                told.append(str(response.headers))
    told.append(client.get("/metrics", headers=bearer(ALICE)).text)
    told.append(client.get("/openapi.json").text)
    for text in told:
        for secret in secrets:
            assert secret not in text
    assert 'outcome="invalid_api_key"' in told[-2]
    assert "alice" not in told[-2]
