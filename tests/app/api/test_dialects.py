"""Errors have the shape of the dialect that a path or a body belongs to."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

NATIVE, OPENAI, LIBRETRANSLATE = "application/problem+json", "openai", "libretranslate"
FORM = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
JSON = {"content-type": "application/json"}


def dialect_of(response: Any) -> str:
    if response.headers["content-type"] == NATIVE:
        return NATIVE
    error = response.json()["error"]
    return OPENAI if isinstance(error, dict) else LIBRETRANSLATE


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/generate", NATIVE),
        ("/translate", NATIVE),
        ("/models/v1", NATIVE),
        ("/v1x", NATIVE),
        ("/languagesx", NATIVE),
        ("/v1", OPENAI),
        ("/v1/", OPENAI),
        ("/v1/completions", OPENAI),
        ("/v1/embeddings", OPENAI),
        ("/detect", LIBRETRANSLATE),
        ("/frontend/nope", LIBRETRANSLATE),
        ("/languages/nope", LIBRETRANSLATE),
    ],
)
def test_paths(client: TestClient, path: str, dialect: str) -> None:
    response = client.get(path)
    assert response.status_code in (404, 405)
    assert dialect_of(response) == dialect


@pytest.mark.parametrize(
    ("content", "headers", "dialect"),
    [
        (b"{", JSON, NATIVE),
        (b'{"text": 3}', JSON, NATIVE),
        (b'{"q": "a", ', JSON, LIBRETRANSLATE),
        (b'{"target":"fr" , "q" :"\xff"}', JSON, LIBRETRANSLATE),
        (b'{"q": "a", "q": "b"}', JSON, LIBRETRANSLATE),
        (b'{"text": "{\\"q\\": 1}", ', JSON, NATIVE),
        (b'{"text": "q", "x": "q"', JSON, NATIVE),
        (b'["q"]', JSON, NATIVE),
        (b'{"q": "a"}', {"content-type": "text/plain"}, LIBRETRANSLATE),
        (b'{"text": "a"}', {"content-type": "text/plain"}, NATIVE),
        (b'{"q": 3}', JSON, LIBRETRANSLATE),
        (b'{"q": "a", "text": "a"}', JSON, LIBRETRANSLATE),
        (b"text=a", FORM, LIBRETRANSLATE),
        (b"q=a&target=xx", FORM, LIBRETRANSLATE),
        (b"q=" + b"x" * 2_100_000, FORM, LIBRETRANSLATE),
        (b'"' + b"x" * 2_100_000 + b'"', JSON, NATIVE),
    ],
)
def test_bodies_of_translate(
    client: TestClient, content: bytes, headers: dict[str, str], dialect: str
) -> None:
    response = client.post("/translate", content=content, headers=headers)
    assert response.status_code in (400, 413, 415, 422)
    assert dialect_of(response) == dialect
