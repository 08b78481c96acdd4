"""One deadline for a request, and an end in good order for all of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from app.engine.request import DecodeRequest, Event, FinishReason, TokensEvent
from app.exceptions import DeadlineError, DrainingError, InvalidRequestError
from app.service.deadline import Deadline
from app.service.documents import DocumentReader
from app.service.scoring import ScoringRequest, ScoringService
from app.service.service import Service
from app.service.translation import TranslationRequest, TranslationService
from app.service.translation_result import TranslationResult
from models.tokenizers import EOS_ID
from tests.app.service.scripted_engine import (
    ScriptedEngine,
    answering,
    end,
    make_service,
    translator,
)
from tests.app.service.test_detokenization import TOKENIZERS
from tests.app.service.test_scoring import shuffled

STEP_SECONDS = 0.001
WORD = 5


async def one_word_a_step(request: DecodeRequest) -> AsyncIterator[Event]:
    for position in range(request.params.max_new_tokens):
        await asyncio.sleep(STEP_SECONDS)
        last = position == request.params.max_new_tokens - 1
        reason = FinishReason.LENGTH if last else None
        yield TokensEvent(request.request_id, 0, (WORD,), (-1.0,), reason)
    yield end(request)


def run(scenario: Callable[[Service], Awaitable[None]], **settings: Any) -> None:
    """Runs a scenario with a service whose translator writes the same word all the time."""

    async def with_service() -> None:
        words = TOKENIZERS["word"]
        engine = ScriptedEngine(one_word_a_step)
        service = make_service(engine, [translator("en-fr", words, words)], **settings)
        try:
            await scenario(service)
        finally:
            await service.drain(0)

    asyncio.run(with_service())


def translation(**fields: Any) -> TranslationRequest:
    return TranslationRequest(("go",), beam_size=1, field="sources", **fields)


def scoring(*references: str) -> ScoringRequest:
    return ScoringRequest((), (references,), ("ter",))


def test_translating_and_scoring_share_one_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deadlines: list[Deadline] = []
    for kind, name in ((TranslationService, "translate"), (ScoringService, "score")):
        monkeypatch.setattr(kind, name, noting(getattr(kind, name), deadlines))

    async def scenario(service: Service) -> None:
        await service.translate_and_score(translation(max_new_tokens=1), scoring("a"))
        first, second = deadlines
        assert first is second
        assert first.timeout_seconds == 60

    run(scenario)


def noting(method: Callable[..., Any], deadlines: list[Deadline]) -> Callable[..., Any]:
    """The same method; what deadline it was given is noted."""

    async def noted(self: Any, request: Any, deadline: Deadline) -> Any:
        deadlines.append(deadline)
        return await method(self, request, deadline)

    return noted


def test_the_clients_own_limit_holds_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines: list[Deadline] = []
    monkeypatch.setattr(ScoringService, "score", noting(ScoringService.score, deadlines))

    async def scenario(service: Service) -> None:
        request = ScoringRequest(("a",), (("a",),), timeout_seconds=7)
        await service.score(request)
        both = replace(request, hypotheses=(), timeout_seconds=8)
        await service.translate_and_score(translation(max_new_tokens=1), both)
        assert [deadline.timeout_seconds for deadline in deadlines] == [7, 8]
        with pytest.raises(InvalidRequestError, match=r"61 is more than the 60 allowed") as caught:
            await service.score(replace(request, timeout_seconds=61))
        assert caught.value.field == "timeout_seconds"

    run(scenario)


def test_a_deadline_ends_translating_before_scoring() -> None:
    async def scenario(service: Service) -> None:
        with pytest.raises(DeadlineError, match=r"deadline of 0.1 seconds"):
            await service.translate_and_score(translation(max_new_tokens=1_000), scoring("a"))

    run(scenario, request_timeout_seconds=0.1)


def test_what_is_known_to_break_a_rule_is_refused_before_translating() -> None:
    async def scenario(service: Service) -> None:
        for source, request, field in (
            ("a" * 5_001, scoring("a"), "sources"),
            ("go", scoring("a " * 201), "metrics"),
            ("go", scoring("a" * 5_001), "references.0"),
            ("go", ScoringRequest((), (), ("ter",)), "references"),
        ):
            with pytest.raises(InvalidRequestError) as caught:
                await service.translate_and_score(
                    TranslationRequest((source,), beam_size=1, field="sources"), request
                )
            assert caught.value.field == field
        assert isinstance(service._client, ScriptedEngine)
        assert service._client.submitted == []

    run(scenario)


def test_a_translation_is_only_refused_where_a_metric_cannot_take_it() -> None:
    async def scenario(service: Service) -> None:
        long = translation(max_new_tokens=201)
        with pytest.raises(InvalidRequestError, match="index 0 there are 201 words") as caught:
            await service.translate_and_score(long, scoring("a"))
        assert caught.value.field == "metrics"
        # Longer than the limit on characters that clients must keep.
        result, scores = await service.translate_and_score(
            long, ScoringRequest((), (("a",),), ("bleu",))
        )
        assert len(result.translations[0][0].text) > 100
        assert "bleu" in scores

    run(scenario, max_characters_per_text=100)


def test_a_source_may_be_longer_than_ter_allows() -> None:
    async def scenario(service: Service) -> None:
        request = TranslationRequest(("go " * 250,), beam_size=1, max_new_tokens=2)
        _, scores = await service.translate_and_score(request, scoring("a"))
        assert "ter" in scores

    run(scenario)


def test_draining_finishes_what_fits_and_cuts_off_the_rest() -> None:
    async def scenario(service: Service) -> None:
        fits = asyncio.create_task(
            service.translate_and_score(translation(max_new_tokens=3), scoring("a"))
        )
        too_long = asyncio.create_task(service.translate(translation(max_new_tokens=100_000)))
        await asyncio.sleep(0)
        await service.drain(3)
        _, scores = await fits
        assert "ter" in scores
        with pytest.raises(DrainingError):
            await too_long
        for work in (
            service.translate(translation()),
            service.score(ScoringRequest(("a",), (("a",),))),
        ):
            with pytest.raises(DrainingError):
                await work

    run(scenario, max_new_tokens_limit=100_000)


def test_draining_waits_for_the_last_request_not_for_the_first() -> None:
    async def scenario(service: Service) -> None:
        short = asyncio.create_task(service.translate(translation(max_new_tokens=1)))
        long = asyncio.create_task(service.translate(translation(max_new_tokens=50)))
        await short
        assert not long.done()
        await service.drain(60)
        assert (await long).usage.output_tokens == 50

    run(scenario)


def test_behind_a_shutdown_no_text_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    taken_apart: list[str] = []
    monkeypatch.setattr(DocumentReader, "read", lambda _, text: taken_apart.append(text))

    async def scenario(service: Service) -> None:
        await service.drain(0)
        with pytest.raises(DrainingError):
            await service.translate(translation(split=True))
        assert taken_apart == []

    run(scenario)


def test_draining_cuts_off_scoring() -> None:
    async def scenario(service: Service) -> None:
        references = tuple((shuffled(150, i),) for i in range(8))
        slow = ScoringRequest((shuffled(150, 99),) * 8, references, ("ter",))
        task = asyncio.create_task(service.score(slow))
        await asyncio.sleep(0.01)
        started_at = time.monotonic()
        await service.drain(0.1)
        with pytest.raises(DrainingError):
            await task
        assert time.monotonic() - started_at < 10  # all of it would take much longer

    run(scenario)


def test_hypotheses_that_read_the_same_count_once() -> None:
    """Subword models write one text in several ways, and a beam keeps more than one of them."""
    engine = ScriptedEngine(answering((5, EOS_ID), (5,), (6, EOS_ID), (7, EOS_ID)))
    words = TOKENIZERS["word"]

    async def translate(count: int) -> TranslationResult:
        service = make_service(engine, [translator("en-fr", words, words)])
        request = TranslationRequest(("go",), beam_size=4, num_hypotheses=count)
        return await service.translate(request)

    for count, tokens in ((1, [5]), (2, [5, 6]), (3, [5, 6, 7]), (4, [5, 6, 7])):
        result = asyncio.run(translate(count))
        [hypotheses] = result.translations
        assert [h.text for h in hypotheses] == [words.decode([token]) for token in tokens]
        assert [h.tokens for h in hypotheses] == [2] * len(tokens)
        assert result.usage.output_tokens == 2 * len(tokens)
    assert [each.params.num_outputs for each in engine.submitted] == [1, 4, 4, 4]


def test_weights_that_are_only_welcome_come_as_far_as_the_limit_goes() -> None:
    engine = ScriptedEngine(answering((5, EOS_ID)))
    words = TOKENIZERS["word"]

    async def translate() -> None:
        models = [translator("en-fr", words, words)]
        # Two source tokens and five that may come: ten weights for each text.
        service = make_service(engine, models, max_alignment_cells=20)
        texts, aligned = ("go",) * 4, frozenset({1, 2, 3})
        await service.translate(
            TranslationRequest(texts, beam_size=1, max_new_tokens=5, aligned=aligned)
        )

    asyncio.run(translate())
    weighed = [request.params.return_attention for request in engine.submitted]
    assert weighed == [False, True, True, False]


@pytest.mark.parametrize(("text", "outputs"), [("the time", 1), ("the time {when} .", 3)])
def test_where_a_span_must_come_through_other_hypotheses_are_looked_at(
    text: str, outputs: int
) -> None:
    engine = ScriptedEngine(answering((5, EOS_ID), (6, EOS_ID), (7, EOS_ID)))
    words = TOKENIZERS["word"]

    async def translate() -> None:
        service = make_service(engine, [translator("en-fr", words, words)])
        await service.translate(TranslationRequest((text,), beam_size=3, split=True))

    asyncio.run(translate())
    assert {request.params.num_outputs for request in engine.submitted} == {outputs}
