"""One process at a time in a run's folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from training.resuming import RunError

LOCK_FILE = "lock"


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder; the lock goes with the process, however that ends.

    Raises:
        RunError: another process holds it.
    """
    lock = FileLock(run_dir / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"{run_dir.parent}: another process is training there: wait for it, or choose another "
            "--out or --name"
        ) from error
    try:
        yield
    finally:
        lock.release()
