"""Streams as a client sees them, and what is left of them in the engine and in the metrics."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.engine.request import DecodeRequest, EndReason, Event, FinishReason
from app.exceptions import QueueFullError
from models.tokenizers import EOS_ID
from tests.app.api.exchange import Exchange, ScriptedRuntime, read_events, scripted_app
from tests.app.api.test_errors import check_problem
from tests.app.conftest import ENDLESS, NO_TOKEN_LIMIT, TIMEOUT_SECONDS, StartServer
from tests.app.service.scripted_engine import Script, answering, end, token
from tests.app.service.test_detokenization import TOKENIZERS

THE_END = TOKENIZERS["character"].encode("the end")
THE_TIME = TOKENIZERS["word"].encode("the time")

GENERATE = {"prompt": "the ", "stream": True, "temperature": 0, "seed": 0}
TRANSLATE = {"text": "we lost", "stream": True}


async def endless(request: DecodeRequest) -> AsyncIterator[Event]:
    while True:
        yield token(request)
        await asyncio.sleep(0.001)


async def silent(request: DecodeRequest) -> AsyncIterator[Event]:
    await asyncio.sleep(60)
    yield end(request)


def run(
    script: Script,
    scenario: Callable[[FastAPI, ScriptedRuntime], Coroutine[Any, Any, None]],
    **settings: Any,
) -> None:
    async def with_app() -> None:
        app, runtime = scripted_app(script, **settings)
        await asyncio.wait_for(scenario(app, runtime), TIMEOUT_SECONDS)
        # Nothing is left behind: neither requests in flight nor tasks.
        await asyncio.wait_for(runtime.service().drain(60), 20)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(with_app())


def outcomes(runtime: ScriptedRuntime) -> dict[str, float]:
    """How many requests ended how."""
    (family,) = runtime.metrics.requests.collect()
    return {
        sample.labels["outcome"]: sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def test_a_generation_comes_in_events() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        exchange = Exchange(app, "/generate", GENERATE)
        await exchange.run()
        assert exchange.status == 200
        assert exchange.headers["content-type"].startswith("text/event-stream")
        assert exchange.headers["cache-control"] == "no-cache"
        assert exchange.headers["x-accel-buffering"] == "no"
        assert exchange.is_complete
        *tokens, finish, done = exchange.events
        place = {"prompt_index": 0, "index": 0}
        assert tokens == [("token", {**place, "text": letter}) for letter in "the end"]
        assert finish == (
            "finish",
            {**place, "finish_reason": "end", "tokens": 8, "logprob": -7.5, "seed": None},
        )
        name, answer = done
        assert (name, answer["model"]) == ("done", "letters")
        assert answer["usage"] == {"input_tokens": 5, "output_tokens": 8}
        assert set(answer["timings"]) == {"queue_ms", "first_token_ms", "total_ms"}
        # Each event is sent on its own: none waits for the next.
        assert len(exchange.messages) == 1 + len(exchange.events) + 1
        assert outcomes(runtime) == {"ok": 1}

    run(answering([*THE_END, EOS_ID]), scenario)


def test_outputs_of_several_prompts_take_turns() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        prompts = ["the ", "time"]
        body = {
            **GENERATE,
            "prompt": prompts,
            "n": 2,
            "temperature": 1,
            "logprobs": True,
            "echo": True,
        }
        exchange = Exchange(app, "/generate", body)
        await exchange.run()
        finishes = [data for name, data in exchange.events if name == "finish"]
        assert [(data["prompt_index"], data["index"], data["seed"]) for data in finishes] == [
            (0, 0, 0),
            (0, 1, 1),
            (1, 0, 0),
            (1, 1, 1),
        ]
        for prompt_index, prompt in enumerate(prompts):
            own = [
                data
                for name, data in exchange.events
                if name == "token" and (data["prompt_index"], data["index"]) == (prompt_index, 1)
            ]
            assert "".join(data["text"] for data in own) == f"{prompt}the "
            assert own[0] == {
                "prompt_index": prompt_index,
                "index": 1,
                "text": prompt,
                "token_logprobs": [],
            }
            # <eos> is a token too, without a text.
            assert own[-1]["text"] == ""
            assert own[-1]["token_logprobs"] == [
                {"token": "<eos>", "logprob": -1.0, "text_offset": 4}
            ]

    run(answering(THE_END[:2], [*THE_END[:4], EOS_ID]), scenario)


def test_a_translation_comes_in_events() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        exchange = Exchange(app, "/translate", {"text": ["we lost", ""], "stream": True})
        await exchange.run()
        assert [name for name, _ in exchange.events] == [
            "finish",
            "token",
            "token",
            "finish",
            "done",
        ]
        blank, first, second, finish, done = (data for _, data in exchange.events)
        assert blank == {"text_index": 1, "score": 0, "tokens": 0, "finish_reason": "end"}
        assert first == {"text_index": 0, "text": "the"}
        assert second == {"text_index": 0, "text": " time"}
        assert (finish["text_index"], finish["tokens"]) == (0, 3)
        assert (done["model"], done["source"], done["target"]) == ("en-fr", "en", "fr")
        assert done["usage"] == {"input_tokens": 3, "output_tokens": 3}
        assert runtime.scripted.submitted[0].params.beam_size == 1

    run(answering([*THE_TIME, EOS_ID]), scenario)


def test_alignments_come_with_the_finished_translation() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        exchange = Exchange(app, "/translate", {**TRANSLATE, "alignments": True})
        await exchange.run()
        (finish,) = (data for name, data in exchange.events if name == "finish")
        assert finish["alignment"] == {
            "source_tokens": ["we", "lost", "<eos>"],
            "target_tokens": ["the", "time", "<eos>"],
            "weights": [[1.0, 0.0, 0.0]] * 3,
        }

    run(answering([*THE_TIME, EOS_ID]), scenario)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (EndReason.FAILED, "engine_failed"),
        (EndReason.CANCELLED, "draining"),
        (EndReason.EXPIRED, "deadline_exceeded"),
        (None, "internal_error"),
    ],
)
def test_an_error_after_the_start_is_the_last_event(reason: EndReason | None, code: str) -> None:
    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield token(request, THE_END[0])
        if reason is None:
            raise RuntimeError("secret")
        yield end(request, reason)

    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        exchange = Exchange(app, "/generate", GENERATE)
        await exchange.run()
        assert exchange.status == 200
        assert exchange.is_complete
        (first, _), (last, problem) = exchange.events
        assert (first, last) == ("token", "error")
        assert problem["code"] == code
        assert "secret" not in exchange.body.decode()
        assert outcomes(runtime) == {code: 1}
        # The same error as the whole answer of a request that does not stream.
        plain = Exchange(app, "/generate", {**GENERATE, "stream": False})
        with contextlib.suppress(RuntimeError):
            await plain.run()
        assert json.loads(plain.body) == problem
        assert plain.status == problem["status"]

    run(script, scenario)


def test_the_clients_own_deadline() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        for number, stream in enumerate((True, False), start=1):
            body = {**GENERATE, "stream": stream, "timeout_seconds": 0.05}
            exchange = Exchange(app, "/generate", body)
            await exchange.run()
            problem = exchange.events[-1][1] if stream else json.loads(exchange.body)
            assert problem["code"] == "deadline_exceeded"
            assert "deadline of 0.05 seconds" in problem["detail"]
            assert runtime.scripted.cancelled == list(range(1, number + 1))
        assert outcomes(runtime) == {"deadline_exceeded": 2}
        assert runtime.metrics.expired.labels("generate")._value.get() == 2

    run(endless, scenario)


def test_an_error_before_the_start_is_an_ordinary_answer(client: TestClient) -> None:
    for body, code in (
        ({**GENERATE, "model": "nope"}, "unknown_model"),
        ({**GENERATE, "prompt": "é~"}, "invalid_request"),
        ({**GENERATE, "model": "en-fr"}, "unsupported_model"),
    ):
        check_problem(client.post("/generate", json=body), code)
    check_problem(
        client.post("/translate", json={**TRANSLATE, "target": "de"}), "unknown_language_pair"
    )


def test_a_full_queue_is_told_before_the_start() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        runtime.scripted.refusal = QueueFullError("the queue is full", retry_after_seconds=3)
        exchange = Exchange(app, "/generate", GENERATE)
        await exchange.run()
        assert (exchange.status, exchange.headers["retry-after"]) == (429, "3")
        assert outcomes(runtime) == {"queue_full": 1}

    run(endless, scenario)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [("/generate", {**GENERATE, "n": 2, "temperature": 1}), ("/translate", TRANSLATE)],
)
def test_a_client_that_goes_away_drops_its_rows(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        exchange = Exchange(app, path, {**body, "stream": stream})
        task = asyncio.create_task(exchange.run())
        while len(exchange.messages) < 10 and not (runtime.scripted.submitted and not stream):
            await asyncio.sleep(0.001)
        assert runtime.scripted.cancelled == []
        exchange.gone.set()
        await task
        assert runtime.scripted.cancelled == [1]
        assert outcomes(runtime) == {"cancelled": 1}
        assert runtime.metrics.cancelled.labels(path[1:])._value.get() == 1
        if stream:
            assert not exchange.is_complete

    run(endless, scenario)


def test_a_client_that_goes_away_while_nothing_comes() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        exchange = Exchange(app, "/generate", GENERATE)
        task = asyncio.create_task(exchange.run())
        await exchange.sent.wait()
        exchange.gone.set()
        await asyncio.wait_for(task, 20)
        assert runtime.scripted.cancelled == [1]

    run(silent, scenario)


def test_a_client_that_does_not_read_is_noticed_when_it_goes_away() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        exchange = Blocked(app, "/generate", GENERATE)
        task = asyncio.create_task(exchange.run())
        while len(exchange.messages) < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert len(exchange.messages) == 3
        exchange.gone.set()
        await asyncio.wait_for(task, 20)
        assert runtime.scripted.cancelled == [1]
        assert outcomes(runtime) == {"cancelled": 1}

    run(endless, scenario, stream_keepalive_seconds=0.01)


class Blocked(Exchange):
    """The client takes no more than the head and two chunks."""

    async def _send(self, message: Any) -> None:
        if len(self.messages) == 3:
            await asyncio.sleep(60)
        await super()._send(message)


def test_comments_keep_a_quiet_connection_alive() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        exchange = Exchange(app, "/generate", GENERATE)
        await exchange.run()
        assert [name for name, _ in exchange.events] == ["token", "token", "finish", "done"]
        comments = [m["body"] for m in exchange.messages[1:] if m["body"].startswith(b":")]
        assert 2 <= len(comments) <= 40
        assert set(comments) == {b": ping\n\n"}

    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        await asyncio.sleep(0.2)
        yield token(request, THE_END[0])
        await asyncio.sleep(0.2)
        yield token(request, THE_END[1], FinishReason.LENGTH)
        yield end(request)

    run(script, scenario, stream_keepalive_seconds=0.05)


def test_there_is_no_comment_where_events_come_fast() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        exchange = Exchange(app, "/generate", GENERATE)
        await exchange.run()
        assert b": ping" not in exchange.body

    run(
        answering(THE_END * 15, pause_seconds=0.007),
        scenario,
        stream_keepalive_seconds=0.5,
    )


def test_a_server_that_ends_the_task_ends_the_work() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        exchange = Exchange(app, "/translate", TRANSLATE)
        task = asyncio.create_task(exchange.run())
        await exchange.sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert runtime.scripted.cancelled == [1]
        assert outcomes(runtime) == {"cancelled": 1}

    run(endless, scenario)


def test_a_request_lasts_until_its_last_byte() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        await Exchange(app, "/generate", GENERATE).run()
        seconds = runtime.metrics.registry.get_sample_value(
            "gatehouse_request_seconds_sum", {"endpoint": "generate"}
        )
        assert seconds is not None
        assert seconds >= 0.07

    run(answering(THE_END, pause_seconds=0.01), scenario)


def test_a_client_that_does_not_send_its_body_counts_as_gone() -> None:
    async def scenario(app: FastAPI, runtime: ScriptedRuntime) -> None:
        await Exchange(app, "/generate", GENERATE, cut=True).run()
        assert outcomes(runtime) == {"cancelled": 1}
        assert runtime.scripted.submitted == []

    run(endless, scenario)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": ["the", "a"], "n": 2, "seed": 5, "max_new_tokens": 20}),
        ("/generate", {"prompt": "the", "seed": 5, "stop": ["e", " t"], "n": 3, "echo": True}),
        ("/generate", {"prompt": "", "temperature": 0, "logprobs": True, "max_new_tokens": 9}),
        ("/generate", {"prompt": "a", "seed": 1, "logprobs": True, "stop": "b", "n": 2}),
        ("/translate", {"text": ["I am cold .", " ", "go"], "beam_size": 1, "alignments": True}),
        ("/translate", {"text": "we lost", "beam_size": 1, "length_penalty": 0}),
    ],
)
def test_a_stream_says_what_the_whole_answer_says(
    client: TestClient, path: str, body: dict[str, Any]
) -> None:
    whole = client.post(path, json=body).json()
    response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200
    events = read_events(response.text)
    for place, expected in places(whole).items():
        own = [(name, data) for name, data in events if place_of(data) == place]
        (finish,) = (data for name, data in own if name == "finish")
        tokens = [data for name, data in own if name == "token"]
        assert own[-1] == ("finish", finish)
        assert "".join(data["text"] for data in tokens) == expected.pop("text")
        told = [token for data in tokens for token in data.get("token_logprobs", [])]
        assert told == expected.pop("token_logprobs", [])
        assert finish == {"text_index": place, **expected} if path == "/translate" else expected
    name, done = events[-1]
    assert name == "done"
    expected = {key: value for key, value in whole.items() if key not in OUTPUTS}
    assert {**done, "timings": None} == {**expected, "timings": None}


OUTPUTS = ("outputs", "translations")


def places(answer: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    """The outputs of a whole answer by what events call their place."""
    if "translations" in answer:
        return dict(enumerate(answer["translations"]))
    return {place_of(output): output for output in answer["outputs"]}


def place_of(data: dict[str, Any]) -> Any:
    if "prompt_index" in data:
        return data["prompt_index"], data["index"]
    return data.get("text_index")


def test_a_stream_over_a_socket_and_its_end(start_server: StartServer) -> None:
    server = start_server(**NO_TOKEN_LIMIT)
    body = {**ENDLESS, "text": ENDLESS["text"] * 16, "stream": True}
    with server.client.stream("POST", "/translate", json=body) as response:
        assert response.status_code == 200
        assert response.headers["x-accel-buffering"] == "no"
        lines = response.iter_lines()
        assert next(lines) == "event: token"
        assert server.metric("gatehouse_rows_running") > 0
    server.wait_for(lambda: server.metric("gatehouse_rows_running") == 0)
    server.wait_for(lambda: server.metric("gatehouse_cancelled_total") == 1)
    assert server.metric("gatehouse_texts_cancelled_total") == 64
