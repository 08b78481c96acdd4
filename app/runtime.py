"""The life of one service: loading, ready, failed, draining."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from app.catalog import (
    GENERATE,
    TRANSLATE,
    Catalog,
    ServedModel,
    choose_default,
    read_checkpoints,
)
from app.engine.host import EngineLoad
from app.engine.inline import InlineLink
from app.engine.link import Link, LinkListener
from app.engine.messages import Loaded
from app.engine.process import ProcessLink
from app.engine.spec import EngineLoader, EngineSpec, load_models
from app.engine.supervisor import SupervisedEngine
from app.engine.unchanged import load_unchanged
from app.exceptions import DrainingError, NotReadyError, QueueFullError, StartupError
from app.logs import resolve_format
from app.metrics import Metrics
from app.on_demand import ModelsOnDemand
from app.reloading import Reloader
from app.service.service import Service
from app.settings import Settings
from models.checkpoint import CheckpointInfo

logger = logging.getLogger(__name__)


class Runtime:
    """Loads the models in the background, and says what the process can do meanwhile.

    Args:
        settings: of this service.
        engine_loader: loads weights, in the engine's own process or thread; for a process it
            must be picklable, as a function of a module is.
        on_startup_failure: called when loading failed, after :attr:`failure` is set.
        on_loaded: called once the models are loaded, and again when one was reloaded.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        engine_loader: EngineLoader = load_models,
        on_startup_failure: Callable[[], None] | None = None,
        on_loaded: Callable[[], None] | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.failure: str | None = None
        self._engine_loader = engine_loader
        self._on_startup_failure = on_startup_failure
        self._on_loaded = on_loaded
        self._service: Service | None = None
        self._reloader: Reloader | None = None
        self._on_demand: ModelsOnDemand | None = None
        self._engine: SupervisedEngine | None = None
        self._loading: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self.metrics.ready.set_function(lambda: float(self.not_ready_because() is None))

    @property
    def catalog(self) -> Catalog | None:
        """The loaded models, or None while they are not."""
        return None if self._service is None else self._service.catalog

    @property
    def engine(self) -> SupervisedEngine | None:
        """The engine, or None before there is one."""
        return self._engine

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

    def queue_full(self) -> QueueFullError | None:
        """What a request would be told that needs a place in the queue; None where it gets one."""
        return None if self._engine is None else self._engine.queue_full()

    def reloader(self) -> Reloader:
        """What replaces models, once they are loaded.

        Raises:
            NotReadyError: they are not loaded, or never will be.
            DrainingError: the service shuts down.
        """
        self.service()
        assert self._reloader is not None
        return self._reloader

    def models_on_demand(self) -> ModelsOnDemand:
        """What loads more models, once those of the beginning are loaded.

        Raises:
            NotReadyError: they are not loaded, or never will be.
            DrainingError: the service shuts down.
        """
        self.service()
        assert self._on_demand is not None
        return self._on_demand

    def begin_reload(self) -> None:
        """Reload every model in the background; without loaded models, do nothing."""
        try:
            self.reloader().begin_reload_all()
        except (NotReadyError, DrainingError) as error:
            logger.warning("nothing is reloaded: %s", error)

    def not_ready_because(self) -> str | None:
        """Why requests would be turned away now; None when they would not."""
        if self.failure is not None:
            return f"the service could not start: {self.failure}"
        if self._drain is not None:
            return "the service is shutting down"
        if self._engine is None or self._service is None:
            return "the models are being loaded"
        if (reason := self._engine.not_ready_because()) is not None:
            return reason
        age_seconds = self._engine.stats().last_step_age_seconds
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
        if self._service is not None:
            await self._service.drain(self.settings.drain_timeout_seconds)
        elif self._engine is not None:
            await self._engine.close()
        if self._loading is not None:
            await self._loading

    async def _load(self) -> None:
        try:
            checkpoints = await asyncio.to_thread(self._read_checkpoints)
            if self._drain is not None:
                return
            self._engine = self._make_engine(checkpoints)
            loaded = await self._engine.start()
            self._serve(checkpoints, loaded, self._engine)
        except StartupError as error:
            self._fail(str(error))
        except DrainingError:
            logger.info("shut down before the models were loaded")
        except Exception:
            logger.exception("loading the models failed")
            self._fail("loading the models failed unexpectedly; the log has the details")

    def _fail(self, reason: str) -> None:
        self.failure = reason
        logger.critical("%s", reason)
        if self._on_startup_failure is not None:
            self._on_startup_failure()

    def _read_checkpoints(self) -> list[CheckpointInfo]:
        """Find out everything that can be known before anything slow is loaded."""
        settings = self.settings
        checkpoints = read_checkpoints(settings.checkpoints_dir, settings.models)
        choose_default(checkpoints, GENERATE, settings.default_generate_model)
        choose_default(checkpoints, TRANSLATE, settings.default_translate_model)
        return checkpoints

    def _make_engine(self, checkpoints: Sequence[CheckpointInfo]) -> SupervisedEngine:
        settings = self.settings

        def open_link(listener: LinkListener) -> Link:
            """For an engine that comes back with the models that serve now."""
            serving = self.catalog.models if self.catalog is not None else ()
            load = self._engine_load(
                [model.info for model in serving] or checkpoints,
                {model.name: model.revision for model in serving},
            )
            if settings.engine == "inline":
                return InlineLink(load, listener)
            return ProcessLink(
                load,
                listener,
                log_level=settings.log_level,
                log_format=resolve_format(settings.log_format),
            )

        return SupervisedEngine(
            open_link,
            queue_capacity=settings.queue_capacity,
            row_budget=settings.row_budget,
            on_steps=self.metrics.observe_steps,
            hang_seconds=settings.engine_hang_seconds,
        )

    def _engine_load(
        self, checkpoints: Sequence[CheckpointInfo], revisions: Mapping[str, int]
    ) -> EngineLoad:
        settings = self.settings
        spec = EngineSpec(
            checkpoints=tuple(info.path for info in checkpoints),
            device=settings.device,
            precision=settings.precision,
            num_threads=settings.num_threads,
            row_budget=settings.row_budget,
            prefix_cache_bytes=settings.prefix_cache_bytes,
            revisions=revisions,
        )
        fingerprints = {info.name: info.fingerprint for info in checkpoints}
        return partial(load_unchanged, self._engine_loader, spec, fingerprints)

    def _serve(
        self, checkpoints: Sequence[CheckpointInfo], loaded: Loaded, engine: SupervisedEngine
    ) -> None:
        catalog = Catalog(
            [
                ServedModel(
                    info,
                    loaded.device,
                    loaded.precision,
                    loaded.load_seconds[info.name],
                    loaded.capability,
                )
                for info in checkpoints
            ],
            default_generate=self.settings.default_generate_model,
            default_translate=self.settings.default_translate_model,
        )
        for model in catalog.models:
            self.metrics.describe_model(model)
        self.metrics.watch_engine(engine.stats)
        self._service = Service(self.settings, catalog, engine, self.metrics)
        self._reloader = Reloader(catalog, engine, self.metrics, self._on_loaded)
        self._on_demand = ModelsOnDemand(
            self.settings.checkpoints_dir, catalog, engine, self.metrics
        )
        logger.info("ready: %s", ", ".join(model.name for model in catalog.models))
        if self._on_loaded is not None:
            self._on_loaded()
