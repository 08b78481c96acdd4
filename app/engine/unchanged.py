"""An engine that is started again must serve what the service began with."""

from collections.abc import Mapping

from app.damage import damage_as
from app.engine.host import LoadedModels
from app.engine.spec import EngineLoader, EngineSpec
from app.exceptions import StartupError
from models.checkpoint import read_checkpoint


def load_unchanged(
    loader: EngineLoader, spec: EngineSpec, fingerprints: Mapping[str, str]
) -> LoadedModels:
    """Load the models, and refuse a checkpoint that was replaced meanwhile.

    The HTTP process keeps the tokenizers of its own start: with the weights of another
    checkpoint they would give wrong text, and nobody would be told.

    Args:
        loader: loads the weights.
        spec: what to load.
        fingerprints: what the service's checkpoints must have, by name.

    Raises:
        StartupError: a checkpoint is damaged or has changed.
    """
    loaded = loader(spec)
    for path in spec.checkpoints:
        with damage_as(StartupError):
            info = read_checkpoint(path)
        if info.fingerprint != fingerprints[info.name]:
            raise StartupError(
                f"checkpoint {info.name} has changed since the service started: start the "
                "service again to use it"
            )
    return loaded
