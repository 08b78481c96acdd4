"""The engine in a process of its own: deaths, signals, files, and what it costs."""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from app.engine.messages import EngineMessage, Hello, Loaded, Orders, Turn, encode
from app.engine.process import PROCESS_NAME, ProcessLink
from app.engine.request import EndReason
from app.engine.supervisor import SupervisedEngine
from tests.app.conftest import is_alive
from tests.app.engine.fake_engine import (
    ENDLESS,
    GUARD_SECONDS,
    ROW_BUDGET,
    FakeEngine,
    FakeModels,
    books_add_up,
    ends_of,
    load_and_talk,
    load_fake,
    load_last_words,
    load_refused,
    make_request,
    until,
)

ROOT = Path(__file__).parents[3]


LOADED = Loaded("cpu", "float32", {})


def make_engine(**options: Any) -> SupervisedEngine:
    return SupervisedEngine(
        partial(ProcessLink, options.pop("load", load_fake), heartbeat_seconds=0.05, **options),
        queue_capacity=1_000,
        row_budget=ROW_BUDGET,
    )


def link_of(engine: SupervisedEngine) -> ProcessLink:
    assert isinstance(engine.link, ProcessLink)
    return engine.link


def pid_of(engine: SupervisedEngine) -> int:
    pid = link_of(engine).pid
    assert pid is not None
    return pid


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sockets go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_kill_9_fails_what_is_open_at_once_and_it_comes_back(loop_factory: Any) -> None:
    async def scenario() -> None:
        engine = make_engine()
        await engine.start()
        first = pid_of(engine)
        stream = engine.submit(
            [make_request(i, model="slow", tokens=ENDLESS, stream=i < 8) for i in range(40)]
        )
        await until(lambda: engine.stats().running == ROW_BUDGET)
        os.kill(first, signal.SIGKILL)
        killed_at = time.monotonic()
        ends = await ends_of(stream)
        assert time.monotonic() - killed_at < 10  # nothing waits for an engine that hangs
        assert list(ends.values()) == [EndReason.FAILED] * 40
        assert engine.stats().failed == 40
        assert books_add_up(engine)
        await until(lambda: engine.not_ready_because() is None)
        assert pid_of(engine) != first
        assert await ends_of(engine.submit([make_request(99)])) == {99: EndReason.FINISHED}
        last = pid_of(engine)
        await engine.close()
        assert not is_alive(last)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


def test_what_the_engine_said_last_is_heard_by_a_busy_loop() -> None:
    async def scenario() -> None:
        engine = make_engine(load=load_last_words)
        await engine.start()
        stream = engine.submit([make_request(1)])
        for _ in range(3):  # until the order is sent
            await asyncio.sleep(0)
        pid = pid_of(engine)
        deadline = time.monotonic() + GUARD_SECONDS
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)  # something else keeps the loop busy
        time.sleep(0.3)  # until the thread that waits for it has said so, too
        assert await ends_of(stream) == {1: EndReason.FINISHED}
        await engine.close()

    asyncio.run(scenario())


def test_signals_that_end_a_service_do_not_end_the_engine() -> None:
    async def scenario() -> None:
        engine = make_engine()
        await engine.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid_of(engine), number)
        assert await ends_of(engine.submit([make_request(1)])) == {1: EndReason.FINISHED}
        assert engine.stats().restarts == 0
        await engine.close()

    asyncio.run(scenario())


PARENT = """
import asyncio
from functools import partial
from app.engine.process import ProcessLink
from app.engine.supervisor import SupervisedEngine
from tests.app.engine.fake_engine import load_fake, load_slowly

async def main():
    load = {load}
    engine = SupervisedEngine(partial(ProcessLink, load), queue_capacity=9, row_budget=16)
    starting = asyncio.ensure_future(engine.start())
    await (starting if load is load_fake else asyncio.sleep(0))
    print(engine.link.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("load", ["load_fake", "load_slowly"])
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_kill_9_of_the_http_process_leaves_nothing_behind(
    folder: Path, load: str, stopped: bool
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(load=load)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        deadline = time.monotonic() + GUARD_SECONDS
        while any(folder.iterdir()):  # until the engine has said hello
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert is_alive(pid)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not any(folder.iterdir())


def test_the_socket_is_private_and_leaves_no_file(folder: Path) -> None:
    async def scenario() -> None:
        engine = make_engine()
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(0)
        (directory,) = folder.iterdir()
        assert directory.stat().st_mode & 0o777 == 0o700
        await starting
        assert not any(folder.iterdir())
        await engine.close()
        refused = make_engine(load=load_refused)
        with pytest.raises(Exception, match="damaged checkpoint"):
            await refused.start()
        assert not any(folder.iterdir())

    asyncio.run(scenario())


def test_where_a_unix_sockets_address_has_no_room_it_is_reached_over_loopback(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = folder / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))

    async def scenario() -> None:
        engine = make_engine()
        await engine.start()
        assert await ends_of(engine.submit([make_request(1)])) == {1: EndReason.FINISHED}
        await engine.close()
        assert not any(deep.iterdir())

    asyncio.run(scenario())


def test_no_room_for_a_socket_or_a_process_is_an_error_that_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(folder / "nowhere"))
        with pytest.raises(Exception, match=r"cannot start the engine's process: .*nowhere"):
            await make_engine().start()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        monkeypatch.setattr(sys, "executable", str(folder / "no-python"))
        with pytest.raises(Exception, match=r"cannot start the engine's process: .*no-python"):
            await make_engine().start()
        assert not any(folder.iterdir())

    asyncio.run(scenario())


class Listener:
    def __init__(self) -> None:
        self.messages: list[EngineMessage] = []
        self.reasons: list[str] = []

    def received(self, message: EngineMessage) -> None:
        self.messages.append(message)

    def lost(self, reason: str) -> None:
        self.reasons.append(reason)


class Imposture(ProcessLink):
    """Its engine's process is replaced by one that sends what a test wants."""

    words: tuple[bytes, ...] = ()
    knows_the_token = True

    def _spawn(self, endpoint: str) -> "subprocess.Popen[bytes]":
        words = self.words
        if self.knows_the_token:
            words = (encode(Hello(self._token)), *words)
        script = (
            "import sys, zmq, ast, time\n"
            "socket = zmq.Context().socket(zmq.PAIR)\n"
            "socket.connect(sys.argv[1])\n"
            "for word in ast.literal_eval(sys.argv[2]): socket.send(word)\n"
            "time.sleep(60)\n"
        )
        return subprocess.Popen([sys.executable, "-c", script, endpoint, repr(words)])


def test_who_does_not_know_the_token_is_not_heard() -> None:
    async def scenario() -> None:
        listener = Listener()
        link = Imposture(load_fake, listener)
        link.knows_the_token = False
        link.words = (encode(LOADED), encode(Hello("guess")), encode(LOADED))
        link.start()
        await asyncio.sleep(1)
        await link.close()
        assert listener.messages == []
        assert listener.reasons == []

    asyncio.run(scenario())


def test_an_engine_that_makes_no_sense_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        listener = Listener()
        link = Imposture(load_fake, listener)
        link.words = (encode(LOADED), b"nonsense", encode(Turn()))
        link.start()
        await until(lambda: bool(listener.reasons))
        assert listener.messages[0] == LOADED
        assert "SIGKILL" in listener.reasons[0]
        link.send(Orders())
        await link.close()

    asyncio.run(scenario())
    assert "sent something odd" in caplog.text


def test_what_is_started_must_be_picklable() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        ProcessLink(lambda: FakeModels(FakeEngine()), Listener())


def test_the_engines_log_lines_look_like_the_services(capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        engine = make_engine(load=load_and_talk, log_level="warning", log_format="json")
        await engine.start()
        await engine.close()

    asyncio.run(scenario())
    captured = capfd.readouterr()
    assert '"event":"a warning","level":"warning"' in captured.err
    assert '"logger":"tests.app.engine.fake_engine"' in captured.err
    assert "an unimportant line" not in captured.err
    # Standard output is the service's own.
    assert "printed" in captured.err
    assert captured.out == ""


def test_waiting_costs_nothing() -> None:
    async def scenario() -> None:
        engine = make_engine()
        await engine.start()
        started_at, worked_before = time.monotonic(), time.process_time()
        await asyncio.sleep(1)
        worked = time.process_time() - worked_before
        assert worked < 0.1 * (time.monotonic() - started_at)
        assert PROCESS_NAME in Path(f"/proc/{pid_of(engine)}/cmdline").read_text()
        await engine.close()

    asyncio.run(scenario())
