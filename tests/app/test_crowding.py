"""Clients that take their answers slowly, over a real socket: ``app.crowding``."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from app.crowding import crowd_protocol
from app.settings import Settings
from tests.app.conftest import TIMEOUT_SECONDS

SEND_TIMEOUT_SECONDS = 0.5
BODY = b"x" * 16_000_000
"""More than the kernel keeps for a client that does not read."""


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    length = str(len(BODY)).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]}
    )
    await send({"type": "http.response.body", "body": BODY})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a server whose connections count as idle much sooner than its answers are taken."""
    with _serving(Settings(send_timeout_seconds=SEND_TIMEOUT_SECONDS)) as port:
        yield port


@contextmanager
def _serving(settings: Settings) -> Iterator[int]:
    protocol = crowd_protocol(settings)
    config = uvicorn.Config(
        _answer, port=0, http=protocol, lifespan="off", ws="none", timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def _asking(port: int) -> Iterator[socket.socket]:
    with closing(socket.socket()) as connection:
        connection.settimeout(TIMEOUT_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        yield connection


def _read(connection: socket.socket, pause_seconds: float) -> int:
    """How many bytes come, read in pieces with pauses, until the connection ends."""
    received = 0
    while received < len(BODY):
        try:
            piece = connection.recv(262_144)
        except ConnectionResetError:
            break
        if not piece:
            break
        received += len(piece)
        time.sleep(pause_seconds)
    return received


def test_an_answer_that_is_taken_slowly_comes_whole(port: int) -> None:
    # Several times as long as the limit on what is not taken, and as an idle connection has.
    with _asking(port) as connection:
        began = time.monotonic()
        assert _read(connection, 0.03) >= len(BODY)
        assert time.monotonic() - began > 3 * SEND_TIMEOUT_SECONDS


def test_an_answer_that_is_not_taken_is_cut_off(port: int) -> None:
    with _asking(port) as connection:
        time.sleep(6 * SEND_TIMEOUT_SECONDS)
        assert _read(connection, 0.0) < len(BODY)


def test_who_comes_into_a_crowd_is_told_and_goes() -> None:
    with _serving(Settings(max_connections=1)) as port, _asking(port) as first:
        assert first.recv(12) == b"HTTP/1.1 200"
        with _asking(port) as late:
            answer = late.makefile("rb").read()  # to the end: nobody stays in a crowd
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"connection: close" in answer.partition(b"\r\n\r\n")[0].lower()


def test_as_many_as_may_come_are_no_crowd() -> None:
    with (
        _serving(Settings(max_connections=2)) as port,
        _asking(port) as one,
        _asking(port) as other,
    ):
        assert one.recv(12) == other.recv(12) == b"HTTP/1.1 200"
        with _asking(port) as late:
            assert late.recv(12) == b"HTTP/1.1 503"
