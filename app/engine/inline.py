"""An engine on a thread of the HTTP process: for tests, debugging and the command line."""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable

from app.engine.host import HEARTBEAT_SECONDS, EngineLoad, host_engine
from app.engine.link import SECONDS_TO_LEAVE, LinkListener
from app.engine.messages import EngineMessage, Loaded, NotLoaded, Orders

logger = logging.getLogger(__name__)

THREAD_NAME = "gatehouse-engine"


class InlineLink:
    """See :class:`app.engine.link.Link`.

    Args:
        load: what to run.
        listener: who hears of the engine.
        heartbeat_seconds: an idle engine takes a real step this often.
    """

    def __init__(
        self,
        load: EngineLoad,
        listener: LinkListener,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._load = load
        self._listener = listener
        self._heartbeat_seconds = heartbeat_seconds
        self._orders: queue.SimpleQueue[Orders] = queue.SimpleQueue()
        self._is_loaded = False
        self._is_over = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)

    def start(self) -> None:
        """See :meth:`app.engine.link.Link.start`."""
        self._loop = asyncio.get_running_loop()
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads
            raise OSError(f"cannot start the engine's thread: {error}") from error

    def send(self, orders: Orders) -> None:
        """See :meth:`app.engine.link.Link.send`."""
        self._orders.put(orders)

    def kill(self, reason: str) -> None:
        """See :meth:`app.engine.link.Link.kill`.

        A thread cannot be ended: it is left behind, and leaves by itself if it ever goes on.
        """
        if not self._is_over:
            self._is_over = True
            self._orders.put(Orders(stop=True))
            self._loop.call_soon(self._listener.lost, f"{reason}; its thread is left behind")

    async def close(self) -> None:
        """See :meth:`app.engine.link.Link.close`; a thread that loads has to be waited for."""
        self._is_over = True
        if self._thread.ident is None:
            return
        self._orders.put(Orders(stop=True))
        timeout_seconds = SECONDS_TO_LEAVE if self._is_loaded else None
        await asyncio.to_thread(self._thread.join, timeout_seconds)
        if self._thread.is_alive():
            logger.error("the engine's thread is stuck in a step; it is left behind")

    # ---- on the event loop ----

    def _received(self, message: EngineMessage) -> None:
        if isinstance(message, NotLoaded):
            self._failure = message.reason
            self._orders.put(Orders(stop=True))
        elif not self._is_over:
            self._is_loaded = self._is_loaded or isinstance(message, Loaded)
            self._listener.received(message)

    def _ended(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._listener.lost(self._failure or self._unexpected_end())

    def _unexpected_end(self) -> str:
        if self._is_loaded:
            return "the engine's thread died; the log has the details"
        return "loading the models failed unexpectedly; the log has the details"

    # ---- on the thread ----

    def _run(self) -> None:
        try:
            channel = _ThreadChannel(self._orders, self._tell)
            host_engine(self._load, channel, heartbeat_seconds=self._heartbeat_seconds)
        except BaseException:
            logger.exception("the engine's thread died")
        finally:
            self._call(self._ended)

    def _tell(self, message: EngineMessage) -> None:
        self._call(self._received, message)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: nobody listens any more
            logger.debug("the event loop is closed; the engine talks to nobody")


class _ThreadChannel:
    """See :class:`app.engine.host.EngineChannel`."""

    def __init__(
        self, orders: "queue.SimpleQueue[Orders]", tell: Callable[[EngineMessage], None]
    ) -> None:
        self._orders = orders
        self.send = tell

    def receive(self, timeout_seconds: float | None) -> list[Orders]:
        """See :meth:`app.engine.host.EngineChannel.receive`."""
        received: list[Orders] = []
        try:
            if timeout_seconds != 0:
                received.append(self._orders.get(timeout=timeout_seconds))
            while True:
                received.append(self._orders.get_nowait())
        except queue.Empty:
            return received
