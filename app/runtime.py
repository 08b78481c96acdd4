"""The life of one service: loading, ready, failed, draining."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from app.catalog import (
    GENERATE,
    TRANSLATE,
    Catalog,
    ServedModel,
    choose_default,
    read_checkpoints,
)
from app.engine.client import EngineClient
from app.engine.loading import StartedEngine, start_engine
from app.exceptions import DrainingError, NotReadyError, StartupError
from app.metrics import Metrics
from app.service.service import Service
from app.settings import Settings
from models.checkpoint import CheckpointInfo

logger = logging.getLogger(__name__)


class EngineStarter(Protocol):
    """What loads weights and starts an engine: see :func:`app.engine.loading.start_engine`."""

    def __call__(
        self,
        checkpoints: Sequence[CheckpointInfo],
        *,
        device: str,
        num_threads: int | None,
        queue_capacity: int,
    ) -> StartedEngine:
        """Load the checkpoints and start an engine over them."""
        ...


class Runtime:
    """Loads the models in the background, and says what the process can do meanwhile.

    Args:
        settings: of this service.
        engine_starter: loads weights and starts the engine; runs in a thread.
        on_startup_failure: called when loading failed, after :attr:`failure` is set.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        engine_starter: EngineStarter = start_engine,
        on_startup_failure: Callable[[], None] | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.failure: str | None = None
        self._engine_starter = engine_starter
        self._on_startup_failure = on_startup_failure
        self._service: Service | None = None
        self._client: EngineClient | None = None
        self._loading: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self.metrics.ready.set_function(lambda: float(self.not_ready_because() is None))

    @property
    def catalog(self) -> Catalog | None:
        """The loaded models, or None while they are not."""
        return None if self._service is None else self._service.catalog

    def service(self) -> Service:
        """The service, once it is loaded.

        Raises:
            NotReadyError: it is not loaded, or never will be.
            DrainingError: it shuts down.
        """
        if self._drain is not None:
            raise DrainingError("the service is shutting down and takes no more requests")
        if self._service is None:
            raise NotReadyError(self.not_ready_because() or "the models are being loaded")
        return self._service

    def not_ready_because(self) -> str | None:
        """Why requests would be turned away now; None when they would not."""
        if self.failure is not None:
            return f"the service could not start: {self.failure}"
        if self._drain is not None:
            return "the service is shutting down"
        if self._client is None:
            return "the models are being loaded"
        age_seconds = self._client.stats().last_step_age_seconds
        if age_seconds > self.settings.max_step_age_seconds:
            return f"the engine's last step is {age_seconds:.0f} seconds ago"
        return None

    async def start(self) -> None:
        """Begin to load; return at once, so that the process is seen to live meanwhile."""
        self._loading = asyncio.create_task(self._load())

    async def wait_until_loaded(self) -> None:
        """Wait for the models.

        Raises:
            StartupError: they could not be loaded.
        """
        if self._loading is not None:
            await self._loading
        if self.failure is not None:
            raise StartupError(self.failure)

    def begin_drain(self) -> None:
        """Take no more requests; those that run may end within the drain limit.

        To be called on the event loop; a second call changes nothing.
        """
        if self._drain is None:
            self._drain = asyncio.create_task(self._finish())

    async def stop(self) -> None:
        """Take no more requests, finish those that run, end the engine."""
        self.begin_drain()
        if self._drain is not None:
            await self._drain

    async def _finish(self) -> None:
        if self._loading is not None:
            # Loading itself runs in a thread, which cannot be interrupted.
            await self._loading
        if self._service is not None:
            await self._service.drain(self.settings.drain_timeout_seconds)

    async def _load(self) -> None:
        try:
            catalog, started = await asyncio.to_thread(self._load_models)
        except StartupError as error:
            self._fail(str(error))
            return
        except Exception:
            logger.exception("loading the models failed")
            self._fail("loading the models failed unexpectedly; the log has the details")
            return
        for model in catalog.models:
            self._describe(model)
        self.metrics.watch_engine(started.client.stats)
        self._client = started.client
        self._service = Service(self.settings, catalog, started.client, self.metrics)
        logger.info("ready: %s", ", ".join(model.name for model in catalog.models))

    def _fail(self, reason: str) -> None:
        self.failure = reason
        logger.critical("%s", reason)
        if self._on_startup_failure is not None:
            self._on_startup_failure()

    def _load_models(self) -> tuple[Catalog, StartedEngine]:
        settings = self.settings
        checkpoints = read_checkpoints(settings.checkpoints_dir, settings.models)
        # A default that cannot be is told before anything slow is loaded.
        choose_default(checkpoints, GENERATE, settings.default_generate_model)
        choose_default(checkpoints, TRANSLATE, settings.default_translate_model)
        started = self._engine_starter(
            checkpoints,
            device=settings.device,
            num_threads=settings.num_threads,
            queue_capacity=settings.queue_capacity,
        )
        served = [
            ServedModel(info, started.device, started.precision, started.load_seconds[info.name])
            for info in checkpoints
        ]
        catalog = Catalog(
            served,
            default_generate=settings.default_generate_model,
            default_translate=settings.default_translate_model,
        )
        return catalog, started

    def _describe(self, model: ServedModel) -> None:
        self.metrics.model_info.labels(
            model.name,
            model.info.config.kind,
            model.precision,
            model.device,
            model.info.fingerprint,
        ).set(1)
        self.metrics.model_load_seconds.labels(model.name).set(model.load_seconds)
