"""Both clients against a server that answers as told."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest

from app.api.bleu_request import BleuBody
from app.api.requests import GenerateBody, TranslateBody
from gatehouse_client import (
    AnswerError,
    AnswerTimeoutError,
    AsyncClient,
    Client,
    Retries,
    ServerUnreachableError,
    StreamBrokenError,
    TextEvent,
)
from gatehouse_client.options import BleuOptions, GenerateOptions, TranslateOptions

AT_ONCE = Retries(attempts=3, first_wait_seconds=0.0)
TRANSLATION = {
    "model": "en-fr",
    "source": "en",
    "target": "fr",
    "translations": [{"text": "va", "score": -0.5, "tokens": 2, "finish_reason": "end"}],
    "usage": {"input_tokens": 2, "output_tokens": 2},
    "timings": {"queue_ms": 0.1, "first_token_ms": 1.0, "total_ms": 2.0},
}
FULL = {"status": 429, "code": "queue_full", "detail": "no room"}
EVENTS = 'event: token\ndata: {"text_index":0,"text":"va"}\n\n'
DONE = f"event: done\ndata: {json.dumps(TRANSLATION)}\n\n"

Answers = list[httpx2.Response | Exception]
Call = Callable[[Answers, str, list[httpx2.Request]], Any]


class _Pieces(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that comes byte by byte."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        for place in range(len(self._body)):
            yield self._body[place : place + 1]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def _handler(
    answers: Answers, seen: list[httpx2.Request]
) -> Callable[[httpx2.Request], httpx2.Response]:
    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle


def _call(answers: Answers, what: str, seen: list[httpx2.Request]) -> Any:
    transport = httpx2.MockTransport(_handler(answers, seen))
    with Client("http://test", retries=AT_ONCE, transport=transport) as client:
        if what == "stream":
            return list(client.stream_translate("go"))
        if what == "ready":
            return client.is_ready()
        return client.translate("go", beam_size=2)


def _call_async(answers: Answers, what: str, seen: list[httpx2.Request]) -> Any:
    async def call() -> Any:
        transport = httpx2.MockTransport(_handler(answers, seen))
        async with AsyncClient("http://test", retries=AT_ONCE, transport=transport) as client:
            if what == "stream":
                return [event async for event in client.stream_translate("go")]
            if what == "ready":
                return await client.is_ready()
            return await client.translate("go", beam_size=2)

    return asyncio.run(call())


@pytest.fixture(params=[_call, _call_async], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    found: Call = request.param
    return found


def test_an_answer_is_typed_and_the_request_as_the_api_wants_it(call: Call) -> None:
    seen: list[httpx2.Request] = []
    answer = call([httpx2.Response(200, json=TRANSLATION)], "translate", seen)
    assert answer.translations[0].text == "va"
    assert answer.usage.output_tokens == 2
    assert (seen[0].method, seen[0].url.path) == ("POST", "/translate")
    assert json.loads(seen[0].content) == {"text": "go", "beam_size": 2}
    assert seen[0].headers["content-type"] == "application/json"


@pytest.mark.parametrize("what", ["translate", "stream"])
def test_a_full_queue_and_a_lost_connection_are_tried_again(call: Call, what: str) -> None:
    seen: list[httpx2.Request] = []
    good = (
        httpx2.Response(200, json=TRANSLATION)
        if what == "translate"
        else httpx2.Response(200, text=EVENTS + DONE)
    )
    full = httpx2.Response(429, json=FULL, headers={"retry-after": "0"})
    assert call([full, httpx2.ConnectError("refused"), good], what, seen)
    assert len(seen) == 3


@pytest.mark.parametrize("what", ["translate", "stream"])
def test_the_last_try_tells_what_is_wrong(call: Call, what: str) -> None:
    full = [httpx2.Response(429, json=FULL, headers={"retry-after": "0"}) for _ in range(3)]
    with pytest.raises(AnswerError, match=r"queue_full \(429\): no room"):
        call([*full], what, [])
    lost: Answers = [httpx2.ConnectError("refused") for _ in range(3)]
    with pytest.raises(ServerUnreachableError, match="http://test: refused"):
        call(lost, what, [])


@pytest.mark.parametrize("what", ["translate", "stream"])
@pytest.mark.parametrize("error", [httpx2.ReadTimeout, httpx2.WriteTimeout])
def test_a_server_that_is_only_slow_is_not_given_the_work_again(
    call: Call, what: str, error: type[httpx2.TimeoutException]
) -> None:
    seen: list[httpx2.Request] = []
    with pytest.raises(AnswerTimeoutError, match="http://test: slow"):
        call([error("slow")], what, seen)
    assert len(seen) == 1


def test_what_is_refused_is_not_tried_again(call: Call) -> None:
    seen: list[httpx2.Request] = []
    refused = {"status": 422, "code": "invalid_request", "detail": "no"}
    with pytest.raises(AnswerError, match="invalid_request"):
        call([httpx2.Response(422, json=refused)], "translate", seen)
    assert len(seen) == 1


def test_a_stream_gives_its_events_and_one_that_breaks_off_is_told(call: Call) -> None:
    events = call([httpx2.Response(200, text=EVENTS + DONE)], "stream", [])
    assert events[0] == TextEvent("va")
    assert events[1].model == "en-fr"
    seen: list[httpx2.Request] = []
    with pytest.raises(StreamBrokenError):
        call([httpx2.Response(200, text=EVENTS)], "stream", seen)
    assert len(seen) == 1


def test_text_of_a_stream_may_hold_what_other_formats_end_lines_with(call: Call) -> None:
    text = "a\u2028b\u2029c\x85d"
    token = json.dumps({"text_index": 0, "text": text}, ensure_ascii=False)
    body = f"event: token\r\ndata: {token}\r\n\r\n{DONE}".encode()
    # Pieces of one byte: line ends and characters come in parts.
    answer = httpx2.Response(200, stream=_Pieces(body))
    assert call([answer], "stream", [])[0] == TextEvent(text)


@pytest.mark.parametrize("what", ["translate", "stream"])
def test_an_answer_that_cannot_be_unpacked_is_a_broken_connection(call: Call, what: str) -> None:
    packed = {"content-encoding": "gzip"}
    answers: Answers = [
        httpx2.Response(200, headers=packed, stream=_Pieces(b"none")) for _ in range(3)
    ]
    with pytest.raises(ServerUnreachableError, match="http://test: "):
        call(answers, what, [])


def test_readiness(call: Call) -> None:
    packed = {"content-encoding": "gzip"}
    unreadable = httpx2.Response(200, headers=packed, stream=_Pieces(b"none"))
    assert call([unreadable], "ready", []) is False
    assert call([httpx2.Response(200, json={"status": "ready"})], "ready", []) is True
    assert call([httpx2.Response(503, json=FULL)], "ready", []) is False
    assert call([httpx2.ConnectError("refused")], "ready", []) is False


@pytest.mark.parametrize(
    ("options", "body", "others"),
    [
        (GenerateOptions, GenerateBody, {"prompt", "stream"}),
        (TranslateOptions, TranslateBody, {"text", "stream"}),
        (BleuOptions, BleuBody, {"references"}),
    ],
)
def test_every_field_of_the_api_is_an_option(options: Any, body: Any, others: set[str]) -> None:
    assert options.__annotations__.keys() == body.model_fields.keys() - others
