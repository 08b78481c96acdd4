"""Tokens become texts alike for every endpoint."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.engine.request import (
    DecodeRequest,
    DecodingParams,
    EndEvent,
    EndReason,
    Event,
    FinishReason,
    GeneratedToken,
    TokenEvent,
)
from app.metrics import Metrics
from app.service.deadline import Deadline
from app.service.decoding import Decoder
from app.service.outputs import Output, collect_outputs
from models.tokenizers import BOS_ID, EOS_ID, CharacterTokenizer, WordTokenizer
from tests.app.service.test_decoding import ScriptedEngine

LETTERS = CharacterTokenizer.train("abcdef")
WORDS = WordTokenizer.train(["the time machine"])


def event(token: int, reason: FinishReason | None = None, index: int = 0) -> TokenEvent:
    return TokenEvent(1, index, GeneratedToken(token, -1.0), reason)


def test_an_output_is_cut_before_the_first_stop_string() -> None:
    output = Output(LETTERS, stop=("de", "cd"))
    for position, token in enumerate(LETTERS.encode("abcdef")):
        output.add(event(token, FinishReason.LENGTH if position == 5 else None))
    assert output.text == "ab"
    assert output.finish_reason is FinishReason.STOP
    # Counted up to the token that completed the stop string.
    assert len(output.tokens) == 4
    assert output.logprob == -4.0


def test_an_output_without_stop_strings_keeps_everything() -> None:
    output = Output(LETTERS)
    for token in [*LETTERS.encode("abc"), EOS_ID]:
        output.add(event(token, FinishReason.END if token == EOS_ID else None))
    assert (output.text, output.finish_reason) == ("abc", FinishReason.END)
    assert len(output.tokens) == 4


def test_an_output_goes_on_from_what_is_before_it() -> None:
    time, machine = WORDS.encode("time machine")
    output = Output(WORDS, before=(BOS_ID, *WORDS.encode("the")), stop=(" machine",))
    output.add(event(time))
    assert output.text == " time"
    output.add(event(machine))
    assert (output.text, output.finish_reason) == (" time", FinishReason.STOP)
    alone = Output(WORDS)
    alone.add(event(time))
    assert alone.text == "time"


def collect(events: list[TokenEvent], continues_prompt: bool = True) -> list[Output]:
    async def scenario() -> list[Output]:
        async def script(request: DecodeRequest) -> AsyncIterator[Event]:
            for one in events:
                yield one
            yield EndEvent(request.request_id, EndReason.FINISHED, 0.0)

        decoder = Decoder(ScriptedEngine(script), Metrics())
        params = DecodingParams(max_new_tokens=4, beam_size=4, num_outputs=4)
        request = decoder.request("m", (BOS_ID, *WORDS.encode("the")), params)
        decoding = decoder.start("m", [request], Deadline.after(5))
        found = await collect_outputs(decoding, WORDS, continues_prompt=continues_prompt)
        assert list(found) == [request.request_id]
        return found[request.request_id]

    return asyncio.run(scenario())


def test_outputs_are_those_that_exist_in_order() -> None:
    the, time = WORDS.encode("the time")
    end = FinishReason.LENGTH
    outputs = collect([event(time, end, 1), event(the, None, 0), event(time, end, 0)])
    assert [output.text for output in outputs] == [" the time", " time"]
    assert collect([event(time, end)], continues_prompt=False)[0].text == "time"


@pytest.mark.parametrize("events", [[], [event(5)]])
def test_an_output_that_never_ends_is_a_bug(events: list[TokenEvent]) -> None:
    with pytest.raises(RuntimeError, match="without ending its outputs"):
        collect(events)


def test_nothing_to_decode_gives_nothing() -> None:
    async def scenario() -> None:
        decoder = Decoder(ScriptedEngine(lambda request: pytest.fail("submitted")), Metrics())
        decoding = decoder.start("m", [], Deadline.after(5))
        assert await collect_outputs(decoding, WORDS, continues_prompt=False) == {}

    asyncio.run(scenario())
