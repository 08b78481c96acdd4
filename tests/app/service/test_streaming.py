"""A streamed answer says, piece by piece, what the same answer says as a whole."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.request import DecodingParams, FinishReason
from app.exceptions import DeadlineError, InvalidRequestError
from app.service.generation import (
    GeneratedPiece,
    GeneratedText,
    GenerationEvent,
    GenerationRequest,
    GenerationResult,
)
from app.service.service import Service
from app.service.streaming import AnswerStream
from app.service.translation import TranslationRequest
from app.service.translation_result import FinishedTranslation, TranslatedPiece, TranslationResult
from models.tokenizers import EOS_ID, UNK_ID
from tests.app.service.scripted_engine import (
    ScriptedEngine,
    answering,
    language_model,
    make_service,
    translator,
)
from tests.app.service.test_detokenization import PIECES, TEXTS, TOKENIZERS, byte_tokens

Item = TypeVar("Item")

STOPS = ["e", "he", " t", "ma", "é", "\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}a", "a"]


async def everything(stream: AnswerStream[Item]) -> list[Item]:
    async with aclosing(stream):
        return [event async for event in stream]


@st.composite
def written(draw: st.DrawFn, name: str) -> list[int]:
    """Tokens that a model with this tokenizer might write, and bytes that make no text."""
    tokenizer = TOKENIZERS[name]
    part = st.sampled_from(TEXTS).map(tokenizer.encode)
    part |= st.lists(st.integers(UNK_ID, tokenizer.vocabulary_size - 1), max_size=3)
    if name in PIECES:
        content = st.binary(max_size=4) | st.text(max_size=2).map(str.encode)
        part |= content.map(lambda content: byte_tokens(tokenizer, content))
    tokens = [token for some in draw(st.lists(part, max_size=6)) for token in some]
    return [*tokens, EOS_ID] if draw(st.booleans()) or not tokens else tokens


@given(
    data=st.data(),
    name=st.sampled_from(list(TOKENIZERS)),
    prompts=st.lists(st.sampled_from(["", "the ", "the", *TEXTS]), min_size=1, max_size=2),
    num_outputs=st.integers(1, 2),
    stop=st.lists(st.sampled_from(STOPS), max_size=2, unique=True),
    echo=st.booleans(),
    logprobs=st.booleans(),
)
def test_a_stream_is_the_whole_in_pieces(
    data: st.DataObject,
    name: str,
    prompts: list[str],
    num_outputs: int,
    stop: list[str],
    echo: bool,
    logprobs: bool,
) -> None:
    outputs = [data.draw(written(name)) for _ in range(num_outputs)]
    request = GenerationRequest(
        prompts=tuple(prompts),
        model=None,
        params=DecodingParams(max_new_tokens=99, temperature=1, num_outputs=num_outputs),
        stop=tuple(stop),
        echo=echo,
        logprobs=logprobs,
    )

    async def scenario() -> tuple[GenerationResult, list[GenerationEvent]]:
        service = make_service(
            ScriptedEngine(answering(*outputs)), [language_model("m", TOKENIZERS[name])]
        )
        return await service.generate(request), await everything(service.stream_generation(request))

    whole, events = asyncio.run(scenario())
    *parts, last = events
    assert isinstance(last, GenerationResult)
    assert (last.outputs, last.usage, last.model) == (whole.outputs, whole.usage, whole.model)
    finished = [event for event in parts if isinstance(event, GeneratedText)]
    assert sorted(finished, key=lambda text: (text.prompt_index, text.index)) == list(whole.outputs)
    for text in whole.outputs:
        own = [
            event
            for event in parts
            if not isinstance(event, GenerationResult)
            and (event.prompt_index, event.index) == (text.prompt_index, text.index)
        ]
        assert own[-1] == text
        pieces = [event for event in own if isinstance(event, GeneratedPiece)]
        assert len(pieces) == len(own) - 1
        assert "".join(piece.text for piece in pieces) == text.text
        if not logprobs:
            assert all(piece.text and piece.token_logprobs is None for piece in pieces)
            continue
        told = [token for piece in pieces for token in piece.token_logprobs or ()]
        assert told == list(text.token_logprobs or ())


def run(
    scenario: Callable[[Service, ScriptedEngine], Coroutine[Any, Any, None]],
    *outputs: list[int],
    pause_seconds: float = 0.0,
    **settings: Any,
) -> None:
    """Runs a scenario with a service whose models all write the same."""
    letters, words = TOKENIZERS["character"], TOKENIZERS["word"]
    models = [language_model("letters", letters), translator("en-fr", words, words)]

    async def with_service() -> None:
        engine = ScriptedEngine(answering(*outputs, pause_seconds=pause_seconds))
        await scenario(make_service(engine, models, **settings), engine)

    asyncio.run(with_service())


def generation(**fields: Any) -> GenerationRequest:
    return GenerationRequest(("the",), None, DecodingParams(max_new_tokens=9), **fields)


WORDS = TOKENIZERS["word"].encode("the time machine")


def test_translations_come_in_pieces() -> None:
    async def scenario(service: Service, engine: ScriptedEngine) -> None:
        texts = ("we lost", " ", "go")
        request = TranslationRequest(texts, beam_size=1, alignments=True)
        whole = await service.translate(request)
        events = await everything(await service.stream_translation(request))
        last = events.pop()
        assert isinstance(last, TranslationResult)
        assert (last.translations, last.usage) == (whole.translations, whole.usage)
        for index, (translation,) in enumerate(whole.translations):
            own = [
                event
                for event in events
                if not isinstance(event, TranslationResult) and event.text_index == index
            ]
            assert own[-1] == FinishedTranslation(index, translation)
            pieces = [event.text for event in own if isinstance(event, TranslatedPiece)]
            assert all(pieces)
            assert "".join(pieces) == translation.text
        assert whole.translations[0][0].text == "the time machine"
        assert whole.translations[1][0].text == ""

    run(scenario, [*WORDS, EOS_ID])


def test_only_streams_and_stop_strings_need_tokens_one_by_one() -> None:
    async def scenario(service: Service, engine: ScriptedEngine) -> None:
        await service.generate(generation())
        await service.generate(generation(stop=("xyz",)))
        await everything(service.stream_generation(generation()))
        await service.translate(TranslationRequest(("go",), beam_size=1))
        await everything(await service.stream_translation(TranslationRequest(("go",), beam_size=1)))
        streamed = [request.stream for request in engine.submitted]
        assert streamed == [False, True, True, False, True]

    run(scenario, WORDS)


def test_a_stop_string_ends_its_output_and_no_other() -> None:
    async def scenario(service: Service, engine: ScriptedEngine) -> None:
        params = DecodingParams(max_new_tokens=9, temperature=1, num_outputs=2)
        request = GenerationRequest(("the",), None, params, stop=("he",))
        events = await everything(service.stream_generation(request))
        ends = [event for event in events if isinstance(event, GeneratedText)]
        assert [(each.index, each.text, each.finish_reason) for each in ends] == [
            (0, "t", FinishReason.STOP),
            (1, "time", FinishReason.LENGTH),
        ]
        assert engine.cancelled == [engine.submitted[0].request_id]

    letters = TOKENIZERS["character"]
    run(scenario, letters.encode("the end"), letters.encode("time"))


def test_outputs_that_end_one_by_one_must_all_find_room_in_the_queue() -> None:
    async def scenario(service: Service, engine: ScriptedEngine) -> None:
        def request(prompts: int, outputs: int) -> GenerationRequest:
            params = DecodingParams(max_new_tokens=9, temperature=1, num_outputs=outputs)
            return GenerationRequest(("the",) * prompts, None, params, stop=("xyz",))

        await service.generate(request(1, 3))
        assert len(engine.submitted) == 3
        with pytest.raises(InvalidRequestError, match="are 4 decodings, more than the 3") as caught:
            await service.generate(request(2, 2))
        assert caught.value.field == "n"
        assert len(engine.submitted) == 3

    run(scenario, *[WORDS] * 3, queue_capacity=3, max_texts_per_request=3)


def test_what_can_be_refused_is_refused_before_the_first_event() -> None:
    async def scenario(service: Service, engine: ScriptedEngine) -> None:
        with pytest.raises(InvalidRequestError):
            service.stream_generation(GenerationRequest(("é~",), None, DecodingParams(9)))
        with pytest.raises(InvalidRequestError, match="61 is more than the 60 allowed"):
            service.stream_generation(generation(timeout_seconds=61))
        with pytest.raises(InvalidRequestError, match="more than the 9 allowed"):
            await service.stream_translation(
                TranslationRequest(("go",), max_new_tokens=10, beam_size=1)
            )
        assert engine.submitted == []
        # None of them is in flight: draining has nothing to wait for.
        await asyncio.wait_for(service.drain(60), 20)

    run(scenario, WORDS, max_new_tokens_limit=9, default_max_new_tokens=9)


def test_a_stream_that_is_closed_early_drops_its_work() -> None:
    async def scenario(service: Service, engine: ScriptedEngine) -> None:
        unread = service.stream_generation(generation())
        stream = await service.stream_translation(TranslationRequest(("go",), beam_size=1))
        assert isinstance(await anext(stream), TranslatedPiece)
        drained = asyncio.create_task(service.drain(60))
        await asyncio.sleep(0.01)
        for each, cancelled in ((stream, [2]), (unread, [2, 1])):
            assert not drained.done()
            await each.aclose()
            await each.aclose()
            assert engine.cancelled == cancelled
        await asyncio.wait_for(drained, 20)

    run(scenario, WORDS)


def test_a_stream_keeps_the_clients_own_deadline() -> None:
    async def scenario(service: Service, engine: ScriptedEngine) -> None:
        stream = service.stream_generation(generation(timeout_seconds=0.05))
        with pytest.raises(DeadlineError, match=r"deadline of 0\.05 seconds"):
            await everything(stream)
        assert engine.cancelled == [1]
        with pytest.raises(DeadlineError, match=r"deadline of 0\.05 seconds"):
            await service.translate(TranslationRequest(("go",), timeout_seconds=0.05))
        assert 1 <= engine.submitted[1].timeout_seconds < 2

    run(scenario, WORDS, pause_seconds=0.1)
