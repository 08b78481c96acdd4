"""An engine in a process of its own, over ZeroMQ: the HTTP process's end."""

import asyncio
import logging
import os
import pickle
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq

from app.engine.child import Startup, has_message
from app.engine.host import HEARTBEAT_SECONDS, EngineLoad
from app.engine.link import SECONDS_TO_LEAVE, LinkListener
from app.engine.messages import (
    EngineMessage,
    Hello,
    Loaded,
    NotLoaded,
    Orders,
    decode_message,
    encode,
)
from app.logs import LogFormat

logger = logging.getLogger(__name__)

PROCESS_NAME = "gatehouse-engine"
"""Last word of the engine's command line, to find it by."""

# The child finds modules where this process does, whatever put them there.
_BOOTSTRAP = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from app.engine.child import main; main()"
)
_LONGEST_IPC_PATH = 100  # bytes; the address of a Unix socket has room for 104 to 108


class ProcessLink:
    """See :class:`app.engine.link.Link`.

    Args:
        load: what to run; must be picklable.
        listener: who hears of the engine.
        log_level: least severe level of the engine's log lines.
        log_format: how they look.
        heartbeat_seconds: an idle engine takes a real step this often.
        seconds_to_leave: an engine that has not left so long after it was told to is killed.
    """

    def __init__(
        self,
        load: EngineLoad,
        listener: LinkListener,
        *,
        log_level: str = "info",
        log_format: LogFormat = "text",
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        seconds_to_leave: float = SECONDS_TO_LEAVE,
    ) -> None:
        self._load = pickle.dumps(load)
        self._listener = listener
        self._log_level = log_level
        self._log_format = log_format
        self._heartbeat_seconds = heartbeat_seconds
        self._seconds_to_leave = seconds_to_leave
        self._token = secrets.token_hex()
        self._directory: Path | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_trusted = False
        self._is_loaded = False
        self._is_over = False
        self._failure: str | None = None

    @property
    def pid(self) -> int | None:
        """The engine's process id, once it was started."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """See :meth:`app.engine.link.Link.start`.

        On Linux the engine's process ends with the *thread* that calls this.
        """
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        try:
            endpoint = self._listen()
            self._process = self._spawn(endpoint)
            threading.Thread(
                target=self._wait, args=[self._process], name="gatehouse-engine-exit", daemon=True
            ).start()
        except (OSError, RuntimeError, zmq.ZMQError) as error:  # RuntimeError: no more threads
            self._end_by_force()
            self._release()
            raise OSError(f"cannot start the engine's process: {error}") from error
        logger.info("the engine's process is %d", self._process.pid)
        self._loop.add_reader(self._descriptor, self._receive)

    def send(self, orders: Orders) -> None:
        """See :meth:`app.engine.link.Link.send`."""
        try:
            self._socket.send(encode(orders), zmq.NOBLOCK)
        except zmq.ZMQError:  # nobody is connected (any more)
            logger.debug("the engine's process does not hear")
        # Sending may have taken up the sign that something came: see below.
        self._receive()

    def kill(self, reason: str) -> None:
        """See :meth:`app.engine.link.Link.kill`; SIGKILL ends a process that is stopped, too."""
        self._failure = reason
        self._end_by_force()

    async def close(self) -> None:
        """See :meth:`app.engine.link.Link.close`."""
        self._is_over = True
        if self._process is None:
            return
        if self._is_loaded and not self._exited.done():
            self.send(Orders(stop=True))
            await asyncio.wait([self._exited], timeout=self._seconds_to_leave)
            if not self._exited.done():
                logger.error("the engine's process is stuck in a step; it is killed")
        if not self._exited.done():
            self._process.kill()
            await asyncio.wait([self._exited], timeout=self._seconds_to_leave)
        self._release()

    # ---- start ----

    def _listen(self) -> str:
        """Bind a socket that only this user can reach; returns its address."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        # The books limit what is under way; ZeroMQ's own limits would block or drop.
        self._socket.set_hwm(0)
        self._socket.linger = 0
        self._descriptor = int(self._socket.get(zmq.FD))
        self._directory = Path(tempfile.mkdtemp(prefix="gatehouse-"))
        path = self._directory / "engine"
        if zmq.has("ipc") and len(os.fsencode(path)) <= _LONGEST_IPC_PATH:
            endpoint = f"ipc://{path}"
            self._socket.bind(endpoint)
            return endpoint
        # Others on this machine reach it, but none knows the token, and only one can connect.
        return f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"

    def _spawn(self, endpoint: str) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, PROCESS_NAME],
            stdin=subprocess.PIPE,
            # What the engine prints belongs into the log, not into the service's greeting.
            stdout=sys.__stderr__.fileno() if sys.__stderr__ is not None else None,
            # Ctrl-C in a terminal is for the HTTP process alone.
            process_group=0,
        )
        startup = Startup(
            endpoint,
            self._token,
            os.getpid(),
            self._log_level,
            self._log_format,
            self._heartbeat_seconds,
            self._load,
        )
        assert process.stdin is not None
        try:
            process.stdin.write(pickle.dumps(sys.path) + pickle.dumps(startup))
            process.stdin.flush()  # and stays open: see app.engine.child
        except BrokenPipeError:
            logger.debug("the engine's process ended before it could read")
        return process

    # ---- on the event loop ----

    def _receive(self) -> None:
        """Take in every message that has come.

        ZeroMQ's descriptor tells that something has changed, not that messages are there, and
        may tell it only once.
        """
        while self._context is not None and has_message(self._socket):
            try:
                self._take(decode_message(self._socket.recv(zmq.NOBLOCK)))
            except msgspec.DecodeError:
                logger.exception("the engine's process sent something odd; it is ended")
                self._end_by_force()

    def _take(self, message: EngineMessage) -> None:
        if isinstance(message, Hello):
            self._is_trusted = secrets.compare_digest(message.token.encode(), self._token.encode())
            if self._is_trusted:
                # The connection stands: whatever becomes of this process, no file is left behind.
                self._remove_directory()
            return
        if not self._is_trusted or self._is_over:
            return
        if isinstance(message, NotLoaded):
            self._failure = message.reason
            self.send(Orders(stop=True))
            return
        self._is_loaded = self._is_loaded or isinstance(message, Loaded)
        self._listener.received(message)

    def _end_by_force(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _ended(self, status: int) -> None:
        self._exited.set_result(status)
        if not self._is_over:
            # What it said last may have come while this loop was busy.
            self._receive()
            self._is_over = True
            self._release()
            self._listener.lost(self._failure or self._unexpected_end(status))

    def _unexpected_end(self, status: int) -> str:
        when = "" if self._is_loaded else " while it loaded the models"
        if status < 0:
            return f"the engine's process was ended by {_signal_name(-status)}{when}"
        return f"the engine's process died{when}; the log has the details"

    def _release(self) -> None:
        """Give back all that this process holds for the engine's."""
        if self._context is not None:
            self._loop.remove_reader(self._descriptor)
            self._context.destroy(linger=0)
            self._context = None
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it ended before it could read
                self._process.stdin.close()
        self._remove_directory()

    def _remove_directory(self) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    # ---- on a thread that does nothing else ----

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        status = process.wait()
        try:
            self._loop.call_soon_threadsafe(self._ended, status)
        except RuntimeError:  # the loop is closed: nobody listens any more
            logger.debug("the event loop is closed; the engine's process is gone")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
