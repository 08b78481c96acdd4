"""LibreTranslate's own Python client against a real server with the shipped models."""

from urllib.error import HTTPError

import pytest
from libretranslatepy import (  # type: ignore[import-untyped]  # it has no types
    LibreTranslateAPI,
)

from tests.app.conftest import Server

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("key", [None, "some key"])
def test_the_client_translates(shipped: Server, key: str | None) -> None:
    client = LibreTranslateAPI(shipped.address, key)
    assert client.translate("I am cold.", "en", "fr") == "J'ai froid."
    assert client.translate("I am cold. Go & see!\n", "auto", "fr").startswith("J'ai froid. ")
    assert client.detect("Il est content.")[0]["language"] == "fr"
    assert {"code": "en", "name": "English", "targets": ["fr"]} in client.languages()


def test_an_unknown_pair_is_the_clients_error(shipped: Server) -> None:
    with pytest.raises(HTTPError) as refusal:
        LibreTranslateAPI(shipped.address).translate("I am cold.", "en", "es")
    with refusal.value as answer:
        assert answer.code == 400
        assert b"en to fr" in answer.read()


def test_a_page(shipped: Server) -> None:
    page = '<p class="x">I am cold. He is happy.</p><script>let cold;</script>'
    body = {"q": page, "source": "en", "target": "fr", "format": "html"}
    text = shipped.client.post("/translate", data=body).json()["translatedText"]
    assert text == '<p class="x">J\'ai froid. Il est heureux.</p><script>let cold;</script>'


def test_a_sentence_with_tags_is_translated_as_one(shipped: Server) -> None:
    page = '<p>She has a <a href="/x">black</a> <i>cat</i>.</p>'
    body = {"q": page, "source": "en", "target": "fr", "format": "html"}
    text = shipped.client.post("/translate", data=body).json()["translatedText"]
    assert text == '<p>Elle a un <i>chat</i> <a href="/x">noir</a>.</p>'


def test_a_text_of_several_paragraphs(shipped: Server) -> None:
    text = "I am cold. He is happy.\n\n  Go home! 😀 See https://example.org/a?b=1.\r\n"
    body = {"text": text, "split": "sentences"}
    translation = shipped.client.post("/translate", json=body).json()["translations"][0]["text"]
    assert translation.startswith("J'ai froid. Il est heureux.\n\n  ")
    assert translation.endswith("\r\n")
    for span in ("😀", "https://example.org/a?b=1"):
        assert span in translation
