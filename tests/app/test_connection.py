"""A request's way in over a real socket: bounded heads, and bounded time for heads and bodies."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from app.api.scope import WATCH_SCOPE_KEY
from app.connection import MAX_HEAD_BYTES, LimitedProtocol, limited_protocol
from app.crowding import CrowdProtocol
from tests.app.conftest import ENDLESS, NO_TOKEN_LIMIT, TIMEOUT_SECONDS, Server, message

LIMIT_SECONDS = 2.0
IDLE_SECONDS = 3
PREFIX = "/gatehouse"
BODY = b'{"prompt": "a", "max_new_tokens": 2}'
HEAD = (
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
)
GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def server(checkpoints_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hasty")
    settings = {
        "GATEHOUSE_RECEIVE_TIMEOUT_SECONDS": str(LIMIT_SECONDS),
        "GATEHOUSE_IDLE_TIMEOUT_SECONDS": str(IDLE_SECONDS),
        "GATEHOUSE_ROOT_PATH": PREFIX,
    }
    server = Server(checkpoints_dir, folder, **settings, **NO_TOKEN_LIMIT)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


@pytest.fixture
def connection(server: Server) -> Iterator[socket.socket]:
    host, _, port = server.address.removeprefix("http://").partition(":")
    with closing(socket.create_connection((host, int(port)), TIMEOUT_SECONDS)) as connection:
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    """All that the server sends until it closes the connection."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            received += piece
    return received


def read_answers(connection: socket.socket, count: int) -> bytes:
    """So many answers with bodies that end in a brace."""
    received = b""
    while received.count(b"HTTP/1.1 ") < count or not received.endswith(b"}"):
        piece = connection.recv(65_536)
        assert piece, received
        received += piece
    return received


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET[:-2], b"\r\n"])
def test_a_head_that_does_not_come_gets_408(connection: socket.socket, sent: bytes) -> None:
    started_at = time.monotonic()
    connection.sendall(sent)
    answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started_at >= 0.9 * LIMIT_SECONDS


def test_dribbling_buys_no_time(connection: socket.socket) -> None:
    connection.sendall(GET[:-2])
    connection.settimeout(0.05)
    answer, number = b"", 0
    while not answer:
        try:
            connection.sendall(b"X-%d: 1\r\n" % number)
            answer = connection.recv(65_536)
        except TimeoutError:
            number += 1
        except ConnectionError:
            return  # it was closed just as more was sent, and the answer is lost with that
        assert number < TIMEOUT_SECONDS / 0.05
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_nor_does_it_between_two_requests(connection: socket.socket) -> None:
    connection.sendall(GET)
    read_answers(connection, 1)
    connection.sendall(b"\r\n")
    assert read_to_end(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("part", [b"", BODY[:5]])
def test_a_body_that_does_not_come_gets_408_and_then_the_connection_ends(
    connection: socket.socket, part: bytes, server: Server
) -> None:
    connection.sendall(HEAD + part)
    answer = read_to_end(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == "request_timeout"
    assert 'outcome="request_timeout"' in server.client.get("/metrics").text


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 2 * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Many: 1\r\n" * (MAX_HEAD_BYTES // 5),
        b"GET /" + b"a" * 2 * MAX_HEAD_BYTES,
        # Complete, and sent in one piece.
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
        HEAD[:-2] + b"X-Long: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n" + BODY,
    ],
    ids=["a long header", "many headers", "a long path", "a whole request", "with a body"],
)
def test_a_head_that_is_too_large_gets_431(connection: socket.socket, sent: bytes) -> None:
    with suppress(ConnectionResetError, BrokenPipeError):  # it may be refused on the way
        connection.sendall(sent)
    answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 431 ") or answer == b""
    assert answer.count(b"HTTP/1.1") <= 1


def test_a_head_of_almost_that_size_is_read(connection: socket.socket) -> None:
    head = GET[:-2] + b"X-Long: " + b"a" * (MAX_HEAD_BYTES - 200) + b"\r\n\r\n"
    for _ in range(2):
        connection.sendall(head)
        assert read_answers(connection, 1).startswith(b"HTTP/1.1 200 ")


def test_an_answer_may_take_longer_than_its_request(connection: socket.socket) -> None:
    # Nearly two limits, at whose end the next one's head has its time from the beginning.
    request = message({**ENDLESS, "timeout_seconds": 2 * LIMIT_SECONDS - 0.1}, "/translate")
    # That head begins meanwhile, and comes to its end when the answer is there.
    connection.sendall(request + GET[:10])
    assert read_answers(connection, 1).startswith(b"HTTP/1.1 504 ")
    time.sleep(0.2 * LIMIT_SECONDS)
    connection.sendall(GET[10:])
    assert read_answers(connection, 1).startswith(b"HTTP/1.1 200 ")


def test_requests_in_pieces_and_behind_one_another_are_answered(connection: socket.socket) -> None:
    for byte in HEAD + BODY:
        connection.sendall(bytes([byte]))
    assert read_answers(connection, 1).startswith(b"HTTP/1.1 200 ")
    connection.sendall((HEAD + BODY) * 3 + GET)
    assert read_answers(connection, 4).count(b"HTTP/1.1 200 ") == 4


def test_each_head_is_measured_for_itself(connection: socket.socket) -> None:
    padded = GET.replace(b"\r\n\r\n", b"\r\nX-Padding: " + b"x" * 9_000 + b"\r\n\r\n")
    for _ in range(9):
        connection.sendall(padded)
        assert read_answers(connection, 1).startswith(b"HTTP/1.1 200 ")
    # The next is looked at before it is complete.
    connection.sendall(padded[:-1])
    time.sleep(0.1)
    connection.sendall(padded[-1:])
    assert read_answers(connection, 1).startswith(b"HTTP/1.1 200 ")


def test_an_idle_connection_is_closed(connection: socket.socket) -> None:
    started_at = time.monotonic()
    connection.sendall(GET)
    assert read_to_end(connection).count(b"HTTP/1.1") == 1
    assert IDLE_SECONDS <= time.monotonic() - started_at < IDLE_SECONDS + 1.9


def test_others_are_served_meanwhile(server: Server, connection: socket.socket) -> None:
    connection.sendall(HEAD)
    assert server.client.post("/generate", json={"prompt": "a"}).status_code == 200


def test_addresses_have_the_prefix_that_a_proxy_takes_off(server: Server) -> None:
    assert f'src="{PREFIX}/static-offline-docs/' in server.client.get("/docs").text
    description = server.client.get("/openapi.json").json()
    assert description["servers"] == [{"url": PREFIX}]
    assert "/generate" in description["paths"]


def test_whoever_works_for_a_client_is_told_when_it_goes() -> None:
    begun, told = threading.Event(), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope[WATCH_SCOPE_KEY](told.set)
        begun.set()
        await asyncio.get_running_loop().run_in_executor(None, told.wait, TIMEOUT_SECONDS)

    protocol = limited_protocol(TIMEOUT_SECONDS)
    config = uvicorn.Config(app, port=0, http=protocol, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with closing(socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)) as connection:
            connection.sendall(GET)
            assert begun.wait(TIMEOUT_SECONDS)
            assert not told.is_set()
        assert told.wait(TIMEOUT_SECONDS)
    finally:
        told.set()
        server.should_exit = True
        thread.join()


def test_the_protocols_that_the_server_joins_replace_nothing_of_each_other() -> None:
    both = vars(LimitedProtocol).keys() & vars(CrowdProtocol).keys()
    assert not {name for name in both if name.startswith("_") and not name.startswith("__")}
