"""OpenAI's own client against a real server with the shipped models."""

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.app.conftest import Server

pytestmark = pytest.mark.slow

MODEL = "timemachine-gru"


@pytest.fixture(scope="module")
def openai_client(shipped: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{shipped.address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(openai_client: OpenAI) -> None:
    models = openai_client.models.list().data
    assert [model.id for model in models] == ["timemachine-gru", "timemachine-lstm"]
    assert openai_client.models.retrieve(MODEL) == models[0]
    with pytest.raises(openai.NotFoundError) as refusal:
        openai_client.models.retrieve("en-fr")
    assert refusal.value.code == "model_not_found"


def test_a_completion(openai_client: OpenAI, shipped: Server) -> None:
    completion = openai_client.completions.create(
        model=MODEL, prompt="the time traveller", max_tokens=20, temperature=0.7, seed=1, user="me"
    )
    body = {"prompt": "the time traveller", "max_new_tokens": 20, "temperature": 0.7, "seed": 1}
    native = shipped.client.post("/generate", json=body).json()
    assert completion.choices[0].text == native["outputs"][0]["text"]
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 20
    assert completion.system_fingerprint


def test_a_stream(openai_client: OpenAI) -> None:
    whole = openai_client.completions.create(
        model=MODEL, prompt=["the", "a"], n=2, seed=1, stop=[" "], logprobs=0
    )
    texts = [""] * 4
    usage = None
    for chunk in openai_client.completions.create(
        model=MODEL,
        prompt=["the", "a"],
        n=2,
        seed=1,
        stop=[" "],
        stream=True,
        stream_options={"include_usage": True},
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert usage == whole.usage


def test_errors_become_the_clients_exceptions(openai_client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        openai_client.completions.create(model=MODEL, prompt="a", presence_penalty=1)
    assert refusal.value.param == "presence_penalty"
    with pytest.raises(openai.BadRequestError, match="token ids"):
        openai_client.completions.create(model=MODEL, prompt=[1, 2, 3])
    with pytest.raises(openai.NotFoundError) as unknown:
        openai_client.completions.create(model="gpt-3.5-turbo-instruct", prompt="a")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        openai_client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "a"}]
        )
