"""Whatever comes, a stream is a valid one, says what the plain answer says, and has an end.

Clients send their request in any pieces, read slowly and go away at any moment; models write any
tokens, bytes that make no character among them; stop strings are any text; the engine may fail.
"""

import asyncio
import itertools
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from app.api.errors import ERROR_KINDS
from app.engine.request import DecodeRequest, EndEvent, EndReason, Event
from tests.app.api.exchange import Exchange, scripted_app
from tests.app.conftest import TIMEOUT_SECONDS
from tests.app.service.scripted_engine import Script, answering, end
from tests.app.service.test_detokenization import TEXTS, TOKENIZERS
from tests.app.service.test_streaming import STOPS, written

pytestmark = pytest.mark.fuzz

CODES = {
    EndReason.FAILED: "engine_failed",
    EndReason.CANCELLED: "draining",
    EndReason.EXPIRED: "deadline_exceeded",
}
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=4)
"""Lone surrogates, too, which no stop string may have."""


@dataclass
class Behaviour:
    """What a client and the engine do.

    Attributes:
        cuts: where the request's body is cut into pieces, some of them empty.
        waits: how many turns of the event loop the client takes for each message, in a circle.
        leaves_after: messages after which it goes away, if it does.
        breaks_after: tokens after which the engine gives a text up, if it does.
        reason: why.
    """

    cuts: list[int] = field(default_factory=list)
    waits: list[int] = field(default_factory=lambda: [0])
    leaves_after: int | None = None
    breaks_after: int | None = None
    reason: EndReason = EndReason.FAILED


behaviours = st.builds(
    Behaviour,
    cuts=st.lists(st.integers(0, 200), max_size=6),
    waits=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    leaves_after=st.none() | st.integers(1, 12),
    breaks_after=st.none() | st.integers(0, 12),
    reason=st.sampled_from(list(CODES)),
)


class OddExchange(Exchange):
    """A client that behaves oddly."""

    def __init__(self, app: FastAPI, path: str, body: dict[str, Any], odd: Behaviour) -> None:
        super().__init__(app, path, body)
        content = b"".join(self._parts)
        places = [0, *sorted(min(cut, len(content)) for cut in odd.cuts), len(content)]
        self._parts = [content[a:b] for a, b in itertools.pairwise(places)]
        self._odd = odd

    async def _send(self, message: Any) -> None:
        for _ in range(self._odd.waits[len(self.messages) % len(self._odd.waits)]):
            await asyncio.sleep(0)
        await super()._send(message)
        if len(self.messages) == self._odd.leaves_after:
            self.gone.set()


def breaking(script: Script, odd: Behaviour) -> Script:
    """The same script by an engine that may give up in the middle."""

    async def broken(request: DecodeRequest) -> AsyncIterator[Event]:
        count = 0
        async for event in script(request):
            if count == odd.breaks_after and not isinstance(event, EndEvent):
                yield end(request, odd.reason)
                return
            count += 1
            yield event

    return broken


def parse(body: bytes) -> list[tuple[str, str]]:
    """Type and data of each event, as browsers read them (HTML standard, section 9.2.6)."""
    events = []
    kind, data = "", list[str]()
    lines = re.split(r"\r\n|\n|\r", body.decode("utf-8"))
    assert lines.pop() == "", "the last line has no end"
    for line in lines:
        name, _, value = line.partition(":")
        if not line:
            if data:
                events.append((kind or "message", "\n".join(data)))
            kind, data = "", []
        elif name:
            assert name in ("event", "data"), line
            value = value.removeprefix(" ")
            kind, data = (value, data) if name == "event" else (kind, [*data, value])
    assert not kind, "the last event was not finished"
    assert not data, "the last event was not finished"
    return events


@dataclass
class Told:
    """What a stream said."""

    pieces: defaultdict[Any, str] = field(default_factory=lambda: defaultdict(str))
    finished: dict[Any, str] = field(default_factory=dict)
    usage: dict[str, int] | None = None
    last: str | None = None

    def piece(self, place: Any, text: str) -> None:
        assert place not in self.finished, "a text went on behind its end"
        self.pieces[place] += text

    def finish(self, place: Any, reason: str) -> None:
        assert place not in self.finished, "a text ended twice"
        self.finished[place] = reason


def told_by(events: list[tuple[str, str]]) -> Told:
    """What the events of a native stream say; each in its turn, and nothing behind the last."""
    told = Told()
    for kind, data in events:
        assert told.last is None, "an event behind the last one"
        value = json.loads(data)
        place = (value.get("prompt_index", value.get("text_index")), value.get("index", 0))
        if kind == "token":
            told.piece(place, value["text"])
        elif kind == "finish":
            told.finish(place, value["finish_reason"])
        else:
            assert kind in ("done", "error")
            told.last = value["code"] if kind == "error" else "done"
            told.usage = value.get("usage")
    return told


def told_by_chunks(events: list[tuple[str, str]], num_outputs: int) -> Told:
    """The same of OpenAI's."""
    told = Told()
    for kind, data in events:
        assert kind == "message"
        assert told.last is None, "an event behind the last one"
        if data == "[DONE]":
            told.last = "done"
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            told.last = chunk["error"]["code"]
            continue
        for choice in chunk["choices"]:
            place = divmod(choice["index"], num_outputs)
            if choice["text"]:
                told.piece(place, choice["text"])
            if choice["finish_reason"] is not None:
                told.finish(place, choice["finish_reason"])
    return told


def whole_texts(path: str, answer: dict[str, Any], num_outputs: int) -> dict[Any, dict[str, Any]]:
    """The outputs of a plain answer by their places."""
    if path == "/v1/completions":
        return {divmod(each["index"], num_outputs): each for each in answer["choices"]}
    if path == "/translate":
        return {(index, 0): each for index, each in enumerate(answer["translations"])}
    return {(each["prompt_index"], each["index"]): each for each in answer["outputs"]}


async def ask(script: Script, path: str, body: dict[str, Any], odd: Behaviour, name: str) -> Any:
    """One request to an application of its own, which is left in good order."""
    app, runtime = scripted_app(script, written_in=TOKENIZERS[name], stream_keepalive_seconds=0.001)
    exchange = OddExchange(app, path, body, odd)
    await asyncio.wait_for(exchange.run(), TIMEOUT_SECONDS)
    await asyncio.wait_for(runtime.service().drain(TIMEOUT_SECONDS), TIMEOUT_SECONDS)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return exchange


def check(
    path: str, body: dict[str, Any], outputs: list[list[int]], odd: Behaviour, name: str
) -> None:
    """Ask for a stream and for the plain answer, and compare them."""
    num_outputs = body.get("n", 1)
    script = answering(*outputs)

    async def all_ways() -> tuple[Any, Any, Any]:
        plain = await ask(script, path, body, Behaviour(), name)
        free = {key: value for key, value in body.items() if key != "stop"}
        unstopped = await ask(script, path, free, Behaviour(), name)
        streamed = {**body, "stream": True}
        return plain, unstopped, await ask(breaking(script, odd), path, streamed, odd, name)

    plain, unstopped, stream = asyncio.run(all_ways())
    if plain.status != 200:
        # The same is refused, and before anything is streamed.
        assert stream.status == plain.status
        assert stream.body == plain.body or odd.leaves_after is not None
        return
    assert stream.status == 200
    events = parse(stream.body)
    told = told_by_chunks(events, num_outputs) if path.startswith("/v1") else told_by(events)
    if told.last is None:
        assert stream.gone.is_set(), "a stream without an end"
        assert not stream.is_complete
    elif told.last != "done":
        assert odd.breaks_after is not None
        assert told.last == CODES[odd.reason]
        assert told.last in ERROR_KINDS
    whole = whole_texts(path, json.loads(plain.body), num_outputs)
    assert told.last != "done" or set(told.finished) == set(whole)
    for place, text in told.pieces.items():
        assert whole[place]["text"].startswith(text), "half a character, or beyond a stop string"
    for place, reason in told.finished.items():
        assert told.pieces[place] == whole[place]["text"]
        assert reason == whole[place]["finish_reason"]
    if told.usage is not None:
        assert told.usage == json.loads(plain.body)["usage"]
    if path != "/translate":
        check_stops(whole, whole_texts(path, json.loads(unstopped.body), num_outputs), body)


def check_stops(whole: dict[Any, Any], unstopped: dict[Any, Any], body: dict[str, Any]) -> None:
    """The texts are those without stop strings, cut where one begins, and only there."""
    for place, output in whole.items():
        prompt = body["prompt"][place[0]] if body["echo"] else ""
        text = output["text"].removeprefix(prompt)
        more = unstopped[place]["text"].removeprefix(prompt)
        assert not any(stop in text for stop in body["stop"]), "a stop string is shown"
        if any(stop in more for stop in body["stop"]):
            assert output["finish_reason"] == "stop"
            assert any(more.startswith(text + stop) for stop in body["stop"])
        else:
            assert text == more


@given(
    data=st.data(),
    path=st.sampled_from(["/generate", "/v1/completions"]),
    name=st.sampled_from(list(TOKENIZERS)),
    prompts=st.lists(st.sampled_from(["", "the ", *TEXTS]), min_size=1, max_size=2),
    stop=st.lists(st.sampled_from(STOPS) | ANY_TEXT, max_size=3),
    echo=st.booleans(),
    odd=behaviours,
)
def test_a_generation(
    data: st.DataObject,
    path: str,
    name: str,
    prompts: list[str],
    stop: list[str],
    echo: bool,
    odd: Behaviour,
) -> None:
    outputs = [data.draw(written(name)) for _ in range(data.draw(st.integers(1, 2)))]
    fields = {"prompt": prompts, "n": len(outputs), "stop": stop, "echo": echo}
    check(path, {**fields, "seed": 0, "temperature": 1}, outputs, odd, name)


@given(
    output=written("word"),
    texts=st.lists(st.sampled_from(["", " ", "we lost", *TEXTS]), min_size=1, max_size=3),
    split=st.sampled_from(["none", "sentences"]),
    odd=behaviours,
)
def test_a_translation(output: list[int], texts: list[str], split: str, odd: Behaviour) -> None:
    body = {"text": texts, "split": split, "beam_size": 1}
    check("/translate", body, [output], odd, "word")
