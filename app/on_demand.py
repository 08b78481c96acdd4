"""Models that join a service while it runs, and leave it again.

Who decides which of them are there is whoever calls this: ``deploy/ray`` does, with Ray's model
multiplexing. By itself a service has the models that it began with.
"""

import asyncio
import logging
from dataclasses import replace
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
        self.resident = frozenset(model.name for model in catalog.models)
        """Names of the models that the service began with, which never leave it."""

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

        Raises:
            UnknownModelError: there is no such checkpoint.
            NotReadyError: it is damaged, or the engine cannot load it now.
            DrainingError: the service shuts down.
        """
        if any(model.name == name for model in self._catalog.models):
            return self._catalog.get(name)
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
