"""What the OpenAI dialect refuses, and what it asks of the service."""

from contextlib import suppress
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from app.api.openai.requests import DEFAULT_MAX_TOKENS, CompletionBody
from app.exceptions import InvalidRequestError
from app.service.limits import Limits

LIMITS = Limits(
    max_texts=4,
    max_segments=4,
    max_characters=100,
    max_new_tokens=50,
    default_max_new_tokens=40,
    max_alignment_cells=100,
    max_decodings=64,
    timeout_seconds=10,
)

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [464, 640]}, "prompt"),
    ({"prompt": [[464], [640]]}, "prompt"),
    ({"prompt": "a" * 5_001}, "prompt"),
    ({"prompt": "aé"}, "prompt"),
    ({"suffix": "b"}, "suffix"),
    ({"logit_bias": {"50256": -100}}, "logit_bias"),
    ({"presence_penalty": 0.1}, "presence_penalty"),
    ({"presence_penalty": True}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"logprobs": 1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 0, "echo": True}, "logprobs"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1_025}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 2, "temperature": 0}, "n"),
    ({"best_of": 2, "temperature": 0}, "best_of"),
    ({"n": 3, "best_of": 2}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"seed": -1}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        "stream_options.include_obfuscation",
    ),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": 0.001}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"user": 3}, "user"),
    ({"top_k": 3}, "top_k"),
    ({"max_new_tokens": 3}, "max_new_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_what_cannot_be_done_is_refused_by_name(
    client: TestClient, fields: dict[str, Any], param: str
) -> None:
    response = client.post("/v1/completions", json={"prompt": "a", **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert param.rpartition(".")[2] in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_request")


def test_token_ids_are_refused_with_what_to_do_instead(client: TestClient) -> None:
    response = client.post("/v1/completions", json={"prompt": [1, 2]})
    assert "send text" in response.json()["error"]["message"]


def test_a_parameter_that_asks_for_nothing_is_taken(client: TestClient) -> None:
    plain = {"prompt": "a", "seed": 1, "max_tokens": 8}
    neutral: dict[str, Any] = {
        "suffix": None,
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "user": "somebody",
        "echo": None,
        "n": None,
        "best_of": None,
        "stop": None,
        "stream": None,
        "stream_options": None,
        "logprobs": None,
        "temperature": None,
        "top_p": None,
    }
    answers = [
        client.post("/v1/completions", json=body).json() for body in (plain, {**plain, **neutral})
    ]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_defaults_are_those_of_the_reference() -> None:
    params = CompletionBody(prompt="a").to_request(LIMITS).params
    assert (params.max_new_tokens, params.temperature, params.top_p, params.num_outputs) == (
        DEFAULT_MAX_TOKENS,
        1.0,
        1.0,
        1,
    )


@given(
    n=st.none() | st.integers(1, 16),
    best_of=st.none() | st.integers(1, 16),
    temperature=st.none() | st.sampled_from([0.0, 0.01, 0.7, 2.0]),
    echo=st.none() | st.booleans(),
    logprobs=st.sampled_from([None, 0]),
    stream=st.none() | st.booleans(),
    include_usage=st.none() | st.booleans(),
)
def test_whatever_is_not_refused_is_done(include_usage: bool | None, **fields: Any) -> None:
    options = None if include_usage is None else {"include_usage": include_usage}
    body = CompletionBody.model_validate({"prompt": "a", "stream_options": options, **fields})
    request = None
    with suppress(InvalidRequestError):
        request = body.to_request(LIMITS)
    if request is None:
        return
    drawn, wanted = fields["best_of"] or fields["n"] or 1, fields["n"] or 1
    assert request.params.num_outputs == drawn >= wanted
    assert drawn == wanted or not fields["stream"]
    assert drawn == 1 or request.params.is_sampled
    assert request.echo == bool(fields["echo"])
    assert request.logprobs == (fields["logprobs"] is not None)
    assert not (request.echo and request.logprobs)
    assert body.includes_usage == bool(include_usage)
    assert bool(fields["stream"]) or options is None
