"""What runs in the engine's process, which :class:`app.engine.process.ProcessLink` starts.

The HTTP process owns this one: signals that end a service are its business, and when it ends,
however it ends, so does this.
"""

import ctypes
import logging
import math
import os
import pickle
import signal
import sys
import threading
from dataclasses import dataclass

import zmq

from app.engine.host import EngineLoad, LoadedModels, host_engine
from app.engine.messages import EngineMessage, Hello, Orders, decode_orders, encode
from app.garbage import freeze_heap
from app.logs import LogFormat, configure_logging

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_LINGER_MILLISECONDS = 1_000


@dataclass(frozen=True, slots=True)
class Startup:
    """What the engine's process is given on its standard input.

    Attributes:
        endpoint: ZeroMQ's address of the HTTP process.
        token: tells the HTTP process that nobody else has connected.
        parent: process id of the HTTP process.
        log_level: least severe level of log lines that are written.
        log_format: how they look.
        heartbeat_seconds: an idle engine takes a real step this often.
        load: the pickled :data:`app.engine.host.EngineLoad`; unpickling it imports the models'
            code, which takes a while.
    """

    endpoint: str
    token: str
    parent: int
    log_level: str
    log_format: LogFormat
    heartbeat_seconds: float
    load: bytes


def main() -> None:
    """Run an engine until the HTTP process says stop or is gone.

    Standard input holds a pickled :class:`Startup`, and then stays open as long as the HTTP
    process lives.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    startup = pickle.load(sys.stdin.buffer)
    assert isinstance(startup, Startup)
    _die_with(startup.parent)
    configure_logging(startup.log_level, startup.log_format)
    try:
        with _SocketChannel(startup.endpoint) as channel:
            channel.send(Hello(startup.token))
            load: EngineLoad = pickle.loads(startup.load)

            def load_and_freeze() -> LoadedModels:
                loaded = load()
                freeze_heap()
                return loaded

            host_engine(load_and_freeze, channel, heartbeat_seconds=startup.heartbeat_seconds)
    except Exception:
        logger.exception("the engine process dies")
        sys.exit(1)


def _die_with(parent: int) -> None:
    """End this process when its parent is gone, even where no code of this one can run."""
    if sys.platform == "linux":
        # Sent as well when the parent's thread that started this process ends.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=_wait_for_the_end_of_input, daemon=True).start()


def _wait_for_the_end_of_input() -> None:
    # Not `sys.stdin.read`: its lock would be held when the interpreter shuts down.
    while os.read(0, 1):
        pass
    os._exit(1)


def has_message(socket: "zmq.Socket[bytes]") -> bool:
    """Whether something has come that can be received without waiting."""
    events = socket.get(zmq.EVENTS)
    assert isinstance(events, int)
    return bool(events & zmq.POLLIN)


class _SocketChannel:
    """See :class:`app.engine.host.EngineChannel`."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        # The books limit what is under way; ZeroMQ's own limits would block or drop.
        self._socket.set_hwm(0)
        self._socket.linger = _LINGER_MILLISECONDS
        self._socket.connect(endpoint)

    def __enter__(self) -> "_SocketChannel":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()

    def send(self, message: EngineMessage) -> None:
        """See :meth:`app.engine.host.EngineChannel.send`."""
        self._socket.send(encode(message))

    def receive(self, timeout_seconds: float | None) -> list[Orders]:
        """See :meth:`app.engine.host.EngineChannel.receive`."""
        if timeout_seconds != 0:
            self._socket.poll(None if timeout_seconds is None else math.ceil(timeout_seconds * 1e3))
        received: list[Orders] = []
        # Asked before, since a step of few rows would notice the exception of a vain attempt.
        while has_message(self._socket):
            received.append(decode_orders(self._socket.recv(zmq.NOBLOCK)))
        return received
