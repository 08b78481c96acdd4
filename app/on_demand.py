"""Models that join a service while it runs, and leave it again.

Who decides which of them are there is whoever calls this: ``deploy/ray`` does, with Ray's model
multiplexing. By itself a service has the models that it began with.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from app.catalog import Catalog, ServedModel
from app.engine.messages import ModelRevision
from app.engine.supervisor import SupervisedEngine
from app.exceptions import NotReadyError, ReloadError, UnknownModelError
from app.metrics import Metrics
from app.reloading import revision_of
from models.checkpoint import (
    CheckpointError,
    checkpoint_name,
    find_checkpoints,
    read_checkpoint,
)

logger = logging.getLogger(__name__)


class ModelsOnDemand:
    """Loads checkpoints into a running engine, and drops them.

    Args:
        root: folder of checkpoint folders.
        catalog: of the service; it is changed in place.
        engine: that runs the models.
        metrics: where models are described.
    """

    def __init__(
        self, root: Path, catalog: Catalog, engine: SupervisedEngine, metrics: Metrics
    ) -> None:
        self._root = root
        self._catalog = catalog
        self._engine = engine
        self._metrics = metrics
        self._revisions: dict[str, int] = {}
        self._loads: dict[str, asyncio.Task[ServedModel]] = {}
        self._waiting: Counter[str] = Counter()
        self.resident = frozenset(model.name for model in catalog.models)
        """Names of the models that the service began with, which never leave it."""

    @property
    def loading(self) -> Collection[str]:
        """Names of the models that are being loaded."""
        return self._loads.keys()

    async def check(self, name: str) -> None:
        """Find out whether a model could be loaded, as far as its name tells.

        Raises:
            UnknownModelError: there is no such checkpoint.
            NotReadyError: the folder of checkpoints cannot be read.
        """
        try:
            await asyncio.to_thread(self._find, name)
        except CheckpointError as error:
            raise NotReadyError(str(error)) from error

    async def load(self, name: str) -> ServedModel:
        """Serve one more model; requests may name it from now on.

        Those who ask for it at once share the load. When all of them have gone away before its
        end, the model leaves again.

        Raises:
            UnknownModelError: there is no such checkpoint.
            NotReadyError: it is damaged, or the engine cannot load it now.
            DrainingError: the service shuts down.
        """
        if any(model.name == name for model in self._catalog.models):
            return self._catalog.get(name)
        if name not in self._loads:
            self._loads[name] = asyncio.create_task(self._load(name))
            self._loads[name].add_done_callback(partial(self._forget, name))
        self._waiting[name] += 1
        try:
            # Half a load is none: it goes on when the caller is cancelled.
            return await asyncio.shield(self._loads[name])
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]

    def _forget(self, name: str, load: asyncio.Task[ServedModel]) -> None:
        del self._loads[name]
        if not load.cancelled():
            load.exception()  # which those who waited were told, if any did

    async def _load(self, name: str) -> ServedModel:
        try:
            info = await asyncio.to_thread(lambda: read_checkpoint(self._find(name)))
            order = ModelRevision(
                name, self._revisions.get(name, -1) + 1, str(info.path), info.fingerprint
            )
            loaded = await self._engine.load_model(order)
        except (CheckpointError, ReloadError) as error:
            logger.error("model %s is not loaded: %s", name, error)
            raise NotReadyError(f"model {name} cannot be loaded: {error}") from error
        # Where a model computes is the same for all of one engine.
        model = replace(
            self._catalog.models[0],
            info=info,
            revision=order.revision,
            load_seconds=loaded.load_seconds,
        )
        self._catalog.replace(model)
        self._metrics.describe_model(model)
        logger.info("model %s loaded", name)
        if not self._waiting[name]:
            self.unload(name)
        return model

    def unload(self, name: str) -> None:
        """Serve a model no longer; requests that were submitted for it go on to their end.

        Raises:
            ValueError: the service began with it.
            UnknownModelError: no loaded model has the name.
        """
        if name in self.resident:
            raise ValueError(f"the service began with model {name}")
        model = self._catalog.get(name)  # perhaps not the one that was loaded: it may be reloaded
        self._revisions[name] = model.revision
        self._catalog.remove(name)
        self._engine.retire_model(revision_of(model), name_too=True)
        self._metrics.forget_model(model)
        logger.info("model %s unloaded", name)

    def _find(self, name: str) -> Path:
        """A checkpoint's folder; a name is one of those that are there, never a path."""
        for path in find_checkpoints(self._root):
            if checkpoint_name(path) == name:
                return path
        raise UnknownModelError("there is no checkpoint of this name to be loaded")
