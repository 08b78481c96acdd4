"""What an engine is to run, for those who ask one and need no torch for it.

Torch and what the models compute with take seconds to import, and 250 MB: the engine's process
alone does that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.engine.host import LoadedModels


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is to run.

    Attributes:
        checkpoints: folders.
        device: the setting: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: the setting: ``auto`` or a :data:`models.precision.Precision`.
        num_threads: threads that share out a step; None: see :func:`default_threads`.
        row_budget: rows of each model that may run at once.
        prefix_cache_bytes: memory for states of prompts that each language model has read.
        revisions: of the models that were reloaded, by name; see
            :class:`app.engine.messages.ModelRevision`.
    """

    checkpoints: tuple[Path, ...]
    device: str
    precision: str
    num_threads: int | None
    row_budget: int
    prefix_cache_bytes: int = 0
    revisions: Mapping[str, int] = field(default_factory=dict)


EngineLoader = Callable[[EngineSpec], LoadedModels]
"""Loads weights."""


def load_models(spec: EngineSpec) -> LoadedModels:
    """See :func:`app.engine.loading.load_engine`, which is imported when this is called."""
    from app.engine.loading import load_engine

    return load_engine(spec)
