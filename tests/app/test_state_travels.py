"""A text that is cut and gone on from, over HTTP, is the text that was never cut."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.api.errors import ERROR_KINDS
from app.main import create_app
from models.checkpoint_model import build_model, save_checkpoint
from models.config import LanguageModelConfig
from models.tokenizers import SentencePieceTokenizer, Tokenizer, WordTokenizer
from tests.app.conftest import (
    ENGLISH,
    Server,
    make_settings,
    save_language_model,
    save_translator,
    training_record,
    wait_until_ready,
)

KEY = "a secret of thirty-two characters"
STATE_CODES = {"state_cut", "state_forged", "state_outdated", "state_foreign"}

Client = httpx.Client | TestClient


def save_sharp_model(folder: Path, tokenizer: Tokenizer, cell: Any) -> None:
    """Its outputs depend on the past, and are of many different tokens all the same."""
    torch.manual_seed(4)
    config = LanguageModelConfig(
        vocabulary_size=tokenizer.vocabulary_size, hidden_size=30, num_layers=2, cell=cell
    )
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    save_checkpoint(
        folder,
        model,
        tokenizers={"text": tokenizer},
        languages=None,
        training=training_record(folder.name),
        card="# A random model\n",
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("travelling")
    save_language_model(root / "letters", hidden_size=15)
    save_language_model(root / "other-letters", hidden_size=16)
    save_language_model(root / "both-ways", bidirectional=True)
    save_translator(root / "en-fr", "en", "fr")
    pieces = SentencePieceTokenizer.train(ENGLISH * 20, 281)
    save_sharp_model(root / "pieces", pieces, "lstm")
    words = WordTokenizer.train(["the time machine was here and there"])
    save_sharp_model(root / "words", words, "gru")
    return root


Start = Callable[..., TestClient]


@pytest.fixture(scope="module")
def start(root: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(**overrides: Any) -> TestClient:
            chosen = {"state_key": KEY, **overrides}
            app = create_app(make_settings(root, **chosen))
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            wait_until_ready(client)
            return client

        yield start


@pytest.fixture(scope="module")
def here(start: Start) -> TestClient:
    """A service whose engine is on a thread."""
    return start()


@pytest.fixture(scope="module")
def there(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service whose engine is a process, with the same key."""
    folder = tmp_path_factory.mktemp("server")
    server = Server(root, folder, GATEHOUSE_STATE_KEY=KEY)
    try:
        server.wait_until_ready()
        yield server.client
    finally:
        server.close()


def generate(client: Client, **body: Any) -> list[dict[str, Any]]:
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    outputs: list[dict[str, Any]] = response.json()["outputs"]
    return outputs


def stream(client: Client, **body: Any) -> list[dict[str, Any]]:
    """The same outputs, put together from events."""
    response = client.post("/generate", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    outputs: dict[tuple[int, int], dict[str, Any]] = {}
    for block in response.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        if lines.get("event") not in ("token", "finish"):
            assert lines.get("event") in (None, "done"), block
            continue
        data = json.loads(lines["data"])
        output = outputs.setdefault((data["prompt_index"], data["index"]), {"text": ""})
        text = output["text"] + data.get("text", "")
        logprobs = output.get("token_logprobs", []) + data.pop("token_logprobs", [])
        output |= {**data, "text": text, "token_logprobs": logprobs}
    return [outputs[place] for place in sorted(outputs)]


def refused(client: Client, **body: Any) -> tuple[int, str, str]:
    response = client.post("/generate", json=body)
    problem = response.json()
    return response.status_code, problem["code"], problem["errors"][0]["field"]


def joined(*parts: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Tokens of texts put together; where their text begins, counted from the first's beginning."""
    found, before = [], 0
    for part in parts:
        found += [
            (each["token"], each["logprob"], each["text_offset"] + before)
            for each in part["token_logprobs"]
        ]
        before += len(part["text"])
    return found


@dataclass(frozen=True)
class Cut:
    body: dict[str, Any]
    lengths: list[int]
    ways: list[int]


bodies = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["letters", "pieces", "words"]),
        "prompt": st.sampled_from(["", "the", "the time", " a "]),
        "seed": st.integers(0, 2**53 - 1),
        "temperature": st.sampled_from([0, 0.7, 1.0]),
        "repetition_penalty": st.sampled_from([1, 1.5]),
        "logprobs": st.just(True),
    },
    optional={
        "stop": st.lists(st.text("abcde \ufffdt", min_size=1, max_size=3), min_size=1, max_size=3)
    },
)
cuts = st.builds(
    Cut,
    bodies,
    st.lists(st.integers(1, 9), min_size=2, max_size=4),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(cut=cuts)
def test_a_text_cut_anywhere_is_the_text_that_was_never_cut(
    here: TestClient, there: httpx.Client, cut: Cut
) -> None:
    """On another service and in streams, with stop strings and characters of several bytes."""
    (whole,) = generate(here, max_new_tokens=sum(cut.lengths), **cut.body)
    parts: list[dict[str, Any]] = []
    body = cut.body
    for way, length in zip(cut.ways, cut.lengths, strict=False):
        ask = stream if way % 2 else generate
        client = there if way // 2 else here
        (part,) = ask(client, max_new_tokens=length, return_state=True, **body)
        parts.append(part)
        if part["finish_reason"] != "length":
            break
        body = {k: v for k, v in cut.body.items() if k not in ("prompt", "seed")}
        body["state"] = part["state"]
    last = parts[-1]
    text = "".join(part["text"] for part in parts)
    if last["finish_reason"] == "length":
        # Nothing follows: what the last one held back is shown.
        text += last["pending_text"]
    assert text == whole["text"]
    assert joined(*parts) == joined(whole)
    assert last["finish_reason"] == whole["finish_reason"]
    assert sum(part["tokens"] for part in parts) == whole["tokens"]
    assert {part["seed"] for part in parts} == {whole["seed"]}


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(
    model=st.sampled_from(["letters", "pieces"]),
    seed=st.integers(0, 2**32),
    stop=st.sampled_from(["e", "a", "t", "ab", "\ufffd"]),
    way=st.integers(0, 1),
)
def test_a_text_that_was_stopped_goes_on_behind_the_stop_string(
    here: TestClient, model: str, seed: int, stop: str, way: int
) -> None:
    body = {"model": model, "temperature": 0.9, "logprobs": True}
    (whole,) = generate(here, prompt="the", seed=seed, max_new_tokens=40, **body)
    text, tokens, start = "", 0, {"prompt": "the", "seed": seed}
    while tokens < 40:
        (part,) = (stream if way else generate)(
            here, stop=stop, max_new_tokens=40 - tokens, return_state=True, **body, **start
        )
        tokens += part["tokens"]
        text += part["text"]
        start = {"state": part["state"]}
        if part["finish_reason"] == "stop":
            text += stop
            if tokens == 40:
                text += part["pending_text"]
            continue
        text += part["pending_text"]
        assert part["finish_reason"] == whole["finish_reason"]
        break
    assert text == whole["text"]
    assert tokens == whole["tokens"]


def test_an_output_that_ended_ends_again_or_goes_on_behind_a_prompt(here: TestClient) -> None:
    body = {"model": "words", "temperature": 1.0, "max_new_tokens": 100}
    (ended,) = generate(here, prompt="the", seed=4, return_state=True, **body)
    assert ended["finish_reason"] == "end"
    assert ended["pending_text"] == ""
    (again,) = generate(here, state=ended["state"], **body)
    assert (again["text"], again["tokens"], again["finish_reason"]) == ("", 1, "end")
    (behind,) = generate(here, state=ended["state"], prompt="time", seed=9, **body)
    (whole,) = generate(here, prompt=f"the{ended['text']} time", seed=9, **body)
    assert same(behind) == same(whole)


def same(output: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in output.items() if k != "prompt_index"}


@pytest.mark.parametrize(
    "how", [{"seed": 5}, {"temperature": 0}, {"beam_size": 4, "n": 2}, {"seed": 5, "n": 3}]
)
def test_a_prompt_behind_a_state_is_as_all_of_the_text(
    here: TestClient, how: dict[str, Any]
) -> None:
    (part,) = generate(here, prompt="The time", seed=1, max_new_tokens=9, return_state=True)
    text = "The time" + part["text"] + " machine"
    behind = generate(here, state=part["state"], prompt=" machine", max_new_tokens=12, **how)
    assert behind == generate(here, prompt=text, max_new_tokens=12, **how)
    # Of the prompt alone an echo has something to say.
    (echoed, *_) = generate(
        here, state=part["state"], prompt=" machine", max_new_tokens=12, echo=True, **how
    )
    assert echoed["text"] == " machine" + behind[0]["text"]


def test_a_conversation_with_a_seed_is_reproducible(here: TestClient) -> None:
    (first,) = generate(here, prompt="The", seed=1, max_new_tokens=9, return_state=True)
    body = {"state": first["state"], "prompt": " time", "max_new_tokens": 9, "return_state": True}
    (second,) = generate(here, **body)
    assert [second] == generate(here, **body)
    # It is a seed of its own, which gives the same again.
    assert second["seed"] != first["seed"]
    assert [second] == generate(here, **body, seed=second["seed"])


def test_what_drew_nothing_brings_no_seed(here: TestClient) -> None:
    (greedy,) = generate(here, prompt="The", temperature=0, max_new_tokens=3, return_state=True)
    seeds = {generate(here, state=greedy["state"], max_new_tokens=1)[0]["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_one_state_forks(here: TestClient) -> None:
    body = {"temperature": 1.0, "max_new_tokens": 12}
    (part,) = generate(here, prompt="The", seed=3, return_state=True, **body)
    forks = generate(here, state=part["state"], n=3, **body)
    assert [fork["seed"] for fork in forks] == [3, 4, 5]
    (whole,) = generate(here, prompt="The", seed=3, temperature=1.0, max_new_tokens=24)
    assert part["text"] + forks[0]["text"] == whole["text"]
    assert len({fork["text"] for fork in forks}) == 3
    for fork in forks:
        (alone,) = generate(here, state=part["state"], seed=fork["seed"], **body)
        assert alone["text"] == fork["text"]
    # With stop strings each output is decoded on its own.
    stopped = generate(here, state=part["state"], n=3, stop="~", **body)
    assert [fork["text"] for fork in stopped] == [fork["text"] for fork in forks]


def test_every_output_has_a_state_of_its_own(here: TestClient) -> None:
    body = {"temperature": 1.0, "max_new_tokens": 6}
    prompts = ["The", "a time"]
    outputs = generate(here, prompt=prompts, n=2, seed=8, return_state=True, **body)
    longer = generate(here, prompt=prompts, n=2, seed=8, temperature=1.0, max_new_tokens=12)
    rest = generate(here, state=[output["state"] for output in outputs], **body)
    assert [output["prompt_index"] for output in rest] == [0, 1, 2, 3]
    for output, last, whole in zip(outputs, rest, longer, strict=True):
        assert output["text"] + last["text"] == whole["text"]
        assert last["seed"] == whole["seed"]


def test_hypotheses_of_a_beam_go_on(here: TestClient) -> None:
    hypotheses = generate(here, prompt="The", beam_size=3, n=3, max_new_tokens=5, return_state=True)
    rest = generate(
        here,
        state=[each["state"] for each in hypotheses],
        prompt="x",
        temperature=0,
        max_new_tokens=9,
    )
    for hypothesis, last in zip(hypotheses, rest, strict=True):
        text = f"The{hypothesis['text']}x"
        (whole,) = generate(here, prompt=text, temperature=0, max_new_tokens=9)
        assert same(last) == same(whole)


def test_states_and_prompts_go_together(here: TestClient) -> None:
    body = {"temperature": 0, "max_new_tokens": 4}
    parts = generate(here, prompt=["The", "a", "b"], return_state=True, **body)
    states = [part["state"] for part in parts]
    for state, prompt, pairs in (
        (states[0], ["x", "y"], [(0, "x"), (0, "y")]),
        (states, "x", [(0, "x"), (1, "x"), (2, "x")]),
        (states[:2], ["x", "y"], [(0, "x"), (1, "y")]),
        (states[:1], "x", [(0, "x")]),
        (states[0], ["x", ""], [(0, "x"), (0, "")]),
    ):
        outputs = generate(here, state=state, prompt=prompt, **body)
        alone = [generate(here, state=states[i], prompt=text, **body)[0] for i, text in pairs]
        assert [output["prompt_index"] for output in outputs] == list(range(len(pairs)))
        assert [same(output) for output in outputs] == [same(output) for output in alone]
    assert refused(here, state=states, prompt=["x", "y"]) == (422, "invalid_request", "state")
    assert refused(here, state=states[:1] * 65) == (422, "invalid_request", "state")
    assert refused(here, state=[]) == (422, "invalid_request", "state")
    assert refused(here) == (422, "invalid_request", "prompt")
    assert refused(here, prompt=None, state=None) == (422, "invalid_request", "prompt")


def test_nothing_is_read_again(here: TestClient) -> None:
    def ask(**body: Any) -> dict[str, Any]:
        response = here.post("/generate", json={"max_new_tokens": 3, "temperature": 0, **body})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    state = ask(prompt="the time machine " * 50, return_state=True)["outputs"][0]["state"]
    before = positions_read(here)
    assert ask(state=state)["usage"] == {"input_tokens": 1, "output_tokens": 3}
    assert positions_read(here) - before == 1
    assert ask(state=state, prompt="abc")["usage"]["input_tokens"] == 4


def metric(client: Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith(f'{name}{{model="letters"}}')]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def positions_read(client: Client) -> float:
    return metric(client, "gatehouse_positions_read_total")


# ---------------------------------------------------------------- states that are refused


@pytest.fixture(scope="module")
def token(here: TestClient) -> str:
    return str(generate(here, prompt="The", max_new_tokens=3, return_state=True)[0]["state"])


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_state_is_refused_by_code(
    here: TestClient, token: str, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(token) - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                token[:place],
                token[place:],
                token[:place] + data.draw(st.characters(codec="utf-8")) + token[place + 1 :],
                token + token,
                token[::-1],
            ]
        )
        | st.text()
    )
    if damaged != token:
        status, code, field = refused(here, state=damaged)
        assert (status, field) == (422, "state")
        assert code in {"state_cut", "state_forged"}


@pytest.mark.parametrize("state", ['"\\ud800"', '"\\u0000"', '""', "5", "{}", '["a", null]'])
def test_what_is_no_text_is_refused(here: TestClient, state: str) -> None:
    response = here.post(
        "/generate",
        content=f'{{"state": {state}}}',
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 422
    assert response.json()["code"] in {"state_cut", "invalid_request"}


def test_the_state_at_fault_is_named(here: TestClient, token: str) -> None:
    assert refused(here, state=[token, token[:-1]]) == (422, "state_cut", "state.1")


def test_a_state_is_refused_elsewhere(here: TestClient, token: str, start: Start) -> None:
    assert refused(here, state=token, model="other-letters") == (422, "state_foreign", "state")
    other_key = start(state_key="another secret of 32 characters !")
    assert refused(other_key, state=token) == (422, "state_forged", "state")
    in_float = start(precision="float32")
    assert refused(in_float, state=token) == (422, "state_foreign", "state")
    theirs = generate(in_float, prompt="The", max_new_tokens=3, return_state=True)[0]["state"]
    assert refused(here, state=theirs) == (422, "state_foreign", "state")


def test_only_language_models_have_states(here: TestClient, token: str) -> None:
    for body in ({"prompt": "go", "return_state": True}, {"state": token}):
        for name in ("en-fr", "both-ways"):
            response = here.post("/generate", json={"model": name, **body})
            assert response.status_code == 422
            assert response.json()["code"] == "unsupported_model"
            assert name in response.json()["detail"]
    response = here.post("/translate", json={"text": "go", "return_state": True})
    assert response.json()["errors"][0]["field"] == "return_state"


def test_every_code_is_documented_at_the_endpoint(here: TestClient) -> None:
    assert ERROR_KINDS.keys() >= STATE_CODES
    answers = here.get("/openapi.json").json()["paths"]["/generate"]["post"]["responses"]["422"]
    assert set(answers["content"]["application/problem+json"]["examples"]) >= STATE_CODES


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_in_float_a_text_goes_on_too(start: Start, precision: str) -> None:
    client = start(precision=precision)
    body = {"model": "pieces", "temperature": 0.8, "logprobs": True}
    (whole,) = generate(client, prompt="go", seed=2, max_new_tokens=20, **body)
    (part,) = generate(client, prompt="go", seed=2, max_new_tokens=7, return_state=True, **body)
    (last,) = generate(client, state=part["state"], max_new_tokens=13, **body)
    # One row at a time, with the same steps: here, too, it is the same to the last bit.
    assert joined(part, last) == joined(whole)
    assert part["text"] + last["text"] == whole["text"]


def test_a_random_key_is_said_in_the_log(
    start: Start, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        client = start(state_key=None)
    assert "states are signed with a random key" in caplog.text
    (part,) = generate(client, prompt="The", seed=1, max_new_tokens=3, return_state=True)
    assert generate(client, state=part["state"], max_new_tokens=3)
    assert refused(client, state=token) == (422, "state_forged", "state")
    caplog.clear()
    with caplog.at_level("INFO"):
        start(state_key=KEY)
    assert "random key" not in caplog.text
    assert KEY not in caplog.text


# ---------------------------------------------------------------- prompts that were read before


def test_a_prompt_that_comes_again_is_answered_the_same_without_reading(start: Start) -> None:
    client, without = start(), start(prefix_cache_bytes=0)
    prompt = "The time machine was here, and I saw it."
    body = {"temperature": 1.0, "seed": 6, "max_new_tokens": 20, "logprobs": True, "n": 2}

    def ask(client: Client, prompt: str) -> dict[str, Any]:
        answer: dict[str, Any] = client.post("/generate", json={"prompt": prompt, **body}).json()
        return answer | {"timings": None}

    expected = [ask(without, text) for text in (prompt, prompt + " Then")]
    assert metric(without, "gatehouse_prefix_misses_total") == 0
    assert [ask(client, prompt), ask(client, prompt + " Then")] == expected
    assert metric(client, "gatehouse_prefix_misses_total") == 1
    assert metric(client, "gatehouse_prefix_hits_total") == 1
    before = positions_read(client)
    assert [ask(client, prompt), ask(client, prompt + " Then")] == expected
    assert metric(client, "gatehouse_prefix_hits_total") == 3
    assert positions_read(client) - before == 2
    assert metric(client, "gatehouse_prefix_positions_total") == 2 * len(prompt) + len(
        prompt + " Then"
    )


def test_in_float_no_prompt_is_known(start: Start) -> None:
    client = start(precision="float32")
    for _ in range(2):
        generate(client, prompt="The time machine", max_new_tokens=2)
    assert metric(client, "gatehouse_prefix_hits_total") == 0
