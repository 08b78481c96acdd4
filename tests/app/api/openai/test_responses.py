"""The OpenAI dialect says of an answer what the native one says."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from app.api.openai.responses import OpenAIModel, best_of
from app.engine.request import FinishReason
from app.service.generation import GeneratedText
from tests.app.service.scripted_engine import language_model
from tests.app.service.test_detokenization import TOKENIZERS


def complete(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json=fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def generate(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/generate", json=fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stop", [None, ["e", "th"]])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_the_texts_are_those_of_the_native_dialect(
    client: TestClient, echo: bool, stop: list[str] | None, temperature: float
) -> None:
    n = 2 if temperature else 1
    shared = {"prompt": ["the", "", "a"], "n": n, "seed": 3, "temperature": temperature}
    shared |= {"echo": echo, "stop": stop, "top_p": 0.9}
    native = generate(client, max_new_tokens=12, **shared)
    answer = complete(client, max_tokens=12, **shared)
    assert [choice["text"] for choice in answer["choices"]] == [
        output["text"] for output in native["outputs"]
    ]
    assert [choice["index"] for choice in answer["choices"]] == list(range(3 * n))
    assert [choice["finish_reason"] for choice in answer["choices"]] == [
        "length" if output["finish_reason"] == "length" else "stop" for output in native["outputs"]
    ]
    assert answer["usage"] == {
        "prompt_tokens": native["usage"]["input_tokens"],
        "completion_tokens": native["usage"]["output_tokens"],
        "total_tokens": sum(native["usage"].values()),
    }
    assert answer["model"] == native["model"] == "letters"
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")


def read_chunks(text: str) -> list[dict[str, Any]]:
    *chunks, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("fields", [{}, {"stop": "e"}, {"logprobs": 0}, {"echo": True}])
def test_a_stream_says_what_the_whole_answer_says(
    client: TestClient, include_usage: bool, fields: dict[str, Any]
) -> None:
    body = {"prompt": ["the", "a"], "n": 2, "seed": 5, "max_tokens": 9, **fields}
    whole = complete(client, **body)
    options = {"stream": True, "stream_options": {"include_usage": include_usage}}
    chunks = read_chunks(client.post("/v1/completions", json={**body, **options}).text)
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    if include_usage:
        last = chunks.pop()
        assert (last["choices"], last["usage"]) == ([], whole["usage"])
        assert all(chunk["usage"] is None for chunk in chunks)
    assert include_usage or all("usage" not in chunk for chunk in chunks)
    for choice in whole["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + [
            choice["finish_reason"]
        ]
        told = [c["logprobs"] for c in own if c["logprobs"] is not None]
        if choice["logprobs"] is None:
            assert not told
        else:
            for name in ("tokens", "token_logprobs", "text_offset"):
                assert [x for part in told for x in part[name]] == choice["logprobs"][name]


def test_offsets_point_at_the_tokens_in_the_text(client: TestClient) -> None:
    answer = complete(client, prompt="the", n=3, seed=2, max_tokens=20, logprobs=0)
    for choice in answer["choices"]:
        logprobs = choice["logprobs"]
        assert logprobs["top_logprobs"] is None
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            if token != "<eos>":
                assert choice["text"][offset : offset + len(token)] == token


def test_best_of_answers_with_the_best_of_those_that_n_would_answer_with(
    client: TestClient,
) -> None:
    body = {"prompt": ["the", "a"], "seed": 5, "max_tokens": 9, "logprobs": 0}
    drawn = complete(client, n=6, **body)
    answer = complete(client, n=2, best_of=6, **body)
    assert answer["usage"] == drawn["usage"]

    def mean(choice: dict[str, Any]) -> float:
        logprobs: list[float] = choice["logprobs"]["token_logprobs"]
        return sum(logprobs) / len(logprobs)

    for prompt_index in range(2):
        own = drawn["choices"][6 * prompt_index : 6 * prompt_index + 6]
        best = sorted(own, key=mean, reverse=True)[:2]
        kept = answer["choices"][2 * prompt_index : 2 * prompt_index + 2]
        assert [choice["text"] for choice in kept] == [choice["text"] for choice in best]


@given(st.lists(st.tuples(st.floats(-50, 0), st.integers(0, 9)), min_size=1), st.integers(1, 20))
def test_no_dropped_output_is_better_than_one_that_is_kept(
    scores: list[tuple[float, int]], count: int
) -> None:
    outputs = [
        GeneratedText(0, i, "", FinishReason.END, tokens, logprob, None, None)
        for i, (logprob, tokens) in enumerate(scores)
    ]
    kept = best_of(outputs, count)
    assert len(kept) == min(count, len(outputs))
    dropped = [output for output in outputs if output not in kept]
    means = [[o.logprob / max(1, o.tokens) for o in group] for group in (kept, dropped)]
    assert not dropped or min(means[0]) >= max(means[1])


def test_only_models_that_complete_are_offered(client: TestClient) -> None:
    models = client.get("/v1/models").json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["letters"]
    assert models["data"][0] == client.get("/v1/models/letters").json()
    assert models["data"][0]["created"] == 1_767_225_600


def test_a_date_that_is_none_does_not_hide_a_model() -> None:
    model = language_model("letters", TOKENIZERS["character"])
    object.__setattr__(model.info.training, "created", "some day")
    assert OpenAIModel.of(model).created == 0


def test_completions_are_counted(client: TestClient) -> None:
    complete(client, prompt="a")
    metrics = client.get("/metrics").text
    assert (
        'gatehouse_requests_total{endpoint="completions",model="letters",outcome="ok"}' in metrics
    )
