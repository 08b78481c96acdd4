"""One object for all that the service can do, shared by every API dialect and the command line."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace

from app.catalog import Catalog
from app.engine.client import EngineClient
from app.metrics import Metrics
from app.service.deadline import Deadline
from app.service.decoding import Decoder
from app.service.detection import DetectedLanguage, LanguageDetector
from app.service.document_translation import DocumentService
from app.service.generation import (
    GenerationEvent,
    GenerationRequest,
    GenerationResult,
    GenerationService,
)
from app.service.limits import Limits
from app.service.scoring import MetricName, MetricScore, ScoringRequest, ScoringService
from app.service.state_token import StateTokens, random_key
from app.service.streaming import AnswerStream, Event, EventSource
from app.service.translation import TranslationRequest, TranslationService
from app.service.translation_result import TranslationEvent, TranslationResult
from app.settings import Settings

logger = logging.getLogger(__name__)


class Service:
    """Generates, translates and scores texts: each request within one deadline.

    Args:
        settings: for the limits.
        catalog: the loaded models.
        client: the engine that runs them.
        metrics: where tokens and times are counted.
    """

    def __init__(
        self, settings: Settings, catalog: Catalog, client: EngineClient, metrics: Metrics
    ) -> None:
        self.catalog = catalog
        self.limits = limits_of(settings)
        self._client = client
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        decoder = Decoder(client, metrics)
        states = StateTokens(state_key_of(settings))
        self._generation = GenerationService(catalog, decoder, self.limits, states)
        self._translation = TranslationService(catalog, decoder, self.limits)
        self._documents = DocumentService(catalog, self._translation, self.limits)
        self._detector = LanguageDetector(catalog.languages)
        self._scoring = ScoringService(self.limits, settings.queue_capacity)

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """See :meth:`app.service.generation.GenerationService.generate`."""
        with self._request(request.timeout_seconds) as deadline:
            return await self._generation.generate(request, deadline)

    def stream_generation(self, request: GenerationRequest) -> AnswerStream[GenerationEvent]:
        """Begin to generate; what can be refused is refused here.

        Raises:
            RequestError: the request cannot be served as it stands.
            UnavailableError: it cannot be served now.
        """
        return self._stream(
            request.timeout_seconds,
            lambda deadline: self._generation.start(request, deadline, stream=True),
        )

    @contextmanager
    def request(self) -> Iterator[Deadline]:
        """One request of a client that takes several calls: they share its deadline."""
        with self._request(None) as deadline:
            yield deadline

    async def translate(
        self, request: TranslationRequest, within: Deadline | None = None
    ) -> TranslationResult:
        """See :meth:`app.service.translation.TranslationService.translate`.

        Args:
            request: what to translate.
            within: of the whole request, where this is a part of it: see :meth:`request`.
        """
        with self._request(request.timeout_seconds, within) as deadline:
            if request.split:
                return await self._documents.translate(request, deadline)
            return await self._translation.translate(request, deadline)

    async def stream_translation(
        self, request: TranslationRequest
    ) -> AnswerStream[TranslationEvent]:
        """Begin to translate; what can be refused is refused here.

        Raises:
            RequestError: the request cannot be served as it stands.
            UnavailableError: it cannot be served now.
            DeadlineError: its texts could not be taken apart in time.
        """
        if request.split:
            with ExitStack() as stack:
                deadline = stack.enter_context(self._request(request.timeout_seconds))
                read = await self._documents.read(request, deadline)
                start = self._documents.start(read, deadline, stream=True)
                translation = stack.enter_context(start)
                return AnswerStream(translation.events(), stack.pop_all())
        return self._stream(
            request.timeout_seconds,
            lambda deadline: self._translation.start(request, deadline, stream=True),
        )

    async def detect(self, text: str, within: Deadline | None = None) -> list[DetectedLanguage]:
        """The languages of loaded models that a text may be in: see :mod:`app.service.detection`.

        Args:
            text: in an unknown language.
            within: as for :meth:`translate`.

        Raises:
            DeadlineError: it took too long.
        """
        with self._request(None, within) as deadline:
            return await deadline.wait_for(self._detector.detect(text))

    async def score(self, request: ScoringRequest) -> dict[MetricName, MetricScore]:
        """Score given hypotheses.

        Raises:
            InvalidRequestError: the request cannot be served as it stands.
            UnavailableError: it cannot be served now.
            DeadlineError: it took too long.
        """
        with self._request(request.timeout_seconds) as deadline:
            self._scoring.check(request)
            return await self._scoring.score(request, deadline)

    async def translate_and_score(
        self, translation: TranslationRequest, scoring: ScoringRequest
    ) -> tuple[TranslationResult, dict[MetricName, MetricScore]]:
        """Translate, and score the best translations.

        What can be known to break a rule is refused before anything is translated.

        Args:
            translation: what comes first.
            scoring: without hypotheses: the translations take their place. Its time is that of
                the whole request.

        Raises:
            RequestError: the request cannot be served as it stands, or a translation turned
                out too long for a metric.
            UnavailableError: it cannot be served now.
            DeadlineError: it took too long, all in all.
        """
        with self._request(scoring.timeout_seconds) as deadline:
            self._scoring.check_references(scoring, len(translation.texts))
            result = await self._translation.translate(translation, deadline)
            hypotheses = tuple(best[0].text for best in result.translations)
            scoring = replace(scoring, hypotheses=hypotheses)
            self._scoring.check_for_ter(scoring)
            return result, await self._scoring.score(scoring, deadline)

    async def drain(self, timeout_seconds: float) -> None:
        """Wait for the requests in flight, cut off those that take too long, end the engine.

        Whoever waits for a request that is cut off gets a :class:`DrainingError`.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        self._scoring.close()
        self._documents.close()
        await self._client.close()

    def _stream(
        self,
        timeout_seconds: float | None,
        start: Callable[[Deadline], AbstractContextManager[EventSource[Event]]],
    ) -> AnswerStream[Event]:
        with ExitStack() as stack:
            deadline = stack.enter_context(self._request(timeout_seconds))
            running = stack.enter_context(start(deadline))
            return AnswerStream(running.events(), stack.pop_all())

    @contextmanager
    def _request(
        self, timeout_seconds: float | None, within: Deadline | None = None
    ) -> Iterator[Deadline]:
        """One request in flight, or a part of one, and its deadline."""
        deadline = within or Deadline.after(self.limits.timeout_of(timeout_seconds))
        self._in_flight += 1
        self._idle.clear()
        try:
            yield deadline
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()


def state_key_of(settings: Settings) -> bytes:
    """The key that states are signed with: the setting's, or a random one."""
    if settings.state_key is not None:
        return settings.state_key.get_secret_value().encode()
    logger.info(
        "states are signed with a random key: no other service takes them, nor this one when it "
        "is started again; GATEHOUSE_STATE_KEY gives a lasting one"
    )
    return random_key()


def limits_of(settings: Settings) -> Limits:
    """The limits that the settings give."""
    return Limits(
        max_texts=settings.max_texts_per_request,
        max_segments=settings.max_segments_per_score,
        max_characters=settings.max_characters_per_text,
        max_new_tokens=settings.max_new_tokens_limit,
        default_max_new_tokens=settings.default_max_new_tokens,
        max_alignment_cells=settings.max_alignment_cells,
        max_decodings=settings.queue_capacity,
        timeout_seconds=settings.request_timeout_seconds,
    )
