"""A real server loses its engine's process, or leaves it behind, under real load."""

import os
import signal
import threading
import time
from collections.abc import Callable

import httpx2 as httpx
import pytest

from tests.app.conftest import (
    ENDLESS,
    NO_TOKEN_LIMIT,
    TIMEOUT_SECONDS,
    Server,
    StartServer,
    is_alive,
)

pytestmark = pytest.mark.chaos

LONG = {"prompt": ["the"] * 2, "n": 4, "max_new_tokens": 500, "temperature": 1}


class Load:
    """Clients that ask for long answers all the time, and note what they get."""

    def __init__(self, server: Server, clients: int) -> None:
        self._server = server
        self._is_over = False
        self.answers: list[httpx.Response] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._server.address, timeout=TIMEOUT_SECONDS) as client:
            while not self._is_over:
                self.answers.append(client.post("/generate", json=LONG))
                if self.answers[-1].status_code != 200:
                    time.sleep(0.1)

    def stop(self) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join()


def books_balance(server: Server) -> bool:
    ended = sum(
        server.metric(f"gatehouse_texts_{kind}_total")
        for kind in ("finished", "failed", "cancelled")
    )
    return ended == server.metric("gatehouse_texts_accepted_total")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_kill_9_of_the_engine_under_load(start_server: StartServer) -> None:
    server = start_server(**NO_TOKEN_LIMIT)
    with server.begun("/translate", ENDLESS) as endless:  # the load may just draw breath
        server.wait_until_it_decodes()
        load = Load(server, 4)
        server.wait_for(lambda: len(load.answers) > 4)
        first = server.engine_pid()
        os.kill(first, signal.SIGKILL)
        assert endless.recv(65_536).startswith(b"HTTP/1.1 503 ")
    away = server.wait_until_not_ready()
    assert away["code"] == "not_ready"
    assert away["detail"] == "the engine died and is being started again"
    assert server.metric("gatehouse_ready") == 0
    assert server.client.get("/health/live").status_code == 200
    server.wait_until_ready()
    server.wait_for(lambda: any(answer.status_code == 200 for answer in load.answers[-4:]))
    load.stop()
    assert server.engine_pid() != first
    codes = {a.json()["code"] for a in load.answers if a.status_code != 200}
    assert "not_ready" in codes
    assert codes <= {"engine_failed", "not_ready"}
    assert {a.status_code for a in load.answers} == {200, 503}
    assert server.metric("gatehouse_engine_restarts_total") == 1
    assert server.metric("gatehouse_texts_failed_total") > 0
    assert books_balance(server)
    assert "was ended by SIGKILL" in server.log.read_text()
    assert server.stop() == 0


def test_kill_9_of_the_server_ends_the_engine(start_server: StartServer) -> None:
    server = start_server()
    engine_pid = server.engine_pid()
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not is_alive(engine_pid))


def test_sigterm_while_the_models_load(start_server: StartServer) -> None:
    server = start_server(ready=False)
    wait_until(lambda: _has_engine(server))
    engine_pid = server.engine_pid()
    started_at = time.monotonic()
    assert server.stop() == 0, server.log.read_text()
    assert time.monotonic() - started_at < 20  # far less than running requests would get
    assert not is_alive(engine_pid)
    assert "Traceback" not in server.log.read_text()


def _has_engine(server: Server) -> bool:
    try:
        return server.engine_pid() > 0
    except ValueError:
        return False
