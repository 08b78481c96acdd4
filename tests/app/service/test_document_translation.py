"""Texts of any length at POST /translate: what is sent is what sentences alone would be."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.request import FinishReason
from app.service.document_parts import Candidate
from app.service.documents import Document, DocumentReader
from app.service.translation_result import best_distinct
from tests.app.api.exchange import read_events
from tests.app.api.test_routes import sample
from tests.app.conftest import ENGLISH, TIMEOUT_SECONDS, StartService

TEXT = "I am cold .  He is happy .\n\n go\nwe lost ! 😀 see https://example.org/x ."


def translate(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/translate", json=fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refused(client: TestClient, field: str, **fields: Any) -> str:
    response = client.post("/translate", json=fields)
    assert response.status_code == 422, response.text
    [error] = response.json()["errors"]
    assert error["field"] == field
    message: str = error["message"]
    return message


@pytest.mark.parametrize("fields", [{}, {"beam_size": 1}, {"num_hypotheses": 3}])
@pytest.mark.parametrize("sentence", ENGLISH)
def test_a_single_sentence_is_answered_as_without_split(
    client: TestClient, sentence: str, fields: dict[str, Any]
) -> None:
    plain = translate(client, text=sentence, **fields)
    split = translate(client, text=sentence, split="sentences", **fields)
    assert split["translations"][0]["score"] == pytest.approx(plain["translations"][0]["score"])
    for answer in (plain, split):
        for translation in answer["translations"]:
            for each in (translation, *translation.get("hypotheses", ())):
                del each["score"]
    assert split["translations"] == plain["translations"]
    assert split["usage"] == plain["usage"]


@settings(max_examples=15)
@given(st.lists(st.sampled_from(["I am cold .", "He is happy .", "go .", "we lost ."]), min_size=1))
def test_a_text_is_its_sentences_joined(client: TestClient, sentences: list[str]) -> None:
    alone = translate(client, text=sentences)["translations"]
    for between in ("\n", "\n\n  ", "\r\n"):
        whole = translate(client, text=between.join(sentences), split="sentences")
        [translation] = whole["translations"]
        assert translation["text"] == between.join(each["text"] for each in alone)
        assert translation["tokens"] == sum(each["tokens"] for each in alone)


@pytest.mark.parametrize("texts", [[TEXT], ["", TEXT, "  ", "42", "go"], [TEXT, TEXT]])
def test_a_stream_says_what_the_whole_answer_says(client: TestClient, texts: list[str]) -> None:
    body = {"text": texts, "split": "sentences", "beam_size": 1, "protect": ["happy"]}
    whole = translate(client, **body)
    response = client.post("/translate", json={**body, "stream": True})
    events = read_events(response.text)
    for index, translation in enumerate(whole["translations"]):
        own = [data for name, data in events if data.get("text_index") == index and name == "token"]
        assert "".join(data["text"] for data in own) == translation["text"]
        assert all(data["text"] for data in own)
        [finish] = [
            data for name, data in events if data.get("text_index") == index and name == "finish"
        ]
        del translation["text"]
        assert finish == {"text_index": index, **translation}
    name, done = events[-1]
    assert name == "done"
    assert done["usage"] == whole["usage"]


def test_what_is_protected_comes_through(client: TestClient) -> None:
    text = "I am {{cold}} . see https://example.org/x , me@example.org %s <b>go</b> 😀 Gatehouse 7"
    body = {"text": text, "split": "sentences", "protect": ["Gatehouse 7"]}
    [translation] = translate(client, **body)["translations"]
    for span in (
        *("{{cold}}", "https://example.org/x", "me@example.org", "%s", "<b>", "</b>", "😀"),
        "Gatehouse 7",
    ):
        assert span in translation["text"]


def test_hypotheses_of_a_text_differ(client: TestClient) -> None:
    body = {"text": "I am cold .\nHe is happy .", "split": "sentences", "num_hypotheses": 3}
    [translation] = translate(client, **body)["translations"]
    texts = [hypothesis["text"] for hypothesis in translation["hypotheses"]]
    assert texts[0] == translation["text"]
    assert len(set(texts)) == len(texts) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_counted_as_the_client_is_told(client: TestClient, stream: bool) -> None:
    def counted(direction: str) -> float:
        name = f"gatehouse_{direction}_tokens_total"
        return sample(client, name, model="en-fr")

    before = counted("input"), counted("output")
    # Of a sentence whose spans must come through, every hypothesis of the beam is looked at.
    body = {"text": "I have 3 books. He is happy.", "split": "sentences", "stream": stream}
    body |= {"beam_size": 1} if stream else {}
    response = client.post("/translate", json=body)
    usage = read_events(response.text)[-1][1]["usage"] if stream else response.json()["usage"]
    assert counted("input") - before[0] == usage["input_tokens"]
    assert counted("output") - before[1] == usage["output_tokens"]


def test_what_reads_the_same_in_pieces_is_one_hypothesis() -> None:
    same = [Candidate(text, -0.1, 1, FinishReason.END) for text in ("j'ai 3", "j'ai 3", "moi 3")]
    assert best_distinct(same, 3) == (same[0], same[2])


def test_what_does_not_fit_together_is_refused(client: TestClient) -> None:
    refused(client, "alignments", text="go", split="sentences", alignments=True)
    refused(client, "beam_trace", text="go", split="sentences", beam_trace=True)
    refused(client, "protect", text="go", protect=["go"])
    refused(client, "split", text="go", split="words")
    refused(client, "protect.0", text="go", split="sentences", protect=[""])
    assert "64" in refused(client, "protect", text="go", split="sentences", protect=["x"] * 65)


def test_a_text_may_be_longer_than_a_sentence_may_be(client: TestClient) -> None:
    text = "I am cold .\n" * 200
    assert len(translate(client, text=text, split="sentences")["translations"]) == 1
    long = "go . " * 1_100
    assert "5000" in refused(client, "text", text=long)
    assert "256 sentences" in refused(client, "text", text=long, split="sentences")
    assert "5001 characters" in refused(client, "text", text="a" * 5_001, split="sentences")
    assert "64 times 5000" in refused(client, "text", text="1" * 320_001, split="sentences")
    assert "64" in refused(client, "text", text=["a"] * 65, split="sentences")


def test_all_sentences_are_admitted_or_none(start_service: StartService) -> None:
    client = start_service(queue_capacity=4, max_texts_per_request=4)
    text = "I am cold .\n" * 5
    assert "4 sentences" in refused(client, "text", text=text, split="sentences")
    assert "gatehouse_texts_accepted_total 0.0" in client.get("/metrics").text
    translate(client, text="I am cold .\n" * 4, split="sentences")
    assert "gatehouse_texts_accepted_total 4.0" in client.get("/metrics").text


@pytest.mark.parametrize("body", [{}, {"stream": True}])
def test_others_are_answered_while_a_text_is_taken_apart(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]
) -> None:
    """Of odd texts that takes seconds."""
    begun, answered, read = threading.Event(), threading.Event(), DocumentReader.read

    def read_slowly(reader: DocumentReader, text: str) -> Document:
        begun.set()
        assert answered.wait(TIMEOUT_SECONDS)
        return read(reader, text)

    monkeypatch.setattr(DocumentReader, "read", read_slowly)
    with ThreadPoolExecutor(1) as pool:
        body = {"text": TEXT, "split": "sentences", **body}
        odd = pool.submit(client.post, "/translate", json=body)
        assert begun.wait(TIMEOUT_SECONDS)
        assert client.post("/translate", json={"text": "go"}).status_code == 200
        assert not odd.done()
        answered.set()
        assert odd.result().status_code == 200


def test_tags_are_placed_without_attention_too(start_service: StartService) -> None:
    body = {"text": "I <b>am</b> cold . He <i>is</i> happy .", "split": "sentences"}
    for settings_ in ({}, {"max_alignment_cells": 1}):
        client = start_service(**settings_)
        for pair in ({"source": "en", "target": "fr"}, {"source": "fr", "target": "en"}):
            [translation] = translate(client, **body, **pair)["translations"]
            text = translation["text"]
            assert text.index("<b>") < text.index("</b>") < text.index("<i>") < text.index("</i>")
            assert "alignment" not in translation


def test_tags_do_not_change_what_is_translated(client: TestClient) -> None:
    body = {"source": "en", "num_hypotheses": 2}
    plain = translate(client, text="I am cold .", **body)["translations"][0]
    marked = translate(client, text="I <b>am</b> cold .", split="sentences", **body)
    for one, other in zip(
        plain["hypotheses"], marked["translations"][0]["hypotheses"], strict=True
    ):
        text = other["text"].replace("<b>", "").replace("</b>", "")
        assert one["text"].split() == text.split()
        assert one["score"] == pytest.approx(other["score"])
