"""Mixed requests for as long as one likes: nothing grows, and the books balance.

Clients over raw connections ask for translations, texts, streams and scores, break off streams
and answers, send what is refused and run into deadlines. What the service's processes hold at
the end is set against what they held after the first thousand requests.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import HOST, ROOT, ServerProcess
from benchmarks.report import finish, markdown_table
from benchmarks.service_process import (
    Holdings,
    books_balance,
    holdings,
    is_idle,
    metric,
    running_service,
)

FIRST_REQUESTS = 1_000
SAMPLES = 10
MAX_GROWTH_SHARE = 0.15
"""Of resident memory from the first thousand requests to the end; allocators keep some."""
_SETTLE_SECONDS = 1.0
_IDLE_TIMEOUT_SECONDS = 60.0
_ODD = "unexpected"
_COUNTER = "gatehouse_requests_total"


@dataclass(frozen=True)
class Kind:
    """One kind of request.

    Attributes:
        name: in the figures.
        weight: how often it comes.
        path: of the endpoint.
        body: JSON.
        statuses: with which it may be answered.
        breaks_off: whether the client goes away in the middle.
    """

    name: str
    weight: int
    path: str
    body: Mapping[str, Any]
    statuses: frozenset[int] = frozenset({200, 429})
    breaks_off: bool = False


_TEXTS = ["I am cold.", "He is happy.", "We lost.", "Go!"]
KINDS = (
    Kind("translate", 30, "/translate", {"text": _TEXTS[0], "beam_size": 1}),
    Kind("translate a list", 5, "/translate", {"text": _TEXTS}),
    Kind("translate a document", 5, "/translate", {"text": " ".join(_TEXTS), "split": "sentences"}),
    Kind("generate", 20, "/generate", {"prompt": "the time", "max_new_tokens": 12}),
    Kind(
        "generate with stop",
        5,
        "/generate",
        {"prompt": "the", "n": 2, "max_new_tokens": 12, "stop": "e"},
    ),
    Kind("stream", 10, "/generate", {"prompt": "a", "max_new_tokens": 12, "stream": True}),
    Kind("score", 5, "/bleu", {"hypotheses": ["a b c d"], "references": ["a b c e"]}),
    Kind(
        "stream, broken off",
        6,
        "/generate",
        {"prompt": "a", "max_new_tokens": 400, "stream": True},
        breaks_off=True,
    ),
    Kind(
        "answer, not waited for",
        4,
        "/generate",
        {"prompt": "a", "max_new_tokens": 400},
        breaks_off=True,
    ),
    Kind(
        "deadline",
        2,
        "/generate",
        {"prompt": "a", "max_new_tokens": 400, "timeout_seconds": 0.005},
        frozenset({200, 429, 504}),
    ),
    Kind("refused", 5, "/generate", {"prompt": "a", "n": -1}, frozenset({422})),
    Kind("unknown model", 3, "/translate", {"text": "a", "model": "no"}, frozenset({404})),
)


@dataclass
class Progress:
    """What has been sent and what came of it.

    Attributes:
        begun: requests that were begun.
        outcomes: how each kind ended.
    """

    begun: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


class Client:
    """One connection after another, one request at a time.

    Args:
        port: of the service.
        progress: where outcomes are counted.
        wanted: requests of all clients together.
        choice: draws the kinds.
    """

    def __init__(self, port: int, progress: Progress, wanted: int, choice: random.Random) -> None:
        self._port = port
        self._progress = progress
        self._wanted = wanted
        self._choice = choice
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self) -> None:
        """Ask until all requests were sent."""
        weights = [kind.weight for kind in KINDS]
        while self._progress.begun < self._wanted:
            self._progress.begun += 1
            (kind,) = self._choice.choices(KINDS, weights)
            try:
                outcome = await self._ask(kind)
            except (OSError, EOFError, ValueError) as error:
                outcome = f"{_ODD}: {type(error).__name__}"
                self.close()
            self._progress.outcomes[f"{kind.name}: {outcome}"] += 1
        self.close()

    def close(self) -> None:
        """Give up the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _ask(self, kind: Kind) -> str:
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self._port)
        reader, writer = self._streams
        content = json.dumps(kind.body).encode()
        writer.write(
            f"POST {kind.path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        if kind.breaks_off:
            if "stream" in kind.body:
                await reader.readuntil(b"\r\n\r\n")
            else:
                await asyncio.sleep(0.01)
            self.close()
            return "gone"
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        await _read_body(reader, head)
        if "connection: close" in head:
            self.close()
        return str(status) if status in kind.statuses else f"{_ODD}: {status}"


async def _read_body(reader: asyncio.StreamReader, head: str) -> None:
    if "transfer-encoding: chunked" not in head:
        await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
        return
    size = -1
    while size:
        size = int(await reader.readuntil(b"\r\n"), 16)
        await reader.readexactly(size + 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "checkpoints")
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1, help="of the choice of requests")


def run(arguments: argparse.Namespace) -> int:
    """Send the requests, and print what the service held meanwhile.

    Returns:
        0, or 1 where something grew or was lost.
    """
    settings = {"GATEHOUSE_LOG_LEVEL": "warning"}
    with running_service(arguments.checkpoints, settings, KINDS[0].body, KINDS[0].path) as server:
        figures = asyncio.run(_soak(server, arguments))
    print(table(figures), end="\n\n")
    finish("soak", figures)
    broken = broken_promises(figures)
    for promise in broken:
        print(f"BROKEN: {promise}", file=sys.stderr)
    return 1 if broken else 0


async def _soak(server: ServerProcess, arguments: argparse.Namespace) -> dict[str, Any]:
    choice = random.Random(arguments.seed)
    progress = Progress()
    # Those that asked whether it was ready.
    counted_before = await asyncio.to_thread(metric, server, _COUNTER)
    started_at = time.monotonic()
    samples: list[dict[str, int]] = []
    first = min(FIRST_REQUESTS, arguments.requests // 2)
    rest = arguments.requests - first
    marks = [first + rest * sample // SAMPLES for sample in range(SAMPLES + 1)]
    balanced = []
    for mark in marks:
        clients = [Client(server.port, progress, mark, choice) for _ in range(arguments.clients)]
        await asyncio.gather(*(client.run() for client in clients))
        held, balances = await asyncio.to_thread(_at_rest, server)
        samples.append({"requests": progress.begun, **asdict(held)})
        balanced.append(balances)
        print(f"{progress.begun} requests, {held}", file=sys.stderr, flush=True)
    return {
        "requests": progress.begun,
        "seconds": round(time.monotonic() - started_at),
        "outcomes": dict(sorted(progress.outcomes.items())),
        "counted": await asyncio.to_thread(metric, server, _COUNTER) - counted_before,
        "samples": samples,
        "books_balance": all(balanced),
        "texts": await asyncio.to_thread(metric, server, "gatehouse_texts_accepted_total"),
        "texts_failed": await asyncio.to_thread(metric, server, "gatehouse_texts_failed_total"),
        "restarts": await asyncio.to_thread(metric, server, "gatehouse_engine_restarts_total"),
    }


def _at_rest(server: ServerProcess) -> tuple[Holdings, bool]:
    """What an idle service holds, and whether its books balance then."""
    until = time.monotonic() + _IDLE_TIMEOUT_SECONDS
    while not is_idle(server) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(_SETTLE_SECONDS)
    return holdings(server), is_idle(server) and books_balance(server)


def broken_promises(figures: Mapping[str, Any]) -> list[str]:
    """What must hold at the end of any soak."""
    first, last = figures["samples"][0], figures["samples"][-1]
    growth = last["resident_bytes"] / first["resident_bytes"] - 1
    odd = [outcome for outcome in figures["outcomes"] if _ODD in outcome]
    return [
        promise
        for promise, is_kept in (
            (f"memory grew by {growth:.0%}", growth <= MAX_GROWTH_SHARE),
            (f"files: {first['files']}, then {last['files']}", last["files"] <= first["files"]),
            (
                f"threads: {first['threads']}, then {last['threads']}",
                last["threads"] <= first["threads"],
            ),
            ("the books do not balance", figures["books_balance"]),
            (
                f"{figures['requests']} requests were sent, {figures['counted']:g} counted",
                figures["counted"] == figures["requests"],
            ),
            (f"requests ended as {odd}", not odd),
            ("texts failed", not figures["texts_failed"]),
            ("the engine died", not figures["restarts"]),
        )
        if not is_kept
    ]


def table(figures: Mapping[str, Any]) -> str:
    """The figures for people."""
    rows = [
        (
            str(sample["requests"]),
            f"{sample['resident_bytes'] / 1e6:.0f} MB",
            str(sample["files"]),
            str(sample["threads"]),
        )
        for sample in figures["samples"]
    ]
    return (
        markdown_table(("Requests", "Resident memory", "Files", "Threads"), rows)
        + f"\n\n{figures['requests']} requests in {figures['seconds']} s; "
        f"{figures['texts']:g} texts, books balance: {figures['books_balance']}"
    )
