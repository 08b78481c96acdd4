"""The server process, its reload on a signal, and its shutdown in good order."""

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Sequence

import uvicorn

from app.connection import limited_protocol
from app.crowding import crowd_protocol, make_room_for
from app.exceptions import StartupError, TooManyConnectionsError
from app.garbage import freeze_heap
from app.keys import is_loopback
from app.main import create_app
from app.metrics import Metrics
from app.runtime import Runtime
from app.settings import Settings, variable_name

logger = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 5
"""Time after the drain limit in which requests that it cut off are told so."""
_PATH_ARGUMENT = 2
"""Which argument of a line of uvicorn's access log is the path."""


class DrainingServer(uvicorn.Server):
    """Lets the service drain as soon as a signal comes.

    By itself uvicorn waits for requests first and tells the application only afterwards, when
    it has cancelled those that took too long: they would get no answer that says why.
    """

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does; from now on SIGHUP reloads the models."""
        await super().startup(sockets)
        if hasattr(signal, "SIGHUP"):
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, self._runtime.begin_reload)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to drain, and go on as uvicorn does."""
        self._runtime.begin_drain()
        await super().shutdown(sockets)


def _protocol(settings: Settings, metrics: Metrics) -> type[asyncio.Protocol]:
    """HTTP/1.1 with all limits on what a connection may take."""
    refused = metrics.rejected.labels(TooManyConnectionsError.code)
    bases = (
        crowd_protocol(settings, refused.inc),
        limited_protocol(settings.receive_timeout_seconds),
    )
    return type("Protocol", bases, {})


def run_server(settings: Settings, listener: socket.socket, names: Sequence[str]) -> None:
    """Serve until a signal comes and everything is drained.

    Args:
        settings: of the service.
        listener: a bound socket.
        names: of the models that will be loaded, for the greeting.

    Raises:
        StartupError: the models could not be loaded.
    """

    def stop() -> None:
        server.should_exit = True

    runtime = Runtime(settings, on_startup_failure=stop, on_loaded=freeze_heap)
    app = create_app(runtime=runtime)
    config = uvicorn.Config(
        app,
        http=_protocol(settings, runtime.metrics),
        log_config=None,
        ws="none",
        access_log=settings.log_level == "debug",
        root_path=settings.root_path,
        timeout_keep_alive=settings.idle_timeout_seconds,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_seconds) + _SECONDS_TO_ANSWER,
    )
    server = DrainingServer(config, runtime)
    make_room_for(settings.max_connections)
    # A path's query is the client's, and may hold what belongs into no log.
    logging.getLogger("uvicorn.access").addFilter(_without_query)
    # Before the greeting: whoever has read it may send a signal at once.
    # uvicorn ends in good order on these signals, and then raises them again for the handlers
    # that were there before: ours, so that the process ends with status 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop())
    if hasattr(signal, "SIGHUP"):
        # Too early for a reload is no reason to die of it.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"Gatehouse listens on {address}")
    print(f"Try it:  {address}/")
    print(f"Models:  {', '.join(names)}", flush=True)
    if app.state.keys.allows_anonymous and not is_loopback(settings.host):
        logger.warning(
            "whoever reaches %s may use the service without a key: %s is set",
            address,
            variable_name("allow_anonymous"),
        )
    server.run(sockets=[listener])
    if runtime.failure is not None:
        raise StartupError(runtime.failure)


def _without_query(record: logging.LogRecord) -> bool:
    """Cuts the query off the path in a line of uvicorn's access log."""
    if isinstance(record.args, tuple) and len(record.args) > _PATH_ARGUMENT:
        arguments = list(record.args)
        arguments[_PATH_ARGUMENT] = str(arguments[_PATH_ARGUMENT]).partition("?")[0]
        record.args = tuple(arguments)
    return True
