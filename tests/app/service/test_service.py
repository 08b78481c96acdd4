"""One deadline for a request, and an end in good order for all of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from app.catalog import Catalog, ServedModel, read_checkpoints
from app.engine.request import DecodingParams
from app.engine.worker import WorkerEngine, WorkerModel
from app.exceptions import DeadlineError, DrainingError, InvalidRequestError
from app.metrics import Metrics
from app.service.deadline import Deadline
from app.service.scoring import ScoringRequest, ScoringService
from app.service.service import Service
from app.service.translation import TranslationRequest, TranslationService
from models.decoding.params import Emission, FinishReason, GeneratedToken
from tests.app.conftest import make_settings
from tests.app.service.test_scoring import shuffled

STEP_SECONDS = 0.01
WORD = 5


def one_word_a_step(prompt: Sequence[int], params: DecodingParams) -> Iterator[list[Emission]]:
    for position in range(params.max_new_tokens):
        time.sleep(STEP_SECONDS if len(prompt) > 1 else 0)
        last = position == params.max_new_tokens - 1
        reason = FinishReason.LENGTH if last else None
        yield [Emission(0, GeneratedToken(WORD, -1.0), reason)]


def run(
    checkpoints_dir: Path, scenario: Callable[[Service], Awaitable[None]], **settings: Any
) -> None:
    """Runs a scenario with a service whose translator writes the same word all the time."""

    async def with_service() -> None:
        infos = read_checkpoints(checkpoints_dir, ["en-fr"])
        catalog = Catalog([ServedModel(info, "cpu", "float32", 0.0) for info in infos])
        engine = WorkerEngine({"en-fr": WorkerModel(one_word_a_step, (2,))}, queue_capacity=64)
        engine.start()
        all_settings = make_settings(checkpoints_dir, **{"queue_capacity": 64, **settings})
        service = Service(all_settings, catalog, engine, Metrics())
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
    checkpoints_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: list[Deadline] = []
    for kind, name in ((TranslationService, "translate"), (ScoringService, "score")):
        monkeypatch.setattr(kind, name, noting(getattr(kind, name), deadlines))

    async def scenario(service: Service) -> None:
        await service.translate_and_score(translation(max_new_tokens=1), scoring("a"))
        first, second = deadlines
        assert first is second
        assert first.timeout_seconds == 60

    run(checkpoints_dir, scenario)


def noting(method: Callable[..., Any], deadlines: list[Deadline]) -> Callable[..., Any]:
    """The same method; what deadline it was given is noted."""

    async def noted(self: Any, request: Any, deadline: Deadline) -> Any:
        deadlines.append(deadline)
        return await method(self, request, deadline)

    return noted


def test_a_deadline_ends_translating_before_scoring(checkpoints_dir: Path) -> None:
    async def scenario(service: Service) -> None:
        with pytest.raises(DeadlineError, match=r"deadline of 0.1 seconds"):
            await service.translate_and_score(translation(max_new_tokens=1_000), scoring("a"))

    run(checkpoints_dir, scenario, request_timeout_seconds=0.1)


def test_what_is_known_to_break_a_rule_is_refused_before_translating(
    checkpoints_dir: Path,
) -> None:
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
        assert service._client.stats().accepted == 0

    run(checkpoints_dir, scenario)


def test_a_translation_is_only_refused_where_a_metric_cannot_take_it(
    checkpoints_dir: Path,
) -> None:
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

    run(checkpoints_dir, scenario, max_characters_per_text=100)


def test_a_source_may_be_longer_than_ter_allows(checkpoints_dir: Path) -> None:
    async def scenario(service: Service) -> None:
        request = TranslationRequest(("go " * 250,), beam_size=1, max_new_tokens=2)
        _, scores = await service.translate_and_score(request, scoring("a"))
        assert "ter" in scores

    run(checkpoints_dir, scenario)


def test_draining_finishes_what_fits_and_cuts_off_the_rest(checkpoints_dir: Path) -> None:
    async def scenario(service: Service) -> None:
        fits = asyncio.create_task(
            service.translate_and_score(translation(max_new_tokens=3), scoring("a"))
        )
        too_long = asyncio.create_task(service.translate(translation(max_new_tokens=1_000)))
        await asyncio.sleep(0)
        await service.drain(1)
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

    run(checkpoints_dir, scenario)


def test_draining_cuts_off_scoring(checkpoints_dir: Path) -> None:
    async def scenario(service: Service) -> None:
        references = tuple((shuffled(150, i),) for i in range(8))
        slow = ScoringRequest((shuffled(150, 99),) * 8, references, ("ter",))
        task = asyncio.create_task(service.score(slow))
        await asyncio.sleep(0.01)
        started_at = time.monotonic()
        await service.drain(0.1)
        with pytest.raises(DrainingError):
            await task
        assert time.monotonic() - started_at < 2

    run(checkpoints_dir, scenario)
