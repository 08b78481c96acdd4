"""What a damaged checkpoint is to the service."""

from collections.abc import Iterator
from contextlib import contextmanager

from app.exceptions import ReloadError, StartupError
from models.checkpoint import CheckpointError


@contextmanager
def damage_as(error: type[StartupError | ReloadError]) -> Iterator[None]:
    """Around what reads a checkpoint: that it is damaged stops a start, or a reload alone.

    Args:
        error: what a :class:`~models.checkpoint.CheckpointError` becomes.

    Raises:
        StartupError: it is damaged, and this was asked for.
        ReloadError: likewise.
    """
    try:
        yield
    except CheckpointError as problem:
        raise error(f"damaged checkpoint: {problem}") from problem
