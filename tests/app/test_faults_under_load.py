"""A real server, and what goes wrong around it while it works."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch

from models.checkpoint_model import build_model, save_checkpoint
from models.config import LanguageModelConfig
from models.tokenizers import EOS_ID, CharacterTokenizer
from tests.app.conftest import (
    CHARACTERS,
    NO_TOKEN_LIMIT,
    TIMEOUT_SECONDS,
    Server,
    StartServer,
    message,
    resident_bytes,
    training_record,
)
from tests.app.test_engine_deaths import LONG, Load, books_balance

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

SHORT = {"prompt": "the", "max_new_tokens": 5, "temperature": 0}
ENDLESS_STREAM = {
    "prompt": ["the"] * 4,
    "n": 16,
    "max_new_tokens": 1_000,
    "temperature": 1,
    "logprobs": True,
    "stream": True,
}
"""Some 10 MB of events, more than sockets keep for a client that does not read."""
WITHOUT_END = {"prompt": "the", "max_new_tokens": 1_000_000, "temperature": 1, "stream": True}
"""For servers without a limit on tokens: goes on however late a test looks."""
PATIENT = {"GATEHOUSE_RECEIVE_TIMEOUT_SECONDS": "300"}
"""Connections that ask nothing stay, however long a test takes."""


@pytest.fixture(scope="module")
def checkpoints_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small language model that never ends a text by itself."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(1)
    tokenizer = CharacterTokenizer.train(CHARACTERS)
    model = build_model(
        LanguageModelConfig(vocabulary_size=tokenizer.vocabulary_size, hidden_size=12)
    )
    with torch.no_grad():
        dict(model.named_parameters())["output.bias"][EOS_ID] = -100
    save_checkpoint(
        root / "letters",
        model,
        tokenizers={"text": tokenizer},
        languages=None,
        training=training_record("letters"),
        card="# A random model\n",
    )
    return root


@contextlib.contextmanager
def connections(
    server: Server, count: int, *, small: bool = False
) -> Iterator[list[socket.socket]]:
    port = int(server.address.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(stack.enter_context(socket.socket()))
            if small:
                made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            made[-1].settimeout(TIMEOUT_SECONDS)
            made[-1].connect(("127.0.0.1", port))
        yield made


def open_files(server: Server) -> int:
    # The own client's connection is one of them, always: it would be closed if it were idle.
    server.client.get("/health/live")
    return sum(1 for _ in Path(f"/proc/{server.process.pid}/fd").iterdir())


def ends_well(server: Server) -> None:
    """It serves, its books balance, and it ends in good order."""
    assert server.client.post("/generate", json=SHORT).status_code == 200
    server.wait_for(server.is_idle)
    assert books_balance(server)
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


def test_an_engine_that_hangs_is_killed_and_started_again(start_server: StartServer) -> None:
    server = start_server(GATEHOUSE_MAX_STEP_AGE_SECONDS="2", GATEHOUSE_ENGINE_HANG_SECONDS="4")
    load = Load(server, 4)
    server.wait_until_it_decodes()
    first = server.engine_pid()
    os.kill(first, signal.SIGSTOP)
    stopped_at = time.monotonic()
    assert "last step is" in server.wait_until_not_ready()["detail"]
    server.wait_for(lambda: server.metric("gatehouse_engine_restarts_total") == 1)
    # Its last step may have been a heartbeat of a second before.
    assert time.monotonic() - stopped_at >= 2.5
    server.wait_until_ready()
    assert server.engine_pid() != first
    answered = len(load.answers)
    server.wait_for(lambda: any(a.status_code == 200 for a in load.answers[answered:]))
    load.stop()
    codes = Counter(a.json().get("code") for a in load.answers if a.status_code != 200)
    assert codes["engine_failed"] == 4, "all that were being decoded end so"
    assert set(codes) <= {"engine_failed", "not_ready"}
    assert {a.status_code for a in load.answers} == {200, 503}
    assert "the engine took no step for 4 seconds" in server.log.read_text()
    ends_well(server)


def test_sigterm_during_streams(start_server: StartServer) -> None:
    """Those that end in time end whole; the others are told that the service shuts down."""
    server = start_server(GATEHOUSE_DRAIN_TIMEOUT_SECONDS="2", **NO_TOKEN_LIMIT)
    short = {**SHORT, "max_new_tokens": 150, "stream": True}
    endings: list[str] = []

    def read(body: dict[str, Any]) -> None:
        with httpx.stream(
            "POST", f"{server.address}/generate", json=body, timeout=TIMEOUT_SECONDS
        ) as answer:
            assert answer.status_code == 200
            text = "".join(answer.iter_text())
        last = text.rstrip("\n").rpartition("\n\n")[2]
        name, data = (line.partition(": ")[2] for line in last.splitlines())
        endings.append(json.loads(data)["code"] if name == "error" else name)

    bodies = [short] * 6 + [WITHOUT_END] * 2
    threads = [threading.Thread(target=read, args=[body]) for body in bodies]
    for thread in threads:
        thread.start()
    # All of them: who comes later finds the door closed.
    server.wait_for(lambda: server.metric("gatehouse_texts_accepted_total") == len(bodies))
    assert server.stop() == 0, server.log.read_text()
    for thread in threads:
        thread.join()
    assert set(endings) <= {"done", "draining"}
    assert len(endings) == 8
    assert endings.count("draining") >= 2
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_read_nothing(start_server: StartServer, stream: bool) -> None:
    server = start_server(GATEHOUSE_SEND_TIMEOUT_SECONDS="1")
    server.client.post("/generate", json=SHORT)
    before, files = resident_bytes(server.process.pid), open_files(server)
    with connections(server, 2, small=True) as deaf:
        for connection in deaf:
            connection.sendall(message({**ENDLESS_STREAM, "stream": stream}))
        server.wait_for(lambda: server.metric("gatehouse_texts_accepted_total") >= 1 + 2 * 4)
        # Others are served meanwhile.
        assert server.client.post("/generate", json=SHORT).status_code == 200
        peak = before

        def is_over() -> bool:
            nonlocal peak
            peak = max(peak, resident_bytes(server.process.pid))
            return server.is_idle() and open_files(server) <= files

        server.wait_for(is_over)
        assert peak - before < 100e6
        if stream:
            assert server.metric("gatehouse_cancelled_total") == 2
    ends_well(server)


def test_half_a_body_takes_nothing_but_a_connection(start_server: StartServer) -> None:
    """It waits in front of the engine; the load goes on beside it, and the drain ends it."""
    server = start_server(GATEHOUSE_DRAIN_TIMEOUT_SECONDS="1", **PATIENT)
    load = Load(server, 2)
    with connections(server, 50) as halves:
        for half in halves:
            half.sendall(message(LONG, cut=7))
        server.wait_for(lambda: len(load.answers) > 5)
        load.stop()
        assert {answer.status_code for answer in load.answers} == {200}
        server.wait_for(server.is_idle)
        assert server.metric("gatehouse_texts_accepted_total") == sum(
            2 for _ in load.answers
        )  # none of the halves
        for half in halves[:25]:
            half.close()
        server.wait_for(lambda: server.metric("gatehouse_cancelled_total") >= 25)
        assert books_balance(server)
        assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


def test_a_thousand_connections(start_server: StartServer) -> None:
    server = start_server(**PATIENT)
    server.client.post("/generate", json=SHORT)
    files = open_files(server)
    load = Load(server, 2)
    with connections(server, 1_000) as crowd:
        server.wait_for(lambda: open_files(server) >= files + 2 + 1_000)
        answered = len(load.answers)
        server.wait_for(lambda: len(load.answers) > answered + 5)
        # They are not only kept: each of them is served.
        for connection in crowd:
            connection.sendall(message(SHORT))
        statuses = Counter(connection.recv(65_536).split(b" ", 2)[1] for connection in crowd)
        assert statuses.keys() <= {b"200", b"429"}
        assert statuses[b"200"] > 0
    load.stop()
    assert {answer.status_code for answer in load.answers} <= {200, 429}
    server.wait_for(lambda: open_files(server) <= files + 2)
    ends_well(server)


def test_more_connections_than_the_service_takes(start_server: StartServer) -> None:
    server = start_server(GATEHOUSE_MAX_CONNECTIONS="20", **PATIENT)
    files = open_files(server)
    with connections(server, 20) as few:
        server.wait_for(lambda: open_files(server) >= files + 20)
        with httpx.Client(base_url=server.address, timeout=TIMEOUT_SECONDS) as late:
            refused = late.post("/generate", json=SHORT)
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_connections")
            assert refused.headers["retry-after"] == "1"
            assert late.get("/health/ready").status_code == 200
            assert server.metric("gatehouse_rejected_total") == 1
        few[0].sendall(message(SHORT))
        assert few[0].recv(65_536).startswith(b"HTTP/1.1 200")
        with connections(server, 1) as [patient]:
            # Who came into a crowd is served when it has gone.
            for _ in range(5):
                few.pop().close()
            server.wait_for(lambda: open_files(server) <= files + 18)
            patient.sendall(message(SHORT))
            assert patient.recv(65_536).startswith(b"HTTP/1.1 200")
        # Far beyond the limit nobody is even told why.
        with connections(server, 300) as crowd:
            assert any(connection.recv(1) == b"" for connection in crowd[-20:])
        assert few[1].fileno() > 0
        few[1].sendall(message(SHORT))
        assert few[1].recv(65_536).startswith(b"HTTP/1.1 200")
    server.wait_for(lambda: open_files(server) <= files)
    ends_well(server)


def test_the_queue_at_its_limit_for_a_while(start_server: StartServer) -> None:
    server = start_server(
        GATEHOUSE_QUEUE_CAPACITY="8",
        GATEHOUSE_MAX_TEXTS_PER_REQUEST="8",
        GATEHOUSE_ROW_BUDGET="16",
    )
    body = {"prompt": ["the"] * 4, "n": 4, "max_new_tokens": 100, "temperature": 1}
    answers: list[httpx.Response] = []
    refusal_seconds: list[float] = []
    is_over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.address, timeout=TIMEOUT_SECONDS) as client:
            while not is_over.is_set():
                asked_at = time.monotonic()
                answers.append(client.post("/generate", json=body))
                if answers[-1].status_code == 429:
                    refusal_seconds.append(time.monotonic() - asked_at)
                    time.sleep(0.01)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    until, deepest = time.monotonic() + 5, 0.0

    def has_lasted() -> bool:
        """For a while, and as long as it takes to see what is to be seen."""
        nonlocal deepest
        deepest = max(deepest, server.metric("gatehouse_queue_depth"))
        assert server.client.get("/health/ready").status_code == 200
        seen = {answer.status_code for answer in answers}
        return time.monotonic() >= until and deepest >= 8 and seen >= {200, 429}

    try:
        server.wait_for(has_lasted)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses.keys() == {200, 429}
    assert deepest == 8
    refusals = [answer for answer in answers if answer.status_code == 429]
    assert {answer.json()["code"] for answer in refusals} == {"queue_full"}
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refusals)
    # At once: a refusal does not wait for a place, let alone for a request to end.
    assert sorted(refusal_seconds)[len(refusal_seconds) // 2] < 1
    assert server.metric("gatehouse_rejected_total") == len(refusals)
    assert server.metric("gatehouse_texts_finished_total") == 4 * statuses[200]
    ends_well(server)


def test_kill_9_in_the_middle_of_streams(start_server: StartServer) -> None:
    server = start_server(**NO_TOKEN_LIMIT)
    endings: list[str] = []
    all_stream = threading.Barrier(4)

    def read() -> None:
        with httpx.stream(
            "POST", f"{server.address}/generate", json=WITHOUT_END, timeout=TIMEOUT_SECONDS
        ) as answer:
            pieces = answer.iter_text()
            received = [next(pieces)]
            all_stream.wait(TIMEOUT_SECONDS)
            received.extend(pieces)
            endings.append("".join(received).rstrip("\n").rpartition("\n\n")[2])

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    all_stream.wait(TIMEOUT_SECONDS)
    os.kill(server.engine_pid(), signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert len(endings) == len(threads)
    assert all(ending.startswith("event: error\n") for ending in endings)
    codes = {json.loads(ending.partition("data: ")[2])["code"] for ending in endings}
    assert codes == {"engine_failed"}
    server.wait_until_ready()
    ends_well(server)
