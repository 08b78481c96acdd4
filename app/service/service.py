"""One object for all that the service can do, shared by every API dialect and the command line."""

from app.catalog import Catalog
from app.engine.client import EngineClient
from app.metrics import Metrics
from app.service.decoding import Decoder
from app.service.generation import GenerationRequest, GenerationResult, GenerationService
from app.service.limits import Limits
from app.service.scoring import MetricName, MetricScore, ScoringRequest, ScoringService
from app.service.translation import TranslationRequest, TranslationResult, TranslationService
from app.settings import Settings


class Service:
    """Generates, translates and scores texts.

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
        decoder = Decoder(client, metrics, settings.request_timeout_seconds)
        self._generation = GenerationService(catalog, decoder, self.limits, metrics)
        self._translation = TranslationService(catalog, decoder, self.limits, metrics)
        self._scoring = ScoringService(self.limits, settings.queue_capacity)

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """See :meth:`app.service.generation.GenerationService.generate`."""
        return await self._generation.generate(request)

    async def translate(self, request: TranslationRequest) -> TranslationResult:
        """See :meth:`app.service.translation.TranslationService.translate`."""
        return await self._translation.translate(request)

    def check_scoring(self, request: ScoringRequest) -> None:
        """See :meth:`app.service.scoring.ScoringService.check`."""
        self._scoring.check(request)

    async def score(self, request: ScoringRequest) -> dict[MetricName, MetricScore]:
        """See :meth:`app.service.scoring.ScoringService.score`."""
        return await self._scoring.score(request)

    def close(self) -> None:
        """Let the scoring thread end."""
        self._scoring.close()


def limits_of(settings: Settings) -> Limits:
    """The limits that the settings give."""
    return Limits(
        max_texts=settings.max_texts_per_request,
        max_segments=settings.max_segments_per_score,
        max_characters=settings.max_characters_per_text,
        max_new_tokens=settings.max_new_tokens_limit,
        default_max_new_tokens=settings.default_max_new_tokens,
        max_decodings=settings.queue_capacity,
        timeout_seconds=settings.request_timeout_seconds,
    )
