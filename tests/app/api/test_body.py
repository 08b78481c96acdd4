"""What counts as JSON in a body."""

import json
import time

import pytest
from fastapi.testclient import TestClient

from app.api.body import parse_json, shown_field
from app.exceptions import InvalidRequestError
from tests.app.api.test_errors import JSON, check_problem

BODY = '{"prompt": "a", "max_new_tokens": 1}'


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_only_utf_8_is_read(client: TestClient, encoding: str) -> None:
    response = client.post("/generate", content=BODY.encode(encoding), headers=JSON)
    check_problem(response, "invalid_json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8_is_read_with_or_without_its_mark(client: TestClient, encoding: str) -> None:
    response = client.post("/generate", content=BODY.encode(encoding), headers=JSON)
    assert response.status_code == 200


def test_json_is_declared_in_several_ways(client: TestClient) -> None:
    for declared in ("application/json", "Application/JSON; charset=utf-8", "application/x+json"):
        response = client.post("/generate", content=BODY, headers={"content-type": declared})
        assert response.status_code == 200
    for declared in ("text/json", "application/jsonx", "application/xml", "json", "x/a+json"):
        response = client.post("/generate", content=BODY, headers={"content-type": declared})
        check_problem(response, "unsupported_media_type")


def test_a_field_that_comes_twice_is_named(client: TestClient) -> None:
    for body, field in (
        ('{"prompt": "a", "prompt": "b"}', "prompt"),
        ('{"prompt": {"x": 1, "x": 1}}', "x"),
        ('{"\\ud800": 1, "\\ud800": 1}', "\\ud800"),
        (f'{{"{"y" * 500}": 1, "{"y" * 500}": 1}}', "y" * 100 + "..."),
    ):
        response = client.post("/generate", content=body, headers=JSON)
        problem = check_problem(response, "invalid_request")
        assert problem["errors"] == [{"field": field, "message": "is given more than once"}]


@pytest.mark.parametrize(
    ("path", "content", "field"),
    [
        ("/generate", b'{"prompt":[' + b"0," * 900_000 + b"0]}", "prompt.0"),
        ("/generate", b'{"prompt":"a","stop":[' + b"0," * 900_000 + b"0]}", "stop.0"),
        ("/generate", b'{"state":[' + b"0," * 900_000 + b"0]}", "state.0"),
        ("/translate", b'{"text":"a","protect":[' + b"0," * 900_000 + b"0]}", "protect.0"),
        ("/bleu", b'{"references":[' + b"0," * 900_000 + b"0]}", "references.0"),
        ("/bleu", b'{"references":[[' + b"0," * 900_000 + b"0]]}", "references.0.0"),
        ("/bleu", b'{"metrics":[' + b"0," * 900_000 + b"0]}", "metrics.0"),
        ("/generate", b"{" + b",".join(b'"%d":0' % i for i in range(150_000)) + b"}", ""),
    ],
)
def test_a_million_mistakes_do_not_take_a_million_errors(
    client: TestClient, path: str, content: bytes, field: str
) -> None:
    started_at = time.process_time()
    problem = check_problem(client.post(path, content=content, headers=JSON), "invalid_request")
    # An error for each took half a minute to write, in which nobody else was answered.
    assert time.process_time() - started_at < 5
    fields = [error["field"] for error in problem["errors"]]
    assert field in fields
    assert len(fields) <= 3


def test_parse_json() -> None:
    assert parse_json(b'{"a": {"b": 1}, "b": [{"a": 2}]}') == {"a": {"b": 1}, "b": [{"a": 2}]}
    with pytest.raises(InvalidRequestError):
        parse_json(b'{"a": {"b": 1, "b": 1}}')
    with pytest.raises(UnicodeDecodeError):
        parse_json(b'"\xff"')
    with pytest.raises(json.JSONDecodeError):
        parse_json(b"{")


def test_shown_field() -> None:
    assert shown_field("a.1") == "a.1"
    assert shown_field("x" * 200) == "x" * 100 + "..."
