"""Streams over a real connection: requests in any pieces, slow readers, clients that go away."""

import itertools
import socket
from collections import defaultdict
from typing import Any

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.app.api.test_stream_fuzz import parse, told_by, told_by_chunks
from tests.app.conftest import TIMEOUT_SECONDS, Server, message

pytestmark = [pytest.mark.fuzz, pytest.mark.slow]


def sent_in_pieces(server: Server, content: bytes, cuts: list[int]) -> socket.socket:
    port = int(server.address.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    places = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    for begin, end in itertools.pairwise(places):
        connection.sendall(content[begin:end])
    return connection


def received(connection: socket.socket, sizes: list[int], limit: int | None) -> tuple[bytes, bool]:
    """The body of the answer, read in pieces of these sizes in a circle, and whether it is whole.

    Args:
        connection: on which the request was sent.
        sizes: of the pieces.
        limit: bytes after which the client has had enough.
    """
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "localhost")]))
    client.send(h11.EndOfMessage())
    body, count, turn = b"", 0, 0
    while limit is None or count < limit:
        event = client.next_event()
        if event is h11.NEED_DATA:
            data = connection.recv(sizes[turn % len(sizes)])
            client.receive_data(data)
            count, turn = count + len(data), turn + 1
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return body, True
    return body, False


# Fewer than elsewhere: each is two requests to a real server.
@settings(max_examples=settings().max_examples // 4, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(["/generate", "/v1/completions"]),
    stop=st.lists(st.text(max_size=3, min_size=1) | st.sampled_from("ea t"), max_size=3),
    n=st.integers(1, 3),
    seed=st.integers(0, 2**32),
    cuts=st.lists(st.integers(0, 300), max_size=8),
    sizes=st.lists(st.integers(1, 4_096), min_size=1, max_size=5),
    limit=st.none() | st.integers(1, 3_000),
)
def test_a_stream_is_valid_however_it_is_read(
    server: Server,
    path: str,
    stop: list[str],
    n: int,
    seed: int,
    cuts: list[int],
    sizes: list[int],
    limit: int | None,
) -> None:
    length = "max_new_tokens" if path == "/generate" else "max_tokens"
    body: dict[str, Any] = {"prompt": ["the", ""], "n": n, "seed": seed, "stop": stop, length: 40}
    with sent_in_pieces(server, message({**body, "stream": True}, path), cuts) as connection:
        content, is_whole = received(connection, sizes, limit)
    plain = server.client.post(path, json=body)
    assert plain.status_code == 200, plain.text
    whole: defaultdict[Any, str] = defaultdict(str)
    if path == "/generate":
        whole |= {(o["prompt_index"], o["index"]): o["text"] for o in plain.json()["outputs"]}
    else:
        whole |= {divmod(o["index"], n): o["text"] for o in plain.json()["choices"]}
    if not is_whole:
        # Events that were cut by the client itself are its own matter.
        content = content[: content.rfind(b"\n\n") + 2] if b"\n\n" in content else b""
    told = told_by(parse(content)) if path == "/generate" else told_by_chunks(parse(content), n)
    for place, text in told.pieces.items():
        assert whole[place].startswith(text)
    if is_whole:
        assert told.last == "done"
        assert dict(told.pieces) == {place: text for place, text in whole.items() if text}
    # What was broken off is dropped.
    server.wait_for(server.is_idle)
    assert server.metric("gatehouse_engine_restarts_total") == 0
