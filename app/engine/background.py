"""Models that are loaded on a thread of their own while the engine goes on."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from app.engine.messages import ModelLoaded, ModelNotLoaded, ModelRevision
from app.exceptions import StartupError

logger = logging.getLogger(__name__)

THREAD_NAME = "gatehouse-loader"
_SECONDS_TO_LEAVE = 2.0
_UNEXPECTED = "loading it failed unexpectedly; the log has the details"

Serve = Callable[[], None]
"""Has the engine serve a model that is loaded; called on the engine's thread."""


class BackgroundLoads:
    """Loads models one after another, beside the engine.

    Args:
        prepare: loads a model, on the thread; see
            :meth:`app.engine.loading.LoadedEngine.prepare`.
    """

    def __init__(self, prepare: Callable[[ModelRevision], Serve]) -> None:
        self._prepare = prepare
        self._ordered: queue.SimpleQueue[ModelRevision | None] = queue.SimpleQueue()
        self._prepared: queue.SimpleQueue[tuple[ModelRevision, Serve | str, float]] = (
            queue.SimpleQueue()
        )
        self._open = 0
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a model is still to be told of by :meth:`finished`."""
        return self._open > 0

    def begin(self, model: ModelRevision) -> None:
        """Load a model when those before it are loaded."""
        if self._thread is None:
            # A daemon: a process that is to end does not wait for a load that hangs.
            self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
            self._thread.start()
        self._open += 1
        self._ordered.put(model)

    def finished(self) -> list[ModelLoaded | ModelNotLoaded]:
        """What became of models; from now on the engine serves those that are loaded."""
        told: list[ModelLoaded | ModelNotLoaded] = []
        while not self._prepared.empty():
            model, outcome, seconds = self._prepared.get()
            self._open -= 1
            if not isinstance(outcome, str):
                outcome = _serve(model, outcome)
            if outcome:
                told.append(ModelNotLoaded(model, outcome))
            else:
                told.append(ModelLoaded(model, seconds))
        return told

    def close(self) -> None:
        """Begin nothing more, and wait a moment for the thread."""
        if self._thread is not None:
            self._ordered.put(None)
            self._thread.join(_SECONDS_TO_LEAVE)

    # ---- on the thread ----

    def _run(self) -> None:
        while (model := self._ordered.get()) is not None:
            started_at = time.monotonic()
            outcome: Serve | str
            try:
                outcome = self._prepare(model)
            except StartupError as error:
                outcome = str(error)
            except Exception:
                logger.exception("loading model %s failed", model.name)
                outcome = _UNEXPECTED
            self._prepared.put((model, outcome, time.monotonic() - started_at))


def _serve(model: ModelRevision, serve: Serve) -> str:
    """Have the engine serve a model; returns what went wrong, or nothing."""
    try:
        serve()
    except Exception:
        logger.exception("model %s cannot be served", model.name)
        return _UNEXPECTED
    return ""
