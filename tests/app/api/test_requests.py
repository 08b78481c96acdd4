"""What is refused, and the field that is named."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

REFERENCES = {"references": ["a"]}


def refuse(client: TestClient, path: str, body: Any) -> dict[str, Any]:
    # As ASCII, in which a lone surrogate can be spelled.
    headers = {"content-type": "application/json"}
    response = client.post(path, content=json.dumps(body), headers=headers)
    assert response.status_code == 422, response.text
    problem: dict[str, Any] = response.json()
    assert problem["code"] == "invalid_request"
    return problem


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt.1"),
        ({"prompt": ["a", "a\ud800"]}, "prompt.1"),
        ({"prompt": "a" * 5_001}, "prompt"),
        ({"prompt": ["a", "a" * 5_001]}, "prompt.1"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "aé"}, "prompt"),
        ({"prompt": "a", "modl": "x"}, "modl"),
        ({"prompt": "a", "model": ""}, "model"),
        ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompt": "a", "max_new_tokens": 1_025}, "max_new_tokens"),
        ({"prompt": "a", "max_new_tokens": "3"}, "max_new_tokens"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "temperature": 0.001}, "temperature"),
        ({"prompt": "a", "temperature": 1e300}, "temperature"),
        ({"prompt": "a", "top_k": -1}, "top_k"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "top_p": 1.1}, "top_p"),
        ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
        ({"prompt": "a", "repetition_penalty": 0.009}, "repetition_penalty"),
        ({"prompt": "a", "repetition_penalty": 10.1}, "repetition_penalty"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "seed": 2**53}, "seed"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop"),
        ({"prompt": "a", "stop": ["x", "\udfff"]}, "stop.1"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 17}, "n"),
        ({"prompt": "a", "n": 2, "temperature": 0}, "n"),
        ({"prompt": "a", "n": 3, "beam_size": 2}, "n"),
        ({"prompt": ["a"] * 20, "n": 16, "stop": "x"}, "n"),
        ({"prompt": "a", "beam_size": 17}, "beam_size"),
        ({"prompt": "a", "beam_size": 2, "temperature": 0.5}, "temperature"),
        ({"prompt": "a", "beam_size": 2, "top_k": 3}, "top_k"),
        ({"prompt": "a", "beam_size": 2, "top_p": 0.5}, "top_p"),
        ({"prompt": "a", "beam_size": 2, "repetition_penalty": 2}, "repetition_penalty"),
        ({"prompt": "a", "beam_size": 2, "stop": "x"}, "stop"),
        ({"prompt": "a", "length_penalty": -1}, "length_penalty"),
        ({"prompt": "a", "logprobs": 1}, "logprobs"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "stream": True, "beam_size": 2}, "beam_size"),
        ({"prompt": "a", "stream": True, "n": 2, "temperature": 0}, "n"),
        ({"prompt": "a", "timeout_seconds": 0}, "timeout_seconds"),
        ({"prompt": "a", "timeout_seconds": 60.5}, "timeout_seconds"),
        ({"prompt": "a", "stream": True, "timeout_seconds": 61}, "timeout_seconds"),
    ],
)
def test_generate_names_the_field(client: TestClient, body: Any, field: str) -> None:
    problem = refuse(client, "/generate", body)
    assert [error["field"] for error in problem["errors"]] == [field]
    assert field in problem["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "text"),
        ({"text": ["a", "b" * 5_001]}, "text.1"),
        ({"text": ["a"] * 65}, "text"),
        ({"text": "a", "source": "e"}, "source"),
        ({"text": "a", "beam_size": 0}, "beam_size"),
        ({"text": "a", "beam_size": 17}, "beam_size"),
        ({"text": "a", "num_hypotheses": 5}, "num_hypotheses"),
        ({"text": "a", "num_hypotheses": 2, "beam_size": 1}, "num_hypotheses"),
        ({"text": "a", "max_new_tokens": 5_000}, "max_new_tokens"),
        ({"text": "a", "temperature": 1}, "temperature"),
        ({"text": "a", "stream": True, "beam_size": 4}, "beam_size"),
        ({"text": "a", "stream": True, "num_hypotheses": 1}, "num_hypotheses"),
        ({"text": "a", "stream": True, "beam_trace": True}, "beam_trace"),
        ({"text": "a", "timeout_seconds": -1}, "timeout_seconds"),
        ({"text": "a", "timeout_seconds": 61}, "timeout_seconds"),
    ],
)
def test_translate_names_the_field(client: TestClient, body: Any, field: str) -> None:
    problem = refuse(client, "/translate", body)
    assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (REFERENCES, "hypotheses"),
        ({"hypotheses": ["a"]}, "references"),
        ({"hypotheses": [], **REFERENCES}, "hypotheses"),
        ({"hypotheses": ["a"], "sources": ["a"], **REFERENCES}, "hypotheses"),
        ({"hypotheses": ["a", "b"], **REFERENCES}, "references"),
        ({"sources": ["a", "b"], **REFERENCES}, "references"),
        ({"sources": ["a"] * 65, "references": ["a"] * 65}, "sources"),
        ({"sources": ["a" * 5_001], **REFERENCES}, "sources"),
        ({"hypotheses": ["a"], "references": [[]]}, "references.0"),
        ({"hypotheses": ["a"], "references": ["b" * 5_001]}, "references.0"),
        ({"hypotheses": ["a"], "metrics": [], **REFERENCES}, "metrics"),
        ({"hypotheses": ["a"], "metrics": ["rouge"], **REFERENCES}, "metrics.0"),
        ({"hypotheses": ["a " * 300], "metrics": ["ter"], **REFERENCES}, "metrics"),
        (
            {"hypotheses": ["a " * 60], "references": [["a"] * 16], "metrics": ["ter"]},
            "metrics",
        ),
        ({"hypotheses": ["a"], "tokenize": "spm", **REFERENCES}, "tokenize"),
        ({"hypotheses": ["a"], "smooth_method": "x", **REFERENCES}, "smooth_method"),
        ({"hypotheses": ["a"], "model": "en-fr", **REFERENCES}, "model"),
        ({"hypotheses": ["a"], "beam_size": 1, **REFERENCES}, "beam_size"),
        ({"hypotheses": ["a"], "timeout_seconds": 61, **REFERENCES}, "timeout_seconds"),
        ({"sources": ["a"], "timeout_seconds": 61, **REFERENCES}, "timeout_seconds"),
    ],
)
def test_bleu_names_the_field(client: TestClient, body: Any, field: str) -> None:
    problem = refuse(client, "/bleu", body)
    assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/generate", {"prompt": "a", "model": "nope"}, 404, "unknown_model"),
        ("/generate", {"prompt": "a", "model": "both-ways"}, 422, "unsupported_model"),
        ("/generate", {"prompt": "a", "model": "en-fr"}, 422, "unsupported_model"),
        ("/translate", {"text": "a", "model": "nope"}, 404, "unknown_model"),
        ("/translate", {"text": "a", "model": "letters"}, 422, "unsupported_model"),
        ("/translate", {"text": "a", "target": "de"}, 422, "unknown_language_pair"),
        (
            "/translate",
            {"text": "a", "model": "fr-en-plain", "alignments": True},
            422,
            "unsupported_model",
        ),
        ("/bleu", {"sources": ["a"], "model": "nope", **REFERENCES}, 404, "unknown_model"),
        ("/bleu", {"sources": ["a"], "source": "xx", **REFERENCES}, 422, "unknown_language_pair"),
    ],
)
def test_models_that_are_not_there_or_cannot(
    client: TestClient, path: str, body: Any, status: int, code: str
) -> None:
    response = client.post(path, json=body)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert "nope" not in response.text


def test_forms_that_are_allowed(client: TestClient) -> None:
    for path, body in (
        ("/generate", {"prompt": "a", "beam_size": 2, "temperature": 0, "stop": []}),
        ("/generate", {"prompt": "a", "max_new_tokens": 2, "stop": None, "seed": None}),
        ("/generate", {"prompt": "a", "max_new_tokens": 2, "temperature": 0.01}),
        ("/generate", {"prompt": "a", "max_new_tokens": 2, "timeout_seconds": 60}),
        ("/generate", {"prompt": "a", "max_new_tokens": 2, "stream": True, "beam_size": 1}),
        ("/translate", {"text": "a", "beam_size": 2, "num_hypotheses": 2}),
        ("/translate", {"text": "a", "num_hypotheses": 4, "beam_size": None}),
        ("/translate", {"text": "a", "beam_size": 1, "beam_trace": True}),
        ("/translate", {"text": "a", "stream": True, "beam_size": 1, "timeout_seconds": 0.5e2}),
        ("/bleu", {"hypotheses": ["a"], "references": [["a", "b"]], "metrics": ["bleu", "bleu"]}),
    ):
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
