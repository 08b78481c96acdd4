"""The description agrees with what the service does."""

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient

from app.api.errors import ERROR_KINDS, MEDIA_TYPE
from app.keys import make_key
from app.settings import PROJECT_DIR
from tests.app.api.exchange import read_events
from tests.app.conftest import wait_until_ready

SECRET, KEY = make_key("root", "admin")


@pytest.fixture(scope="module")
def schema(client: TestClient) -> dict[str, Any]:
    schema: dict[str, Any] = client.get("/openapi.json").json()
    return schema


def operations(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def try_examples(client: TestClient) -> int:
    """Sends every request of the description as it stands."""
    schema = client.get("/openapi.json").json()
    tried = 0
    for path, method, operation in operations(schema):
        bodies: list[Any] = [None]
        if "requestBody" in operation:
            examples = operation["requestBody"]["content"]["application/json"]["examples"]
            bodies = [example["value"] for example in examples.values()]
        names = {p["name"]: p["example"] for p in operation.get("parameters", [])}
        for body in bodies:
            headers = {"Authorization": f"Bearer {SECRET}"} if path.startswith("/admin") else {}
            response = client.request(method, path.format(**names), json=body, headers=headers)
            assert response.status_code == 200, f"{path} {body}: {response.text}"
            content = operation["responses"]["200"]["content"]
            media_type = response.headers["content-type"].partition(";")[0]
            assert media_type in content
            if media_type == "application/json":
                check(schema, content["application/json"]["schema"], response.json())
            if media_type == "text/event-stream":
                check_events(schema, content["text/event-stream"], response.text)
            tried += 1
    return tried


def check(schema: dict[str, Any], part: dict[str, Any], value: Any) -> None:
    jsonschema.validate(
        value, {**part, "components": schema["components"]}, jsonschema.Draft202012Validator
    )


def check_events(schema: dict[str, Any], content: dict[str, Any], text: str) -> None:
    parts = [item["properties"] for item in content["itemSchema"]["oneOf"]]
    if all(part["event"]["const"] == "message" for part in parts):
        check_chunks(schema, content, text)
        return
    described = {part["event"]["const"]: part["data"]["contentSchema"] for part in parts}
    assert list(described) == ["token", "finish", "done", "error"]
    events = read_events(text)
    for name, data in events:
        check(schema, described[name], data)
    assert [name for name, _ in events[-2:]] == ["finish", "done"]


def check_chunks(schema: dict[str, Any], content: dict[str, Any], text: str) -> None:
    *chunks, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunk, last = (item["properties"]["data"] for item in content["itemSchema"]["oneOf"])
    assert last == {"const": "[DONE]"}
    described = chunk["contentSchema"]
    for chunk in chunks:
        check(schema, described, json.loads(chunk.removeprefix("data: ")))


def test_every_example_answers_as_described(start_service: Callable[..., TestClient]) -> None:
    assert try_examples(start_service(api_keys=(KEY.entry,))) >= 14


def test_described_streams_are_such_streams(schema: dict[str, Any]) -> None:
    for path in ("/generate", "/translate", "/v1/completions"):
        content = schema["paths"][path]["post"]["responses"]["200"]["content"]
        assert list(content) == ["application/json", "text/event-stream"]
        check_events(schema, content["text/event-stream"], content["text/event-stream"]["example"])


@pytest.mark.slow
def test_every_example_answers_with_the_shipped_models(
    start_service: Callable[..., TestClient],
) -> None:
    checkpoints = PROJECT_DIR / "checkpoints"
    kinds = [path.read_text() for path in checkpoints.glob("*/config.json")]
    assert '"language_model"' in "".join(kinds)
    assert '"seq2seq"' in "".join(kinds)
    client = start_service(
        checkpoints_dir=checkpoints, num_threads=None, ready=False, api_keys=(KEY.entry,)
    )
    wait_until_ready(client, timeout_seconds=60)
    assert try_examples(client) >= 14


def test_limits_are_those_of_the_settings(start_service: Callable[..., TestClient]) -> None:
    client = start_service(
        max_texts_per_request=3, max_characters_per_text=77, request_timeout_seconds=90
    )
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    text = {"type": "string", "maxLength": 77}
    many = {"type": "array", "items": text, "minItems": 1, "maxItems": 3}
    assert schemas["GenerateBody"]["properties"]["prompt"]["anyOf"][0]["oneOf"] == [text, many]
    # What is taken apart may be longer.
    document = {"type": "string", "maxLength": 3 * 77}
    many = {"type": "array", "items": document, "minItems": 1, "maxItems": 3}
    assert schemas["TranslateBody"]["properties"]["text"]["oneOf"] == [document, many]
    unsplit = {"properties": {"text": {"maxLength": 77, "items": {"maxLength": 77}}}}
    assert schemas["TranslateBody"]["else"] == unsplit
    assert schemas["LibreTranslateBody"]["properties"]["q"]["oneOf"] == [document, many]
    assert schemas["DetectBody"]["properties"]["q"]["maxLength"] == 3 * 77
    assert schemas["GenerateBody"]["properties"]["max_new_tokens"]["anyOf"][0]["maximum"] == 1_024
    for body in ("GenerateBody", "TranslateBody", "BleuBody"):
        timeout = schemas[body]["properties"]["timeout_seconds"]["anyOf"][0]
        assert timeout == {"type": "number", "exclusiveMinimum": 0, "maximum": 90}


def test_nothing_internal_is_left_in_the_description(client: TestClient) -> None:
    text = client.get("/openapi.json").text
    assert "x-limit" not in text
    assert "HTTPValidationError" not in text
    assert "~" not in text


def test_unknown_fields_are_refused_everywhere(schema: dict[str, Any]) -> None:
    for name, part in schema["components"]["schemas"].items():
        if part.get("type") == "object":
            assert part["additionalProperties"] is False, name


def test_errors_are_described_with_their_codes(schema: dict[str, Any]) -> None:
    for path, _, operation in operations(schema):
        for status, response in operation["responses"].items():
            if status == "200":
                continue
            codes = re.findall(r"`(\w+)`", response["description"])
            assert codes
            shown = {
                code for content in response["content"].values() for code in content["examples"]
            }
            assert shown == set(codes), path
            for media_type, content in response["content"].items():
                for code, example in content["examples"].items():
                    value = example["value"]
                    check(schema, content["schema"], value)
                    if media_type == MEDIA_TYPE:
                        assert str(ERROR_KINDS[code].status) == status
                        assert value["code"] == code
                    else:
                        assert set(value) == {"error"}, path


def test_an_endpoint_of_two_dialects_describes_the_errors_of_both(schema: dict[str, Any]) -> None:
    responses = schema["paths"]["/translate"]["post"]["responses"]
    told = {
        media_type: {
            code: status
            for status, response in responses.items()
            if status != "200"
            for code in response["content"].get(media_type, {}).get("examples", ())
        }
        for media_type in (MEDIA_TYPE, "application/json")
    }
    assert set(told["application/json"]) == set(told[MEDIA_TYPE])
    assert told[MEDIA_TYPE]["invalid_request"] == "422"
    assert told["application/json"]["invalid_request"] == "400"
    assert "Retry-After" in responses["429"]["headers"]


def test_problems_fit_their_description(client: TestClient, schema: dict[str, Any]) -> None:
    part = schema["components"]["schemas"]["Problem"]
    for response in (
        client.get("/nope"),
        client.post("/generate", json={"prompt": [], "x": 1}),
        client.post("/translate", json={"text": "a", "target": "xx"}),
    ):
        check(schema, part, response.json())


def test_docs_are_served_from_here(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    files = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(files) >= 3
    # The list of schemas is folded.
    assert re.search(r'"defaultModelsExpandDepth": 0\b', page.text)
    for file in files:
        response = client.get(file)
        assert response.status_code == 200, file
        assert len(response.content) > 100


def test_docs_lead_to_the_page(client: TestClient) -> None:
    assert "(./)" in client.get("/openapi.json").json()["info"]["description"]
