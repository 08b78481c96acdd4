"""Hot reload: a model is replaced by what its folder holds now, and no request notices.

The engine loads the new checkpoint beside the old one. When it serves, the catalog is switched
on the event loop, between two requests: whoever looks the model up from then on has the new
tokenizer, and with it the new revision, which travels with every decode request. What was
submitted before goes on over the old one, which the engine drops when its last request is over.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from app.catalog import Catalog, ServedModel
from app.damage import damage_as
from app.engine.messages import ModelRevision
from app.engine.supervisor import SupervisedEngine
from app.exceptions import GatehouseError, ReloadError
from app.metrics import Metrics
from models.checkpoint import CheckpointInfo, read_checkpoint

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Reload:
    """What a reload did.

    Attributes:
        old: what served before.
        new: what serves now; the same object where the folder has not changed.
    """

    old: ServedModel
    new: ServedModel

    @property
    def is_changed(self) -> bool:
        """Whether another checkpoint serves now."""
        return self.new is not self.old


class Reloader:
    """Replaces models of a running service, one at a time.

    Args:
        catalog: of the service; it is changed in place.
        engine: that runs the models.
        metrics: where models are described and reloads are counted.
        on_loaded: called when a new model has taken its place.
    """

    def __init__(
        self,
        catalog: Catalog,
        engine: SupervisedEngine,
        metrics: Metrics,
        on_loaded: Callable[[], None] | None = None,
    ) -> None:
        self._catalog = catalog
        self._engine = engine
        self._metrics = metrics
        self._on_loaded = on_loaded
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def reload(self, name: str) -> Reload:
        """Replace a model by what its folder holds now.

        It goes on when the caller is cancelled: half a reload is none.

        Raises:
            UnknownModelError: no model has the name.
            ReloadError: the folder holds nothing that could take its place.
            UnavailableError: the engine cannot load it now.
        """
        self._catalog.get(name)
        return await asyncio.shield(self._keep(self._reload(name)))

    def begin_reload_all(self) -> None:
        """Replace every model whose folder has changed; what goes wrong is logged."""
        self._keep(self._reload_all())

    def _keep(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _reload_all(self) -> None:
        logger.info("every model is reloaded")
        for model in self._catalog.models:
            try:
                await self._reload(model.name)
            except GatehouseError:
                continue  # it has been logged
            except Exception:
                logger.exception("reloading model %s failed", model.name)

    async def _reload(self, name: str) -> Reload:
        async with self._one_at_a_time:
            outcome = "failed"
            try:
                reload = await self._replace(self._catalog.get(name))
                outcome = "changed" if reload.is_changed else "unchanged"
            except GatehouseError as error:
                logger.error("model %s stays as it is: %s", name, error)
                raise
            finally:
                self._metrics.model_reloads.labels(name, outcome).inc()
            logger.info(
                "model %s reloaded (%s), fingerprint %s",
                name,
                outcome,
                reload.new.info.fingerprint[:16],
            )
            return reload

    async def _replace(self, old: ServedModel) -> Reload:
        with damage_as(ReloadError):
            info = await asyncio.to_thread(read_checkpoint, old.info.path)
        _check_it_fits(old, info)
        if info.fingerprint == old.info.fingerprint:
            return Reload(old, old)
        order = revision_of(replace(old, info=info, revision=old.revision + 1))
        loaded = await self._engine.load_model(order)
        new = replace(old, info=info, revision=order.revision, load_seconds=loaded.load_seconds)
        # From here to the end nothing waits: no request comes between.
        if all(model is not old for model in self._catalog.models):
            self._engine.retire_model(order, name_too=True)
            raise ReloadError("the model was unloaded meanwhile")
        self._catalog.replace(new)
        self._engine.retire_model(revision_of(old))
        self._metrics.forget_model(old)
        self._metrics.describe_model(new)
        if self._on_loaded is not None:
            self._on_loaded()
        return Reload(old, new)


def revision_of(model: ServedModel) -> ModelRevision:
    """How the engine is told of a model."""
    info = model.info
    return ModelRevision(info.name, model.revision, str(info.path), info.fingerprint)


def _check_it_fits(old: ServedModel, info: CheckpointInfo) -> None:
    """What clients were told about a model stays true: its tasks, its languages, the defaults.

    Raises:
        ReloadError: it does not.
    """
    new = replace(old, info=info)
    for what, before, now in (
        ("kind", old.info.config.kind, info.config.kind),
        ("tasks", old.tasks, new.tasks),
        ("languages", old.languages, new.languages),
    ):
        if before != now:
            raise ReloadError(
                f"{info.path}: {what} {_shown(now)} instead of {_shown(before)}: start the "
                "service again to use it"
            )


def _shown(what: str | tuple[str, ...] | None) -> str:
    return what if isinstance(what, str) else ", ".join(what or ("none",))
