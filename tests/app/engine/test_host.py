"""The loop of the engine's side, over a channel that a test scripts."""

import time
from collections.abc import Callable, Iterable, Sequence

import pytest

from app.engine.host import LoadedModels, host_engine
from app.engine.messages import EngineMessage, Loaded, NotLoaded, Orders, Turn
from app.engine.request import DecodeRequest, EndEvent, EndReason, Progress, StepReport, TokensEvent
from tests.app.engine.fake_engine import (
    DEVICE,
    DIES,
    LOAD_SECONDS,
    PRECISION,
    FakeEngine,
    FakeModels,
    load_refused,
    make_request,
)

STOP = Orders(stop=True)


class ScriptedChannel:
    """Gives one batch of orders for each time that it is asked, and then the order to stop.

    Attributes:
        sent: messages of the engine.
        timeouts: how long each call of ``receive`` might have waited.
    """

    def __init__(self, *batches: list[Orders]) -> None:
        self._batches = [*batches, [STOP]]
        self.sent: list[EngineMessage] = []
        self.timeouts: list[float | None] = []

    def receive(self, timeout_seconds: float | None) -> list[Orders]:
        self.timeouts.append(timeout_seconds)
        batch = self._batches.pop(0)
        if not batch and timeout_seconds:
            time.sleep(timeout_seconds)
        return batch

    def send(self, message: EngineMessage) -> None:
        self.sent.append(message)

    @property
    def turns(self) -> list[Turn]:
        return [message for message in self.sent if isinstance(message, Turn)]


class SteadyEngine(FakeEngine):
    """Never idle once it has a request, and tells nobody anything."""

    def step(self) -> Progress:
        return Progress(steps=(StepReport("count", 1, 0.0),), rows_running={"count": 1})


def loading(engine: FakeEngine) -> Callable[[], LoadedModels]:
    return lambda: FakeModels(engine)


def test_loading_and_the_first_step_are_told() -> None:
    engine, channel = FakeEngine(), ScriptedChannel()
    host_engine(loading(engine), channel)
    assert channel.sent == [Loaded(DEVICE, PRECISION, LOAD_SECONDS)]
    assert engine.beats == 1


def test_models_that_cannot_be_loaded_are_told_and_the_order_to_stop_is_awaited() -> None:
    channel = ScriptedChannel([], [Orders()])
    host_engine(load_refused, channel)
    assert channel.sent == [NotLoaded("damaged checkpoint: a file is missing")]
    assert channel.timeouts == [None, None, None]


def test_models_that_cannot_step_are_not_loaded() -> None:
    class Broken(FakeEngine):
        def beat(self) -> None:
            raise RuntimeError("no kernel")

    channel = ScriptedChannel()
    with pytest.raises(RuntimeError, match="no kernel"):
        host_engine(loading(Broken()), channel)
    assert channel.sent == []


def test_requests_are_answered_in_order() -> None:
    channel = ScriptedChannel([Orders((make_request(1, stream=True), make_request(2)))], [], [])
    host_engine(loading(FakeEngine()), channel)
    assert channel.turns[0].started == (1, 2)
    assert channel.turns[0].rows_running == {"count": 2, "slow": 0}
    assert [t.tokens for t in channel.turns[0].tokens] == [(5,)]
    assert [t.tokens for turn in channel.turns for t in turn.tokens if t.request_id == 1] == [
        (5,),
        (6,),
        (7,),
    ]
    last = channel.turns[-1]
    assert {end.request_id: end.reason for end in last.ends} == {
        1: EndReason.FINISHED,
        2: EndReason.FINISHED,
    }
    assert last.rows_running == {"count": 0, "slow": 0}
    assert all(turn.stepped for turn in channel.turns)


def test_a_working_engine_is_never_made_to_wait() -> None:
    channel = ScriptedChannel([Orders((make_request(1, tokens=2),))], [])
    host_engine(loading(FakeEngine()), channel, heartbeat_seconds=600)
    idle, working, finished = channel.timeouts
    assert idle is not None
    assert 500 < idle <= 600
    assert working == 0
    assert finished is not None
    assert finished > 500


def test_cancelling_what_was_just_submitted() -> None:
    channel = ScriptedChannel([Orders((make_request(1),), (1, 99))])
    host_engine(loading(FakeEngine()), channel)
    (turn,) = channel.turns
    assert [(end.request_id, end.reason) for end in turn.ends] == [(1, EndReason.CANCELLED)]
    assert turn.started == ()
    assert not turn.stepped


def test_an_idle_engine_steps_at_every_heartbeat() -> None:
    engine, channel = FakeEngine(), ScriptedChannel([], [], [])
    host_engine(loading(engine), channel, heartbeat_seconds=0.01)
    assert channel.turns == [Turn(stepped=True)] * 3
    assert engine.beats == 4


def test_what_only_metrics_want_is_sent_together_and_nothing_is_lost() -> None:
    turns = 1_000
    channel = ScriptedChannel([Orders((make_request(1),))], *[[] for _ in range(turns)])
    started_at = time.monotonic()
    host_engine(loading(SteadyEngine()), channel)
    elapsed_seconds = time.monotonic() - started_at
    reported = sum(len(turn.steps) for turn in channel.turns)
    assert turns + 1 - 256 < reported <= turns + 1
    assert all(len(turn.steps) <= 256 for turn in channel.turns)
    assert len(channel.turns) <= turns / 256 + elapsed_seconds / 0.05 + 1
    assert all(turn.stepped and turn.rows_running == {"count": 1} for turn in channel.turns)


def test_silence_never_lasts_long() -> None:
    class Slow(SteadyEngine):
        def step(self) -> Progress:
            time.sleep(0.02)
            return super().step()

    channel = ScriptedChannel([Orders((make_request(1),))], *[[] for _ in range(12)])
    host_engine(loading(Slow()), channel)
    assert len(channel.turns) >= 3


def test_tokens_come_before_ends_whatever_the_order_of_the_events() -> None:
    class Mixed(FakeEngine):
        def step(self) -> Progress:
            tokens = [TokensEvent(i, 0, (i,), (-1.0,), None) for i in (1, 2)]
            ends = [self._end(i, EndReason.FINISHED) for i in (1, 2)]
            return Progress(events=(tokens[0], ends[0], tokens[1], ends[1]))

    channel = ScriptedChannel([Orders((make_request(1), make_request(2)))])
    host_engine(loading(Mixed()), channel)
    (turn,) = channel.turns
    assert [event.request_id for event in turn.tokens] == [1, 2]
    assert [type(end) for end in turn.ends] == [EndEvent, EndEvent]


def test_what_escapes_a_step_ends_the_engine() -> None:
    channel = ScriptedChannel([Orders((make_request(1, prompt=(DIES,)),))], [])
    with pytest.raises(RuntimeError, match="told to die"):
        host_engine(loading(FakeEngine()), channel)


def test_orders_are_handed_on_in_one_go() -> None:
    class Watched(FakeEngine):
        submitted: list[int]
        cancelled: list[int]

        def __init__(self) -> None:
            super().__init__()
            self.submitted, self.cancelled = [], []

        def submit(self, requests: Sequence[DecodeRequest]) -> None:
            self.submitted.append(len(requests))
            super().submit(requests)

        def cancel(self, request_ids: Iterable[int]) -> None:
            ids = list(request_ids)
            self.cancelled.append(len(ids))
            super().cancel(ids)

    engine = Watched()
    many = tuple(make_request(i) for i in range(9))
    channel = ScriptedChannel([Orders(many), Orders((), (1, 2))])
    host_engine(loading(engine), channel)
    assert (engine.submitted, engine.cancelled) == ([9], [2])
