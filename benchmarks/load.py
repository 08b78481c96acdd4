"""An open-loop load generator: ``python -m benchmarks.load``, a plan in, what happened out.

Requests are due on a schedule that is drawn beforehand, whatever the server does, and a latency
counts from the moment at which the request was due. A closed loop, in which a client sends when
it has its answer, would slow down with the server and hide how long others would have waited.

It is a process of its own and cheap, since it shares the machine with the server: raw
connections that are kept alive, requests made beforehand, no object but a number for each.
"""

import asyncio
import gc
import json
import math
import os
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

import httptools
import uvloop

from benchmarks.processes import ROOT

MAX_CONNECTIONS = 256
_REFUSALS = (429, 503)


@dataclass(frozen=True)
class Plan:
    """What to send.

    Attributes:
        host: of the server.
        port: of the server.
        path: of the endpoint.
        bodies: JSON bodies to draw from.
        seconds: how long the measurement takes.
        rate: requests/s of the open loop; 0 for a closed loop.
        connections: at most so many; requests that find none free wait for one, and the wait
            counts. A closed loop keeps all of them busy.
        lead_in_seconds: load before the measurement, so that it meets a server at work.
        drain_seconds: how long to wait behind it for requests that are still without a
            connection.
        timeout_seconds: then how long for those that have been sent.
        seed: of the draws.
        cores: processor cores to run on; empty for any.
    """

    host: str
    port: int
    path: str
    bodies: Sequence[str]
    seconds: float
    rate: float = 0.0
    connections: int = MAX_CONNECTIONS
    lead_in_seconds: float = 1.0
    drain_seconds: float = 3.0
    timeout_seconds: float = 20.0
    seed: int = 1
    cores: Sequence[int] = ()


@dataclass
class Outcome:
    """What happened to the requests that were due within the measurement.

    Attributes:
        latencies_ms: of those answered with status 200.
        failures: the others, by status or by what went wrong.
        answered: answers with status 200 that came within the measurement, whenever they were
            due.
        seconds: length of the measurement.
        sent: requests in all, the lead-in too.
        cpu_seconds: processor time of this process for all of them.
        process_seconds: its processor time in all, starting included.
        lags_ms: how late this process was to look at a request that was due.
        answered_after_ms: of those with status 200, from the moment at which the request was
            sent, since it may have waited for a connection before.
        begun_after_ms: the same until its body began to come: of a stream, its first piece.
        refused_after_ms: the same of whole answers with status 429 or 503.
    """

    latencies_ms: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    seconds: float = 0.0
    sent: int = 0
    cpu_seconds: float = 0.0
    process_seconds: float = 0.0
    lags_ms: list[float] = field(default_factory=list)
    answered_after_ms: list[float] = field(default_factory=list)
    begun_after_ms: list[float] = field(default_factory=list)
    refused_after_ms: list[float] = field(default_factory=list)


def poisson_schedule(plan: Plan) -> list[float]:
    """When requests are due, in seconds from the start.

    A Poisson process of which the number of arrivals is known has them uniformly distributed.
    The number is fixed, so that two measurements at one rate offer the same load.
    """
    generator = random.Random(plan.seed)
    times = []
    for start, length in ((0.0, plan.lead_in_seconds), (plan.lead_in_seconds, plan.seconds)):
        count = round(plan.rate * length)
        times += sorted(start + generator.random() * length for _ in range(count))
    return times


class Generator:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._messages = [_message(plan, body) for body in plan.bodies]
        self._choice = random.Random(plan.seed + 1)
        self._due = poisson_schedule(plan) if plan.rate else []
        self._next = 0
        self._end = plan.lead_in_seconds + plan.seconds
        self._idle: list[_Connection] = []
        self._waiting: deque[int] = deque()
        self._connections: set[_Connection] = set()
        self._opening = 0
        self._open_requests = 0
        self._finished = asyncio.Event()
        self._started_at = 0.0
        self.outcome = Outcome(seconds=plan.seconds)

    async def run(self) -> Outcome:
        """Send everything, wait for the answers."""
        cpu_before = time.process_time()
        self._started_at = time.perf_counter()
        if self._plan.rate:
            self._tick()
        else:
            self._due = [0.0] * self._plan.connections
            self._next = len(self._due)
            for request in range(self._plan.connections):
                self._dispatch(request)
        await self._wait()
        self.outcome.sent = len(self._due)
        self.outcome.cpu_seconds = time.process_time() - cpu_before
        for connection in list(self._connections):
            connection.close()
        return self.outcome

    def message(self, request: int) -> bytes:
        """The bytes of a request."""
        del request  # drawn in the order of sending, which is the order of the schedule
        return self._messages[self._choice.randrange(len(self._messages))]

    def finish(self, connection: "_Connection", request: int, status: int) -> None:
        """An answer is complete and its connection free again."""
        now = time.perf_counter() - self._started_at
        elapsed_ms = (now - (connection.sent_at - self._started_at)) * 1e3
        if status == 200:
            if self._plan.lead_in_seconds <= now < self._end:
                self.outcome.answered += 1
            if self._counts(request):
                self.outcome.latencies_ms.append((now - self._due[request]) * 1e3)
                self.outcome.answered_after_ms.append(elapsed_ms)
                begun_at = connection.begun_at or time.perf_counter()  # an empty body has no begin
                self.outcome.begun_after_ms.append((begun_at - connection.sent_at) * 1e3)
        else:
            self._fail(request, str(status))
            if status in _REFUSALS and self._counts(request):
                self.outcome.refused_after_ms.append(elapsed_ms)
        self._open_requests -= 1
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)
        self._go_on(now)

    def lose(self, connection: "_Connection", request: int | None, was_used: bool) -> None:
        """A connection is closed."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if request is None:
            return
        if was_used:
            # The server closed an idle connection just as it was taken: no fault of anyone.
            self._send_or_wait(request)
            return
        self._fail(request, "connection lost")
        self._open_requests -= 1
        # Nobody else might open another one: all that is due may be waiting by now.
        if self._waiting:
            self._send_or_wait(self._waiting.popleft())
        self._go_on(time.perf_counter() - self._started_at)

    def _tick(self) -> None:
        """Send what is due, and come back for the next."""
        now = time.perf_counter() - self._started_at
        while self._next < len(self._due) and self._due[self._next] <= now:
            self.outcome.lags_ms.append((now - self._due[self._next]) * 1e3)
            self._dispatch(self._next)
            self._next += 1
        if self._next < len(self._due):
            # The loop's clock counts milliseconds: a shorter timer would spin until it is time.
            pause_ms = math.ceil((self._due[self._next] - now) * 1e3)
            self._loop.call_later(pause_ms / 1e3, self._tick)

    def _dispatch(self, request: int) -> None:
        self._open_requests += 1
        self._send_or_wait(request)

    def _send_or_wait(self, request: int) -> None:
        if self._idle:
            # The one used last: those that are not needed grow old together.
            self._idle.pop().send(request)
            return
        self._waiting.append(request)
        if len(self._connections) + self._opening < self._plan.connections:
            self._opening += 1
            self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self), self._plan.host, self._plan.port
            )
        except OSError:
            self._opening -= 1
            if self._waiting:
                self._fail(self._waiting.popleft(), "connection refused")
                self._open_requests -= 1
                self._go_on(time.perf_counter() - self._started_at)
            return
        self._opening -= 1
        self._connections.add(connection)
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def _go_on(self, now: float) -> None:
        """In a closed loop an answer brings the next request; all answers bring the end."""
        if not self._plan.rate and now < self._end:
            self._due.append(now)
            self._next += 1
            self._dispatch(self._next - 1)
        if self._next == len(self._due) and not self._open_requests:
            self._finished.set()

    async def _wait(self) -> None:
        for seconds in (self._end + self._plan.drain_seconds, self._plan.timeout_seconds):
            try:
                await asyncio.wait_for(self._finished.wait(), seconds)
            except TimeoutError:
                # What waits for a connection still is given up; what was sent gets its time.
                for request in self._waiting:
                    self._fail(request, "not sent in time")
                self._open_requests -= len(self._waiting)
                self._waiting.clear()
            else:
                return
            if not self._open_requests:
                return
        for connection in self._connections:
            if connection.request is not None:
                self._fail(connection.request, "timeout")

    def _counts(self, request: int) -> bool:
        return self._plan.lead_in_seconds <= self._due[request] < self._end

    def _fail(self, request: int, reason: str) -> None:
        if self._counts(request):
            self.outcome.failures[reason] = self.outcome.failures.get(reason, 0) + 1


class _Connection(asyncio.Protocol):
    """One connection with at most one request on its way."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answers = 0
        self._heard = False
        self.request: int | None = None
        self.sent_at = self.begun_at = 0.0

    def send(self, request: int) -> None:
        """Send a request on a free connection."""
        assert self._transport is not None
        self.request = request
        self._heard = False
        self.sent_at, self.begun_at = time.perf_counter(), 0.0
        self._transport.write(self._generator.message(request))

    def close(self) -> None:
        """Give it up."""
        self.request = None
        assert self._transport is not None
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods without the ancestry.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        del body
        self.begun_at = self.begun_at or time.perf_counter()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        request, self.request = self.request, None
        status = self._parser.get_status_code()
        if request is None or status < 200:
            self.request = request
            return
        self._answers += 1
        self._generator.finish(self, request, status)

    def connection_lost(self, exc: Exception | None) -> None:
        request, self.request = self.request, None
        was_idle = self._answers > 0 and not self._heard
        self._generator.lose(self, request, was_idle)


def _message(plan: Plan, body: str) -> bytes:
    content = body.encode()
    head = (
        f"POST {plan.path} HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def send_load(plan: Plan) -> Outcome:
    """Carry out a plan by a process of its own.

    Raises:
        subprocess.CalledProcessError: it broke.
    """
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        cwd=ROOT,
        input=json.dumps(asdict(plan)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Outcome(**json.loads(answer.stdout))


def main() -> int:
    """Read a plan from standard input, write the outcome to standard output."""
    plan = Plan(**json.load(sys.stdin))
    if plan.cores:
        os.sched_setaffinity(0, plan.cores)
    gc.disable()

    async def run() -> Outcome:
        return await Generator(plan).run()

    outcome = uvloop.run(run())
    outcome.process_seconds = time.process_time()
    json.dump(asdict(outcome), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
