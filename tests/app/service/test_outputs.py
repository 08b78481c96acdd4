"""Tokens become texts alike for every endpoint."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from app.engine.request import (
    DecodeRequest,
    DecodingParams,
    Event,
    FinishReason,
    TokensEvent,
)
from app.metrics import Metrics
from app.service.deadline import Deadline
from app.service.decoding import Decoder
from app.service.outputs import OpenText, Output, Outputs
from models.tokenizers import BOS_ID, EOS_ID, CharacterTokenizer, WordTokenizer
from tests.app.service.scripted_engine import ScriptedEngine, end
from tests.app.service.test_detokenization import TOKENIZERS, byte_tokens

LETTERS = CharacterTokenizer.train("abcdef")
WORDS = WordTokenizer.train(["the time machine"])


def event(
    *tokens: int, reason: FinishReason | None = None, output: int = 0, request_id: int = 1
) -> TokensEvent:
    return TokensEvent(request_id, output, tokens, (-1.0,) * len(tokens), reason)


def test_an_output_is_cut_before_the_first_stop_string() -> None:
    output = Output(LETTERS, stop=("de", "cd"))
    shown = [
        output.add(event(token, reason=FinishReason.LENGTH if position == 5 else None))
        for position, token in enumerate(LETTERS.encode("abcdef"))
    ]
    # "c" may begin a stop string, and did.
    assert shown == ["a", "b", "", "", "", ""]
    assert output.text == "ab"
    assert output.finish_reason is FinishReason.STOP
    # Counted up to the token that completed the stop string.
    assert len(output.tokens) == 4
    assert output.logprob == -4.0


def test_the_last_token_that_may_come_counts_where_it_completes_a_stop_string() -> None:
    output = Output(LETTERS, stop=("bc",))
    tokens = LETTERS.encode("abc")
    output.add(event(*tokens, reason=FinishReason.LENGTH))
    assert (output.text, output.finish_reason) == ("a", FinishReason.STOP)
    assert output.tokens == tokens


def test_offsets_count_what_the_text_before_left_open() -> None:
    end_of_text = OpenText("cd", 0, has_text=True)
    output = Output(LETTERS, LETTERS.encode("abcd"), offsets=True, open_text=end_of_text)
    assert output.add(event(*LETTERS.encode("ef"), reason=FinishReason.LENGTH)) == "cdef"
    assert output.offsets == [2, 3]


def test_an_end_that_shows_a_stop_string_is_not_counted() -> None:
    """Bytes without a character become U+FFFD at the end alone; going on, <eos> comes again."""
    pieces = TOKENIZERS["pieces"]
    tokens = [*pieces.encode("the"), *byte_tokens(pieces, b"\xe2\x82"), EOS_ID]
    for stays_open in (False, True):
        output = Output(
            pieces, stop=("\N{REPLACEMENT CHARACTER}",), offsets=True, stays_open=stays_open
        )
        for token in tokens:
            output.add(event(token, reason=FinishReason.END if token == EOS_ID else None))
        assert (output.text, output.finish_reason) == ("the", FinishReason.STOP)
        assert output.tokens == tokens[:-1]
        assert len(output.logprobs) == len(output.offsets) == len(output.tokens)


def test_what_only_began_like_a_stop_string_is_shown_at_the_end() -> None:
    output = Output(LETTERS, stop=("cde",))
    for token in LETTERS.encode("abc"):
        output.add(event(token))
    assert output.text == "ab"
    assert output.add(event(LETTERS.encode("d")[0], reason=FinishReason.LENGTH)) == "cd"
    assert (output.text, output.finish_reason) == ("abcd", FinishReason.LENGTH)


@pytest.mark.parametrize("whole", [True, False])
def test_an_output_without_stop_strings_keeps_everything(whole: bool) -> None:
    output = Output(LETTERS)
    tokens = [*LETTERS.encode("abc"), EOS_ID]
    if whole:
        assert output.add(event(*tokens, reason=FinishReason.END)) == "abc"
    else:
        shown = [output.add(event(token)) for token in tokens[:-1]]
        assert shown == ["a", "b", "c"]
        assert output.add(event(EOS_ID, reason=FinishReason.END)) == ""
    assert output.text == "abc"
    assert output.finish_reason is FinishReason.END
    assert output.tokens == tokens


@pytest.mark.parametrize("stop", [(), ("zzz",)])
def test_an_output_goes_on_from_what_is_before_it(stop: Sequence[str]) -> None:
    time, machine = WORDS.encode("time machine")
    before = (BOS_ID, *WORDS.encode("the"))
    output = Output(WORDS, before, (" machine", *stop))
    assert output.add(event(time)) == " time"
    assert output.add(event(machine)) == ""
    assert (output.text, output.finish_reason) == (" time", FinishReason.STOP)
    assert Output(WORDS, before).add(event(time, reason=FinishReason.END)) == " time"
    assert Output(WORDS).add(event(time, reason=FinishReason.END)) == "time"


def test_attention_is_kept_for_each_token() -> None:
    output = Output(LETTERS)
    for weights in ((0.25, 0.75), (1.0, 0.0)):
        output.add(TokensEvent(1, 0, (4,), (-1.0,), None, (weights,)))
    assert output.attention == [(0.25, 0.75), (1.0, 0.0)]


def collect(
    events: list[TokensEvent], *, continues_prompt: bool = True, stop: Sequence[str] = ()
) -> tuple[list[Output], ScriptedEngine]:
    async def scenario() -> tuple[list[Output], ScriptedEngine]:
        async def script(request: DecodeRequest) -> AsyncIterator[Event]:
            for one in events:
                yield one
            yield end(request)

        engine = ScriptedEngine(script)
        decoder, deadline = Decoder(engine, Metrics()), Deadline.after(5)
        params = DecodingParams(max_new_tokens=4, beam_size=4, num_outputs=4)
        prompt = (BOS_ID, *WORDS.encode("the"))
        request = decoder.request("m", prompt, params, deadline, stream=bool(stop))
        with decoder.start("m", [request], deadline) as decoding:
            outputs = Outputs(decoding, WORDS, continues_prompt=continues_prompt, stop=stop)
            await outputs.complete()
            return outputs.of(request.request_id), engine

    return asyncio.run(scenario())


def test_outputs_are_those_that_exist_in_order() -> None:
    the, time = WORDS.encode("the time")
    end = FinishReason.LENGTH
    outputs, _ = collect(
        [event(time, reason=end, output=1), event(the, time, reason=end, output=0)]
    )
    assert [output.text for output in outputs] == [" the time", " time"]
    outputs, _ = collect([event(time, reason=end)], continues_prompt=False)
    assert outputs[0].text == "time"


def test_a_stop_string_releases_its_request() -> None:
    the, time = WORDS.encode("the time")
    (output,), engine = collect([event(the), event(time), event(the)], stop=("time",))
    assert (output.text, output.finish_reason) == (" the ", FinishReason.STOP)
    assert engine.cancelled == [1]


@pytest.mark.parametrize("events", [[], [event(5)]])
def test_an_output_that_never_ends_is_a_bug(events: list[TokensEvent]) -> None:
    with pytest.raises(RuntimeError, match="without ending its outputs"):
        collect(events)


def test_nothing_to_decode_gives_nothing() -> None:
    async def scenario() -> None:
        engine = ScriptedEngine(lambda request: pytest.fail("submitted"))
        decoder, deadline = Decoder(engine, Metrics()), Deadline.after(5)
        with decoder.start("m", [], deadline) as decoding:
            await Outputs(decoding, WORDS, continues_prompt=False).complete()
        assert engine.submitted == []

    asyncio.run(scenario())
