"""Ten times what the service can answer: what is accepted is answered in time, the rest refused.

The saturation is measured first with clients that wait for their answers. Then requests come at
random moments at a multiple of that rate, whatever becomes of them, each with a deadline. At the
end the first, light load is sent again. The load generator shares the machine with the service:
what it takes of the processor is told, and on few cores it is much.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.load import Outcome, Plan, send_load
from benchmarks.processes import HOST, ROOT, ServerProcess
from benchmarks.report import finish, markdown_table
from benchmarks.saturation import percentile
from benchmarks.sentences import DEFAULT_SENTENCES
from benchmarks.service_process import books_balance, holdings, is_idle, metric, running_service

PATH = "/translate"
CONNECTIONS = 1_500
SATURATING_CONNECTIONS = 192
LIGHT_SHARE = 0.25
REFUSALS = frozenset({"429", "503"})
EXPIRED = "504"
_IDLE_TIMEOUT_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "checkpoints" / "en-fr")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    parser.add_argument("--rest-seconds", type=float, default=30.0, help="until all is as before")
    parser.add_argument("--factor", type=float, default=10.0, help="times the saturation")
    parser.add_argument("--deadline-seconds", type=float, default=2.0, help="of each request")
    parser.add_argument("--beam-size", type=int, default=1)
    parser.add_argument("--queue-capacity", type=int, default=256)
    parser.add_argument("--sentences", type=Path, default=DEFAULT_SENTENCES)


def run(arguments: argparse.Namespace) -> int:
    """Overload a service, and print what became of the requests.

    Returns:
        0, or 1 where a promise was broken that holds at any speed.
    """
    lines = arguments.sentences.read_text(encoding="utf-8").splitlines()
    options = {
        "beam_size": arguments.beam_size,
        "timeout_seconds": arguments.deadline_seconds,
    }
    bodies = [json.dumps({"text": line} | options) for line in lines if line]
    settings = {
        "GATEHOUSE_QUEUE_CAPACITY": str(arguments.queue_capacity),
        "GATEHOUSE_MAX_TEXTS_PER_REQUEST": str(min(64, arguments.queue_capacity)),
        "GATEHOUSE_LOG_LEVEL": "warning",
    }
    probe = json.loads(bodies[0])
    with running_service(arguments.checkpoints, settings, probe, PATH) as server:
        figures = _measure(server, bodies, arguments)
    print(table(figures), end="\n\n")
    finish("overload", figures)
    broken = broken_promises(figures)
    for promise in broken:
        print(f"BROKEN: {promise}", file=sys.stderr)
    return 1 if broken else 0


def _measure(
    server: ServerProcess, bodies: Sequence[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    seconds = arguments.seconds
    closed = {"seconds": min(10.0, seconds), "connections": SATURATING_CONNECTIONS}
    _send(server, bodies, closed)  # everything has happened once
    peak = _send(server, bodies, closed)
    saturation = peak.answered / peak.seconds
    light = {"seconds": min(10.0, seconds), "rate": max(1.0, LIGHT_SHARE * saturation)}
    before = _send(server, bodies, light)
    memory_before = holdings(server).resident_bytes
    load = {"seconds": seconds, "rate": arguments.factor * saturation, "connections": CONNECTIONS}
    outcome = _send(server, bodies, load | {"drain_seconds": 1.0})
    memory_after = holdings(server).resident_bytes
    rest_until = time.monotonic() + arguments.rest_seconds
    idle_until = time.monotonic() + _IDLE_TIMEOUT_SECONDS
    while not is_idle(server) and time.monotonic() < idle_until:
        time.sleep(0.1)
    balanced = is_idle(server) and books_balance(server)
    time.sleep(max(0.0, rest_until - time.monotonic()))
    after = _send(server, bodies, light)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "seconds": seconds,
        "saturation": saturation,
        "offered": load["rate"],
        "sent": outcome.sent,
        "goodput": outcome.answered / outcome.seconds,
        "goodput_share": outcome.answered / outcome.seconds / saturation if saturation else 0.0,
        "failures": outcome.failures,
        "accepted_p99_ms": _p99(outcome.answered_after_ms),
        "refused_p50_ms": percentile(sorted(outcome.refused_after_ms), 0.5),
        "refused_p99_ms": _p99(outcome.refused_after_ms),
        "generator_cores": outcome.cpu_seconds / (seconds + 1.0),
        "deadline_ms": 1e3 * arguments.deadline_seconds,
        "light_p50_before_ms": percentile(sorted(before.latencies_ms), 0.5),
        "light_p50_after_ms": percentile(sorted(after.latencies_ms), 0.5),
        "light_failures_after": after.failures,
        "resident_before_bytes": memory_before,
        "resident_after_bytes": memory_after,
        "restarts": metric(server, "gatehouse_engine_restarts_total"),
        "books_balance": balanced,
    }


def _p99(values: Sequence[float]) -> float:
    return percentile(sorted(values), 0.99)


def _send(server: ServerProcess, bodies: Sequence[str], load: Mapping[str, Any]) -> Outcome:
    plan = Plan(host=HOST, port=server.port, path=PATH, bodies=bodies, **load)
    return send_load(plan)


def broken_promises(figures: Mapping[str, Any]) -> list[str]:
    """What must hold on any machine, however slow; shares and times are for the reader."""
    odd = set(figures["failures"]) - REFUSALS - {EXPIRED, "not sent in time"}
    return [
        promise
        for promise, is_kept in (
            (f"requests ended as {sorted(odd)}", not odd),
            ("nothing was refused", any(code in figures["failures"] for code in REFUSALS)),
            ("nothing was answered", figures["goodput"] > 0),
            ("the books do not balance", figures["books_balance"]),
            ("the engine died", figures["restarts"] == 0),
            ("requests fail when the load is gone", not figures["light_failures_after"]),
        )
        if not is_kept
    ]


def table(figures: Mapping[str, Any]) -> str:
    """The figures for people."""
    rows = [
        ("saturation", f"{figures['saturation']:.1f} requests/s"),
        ("offered", f"{figures['offered']:.1f} requests/s for {figures['seconds']:g} s"),
        ("goodput", f"{figures['goodput']:.1f} requests/s: {figures['goodput_share']:.0%}"),
        ("not answered with 200", json.dumps(figures["failures"], sort_keys=True)),
        ("accepted, p99", f"{figures['accepted_p99_ms']:.0f} ms"),
        ("refused, p50", f"{figures['refused_p50_ms']:.1f} ms"),
        ("refused, p99", f"{figures['refused_p99_ms']:.1f} ms"),
        (
            "light load, p50 before and after",
            f"{figures['light_p50_before_ms']:.1f} and {figures['light_p50_after_ms']:.1f} ms",
        ),
        (
            "resident memory before and after",
            f"{figures['resident_before_bytes'] / 1e6:.0f} and "
            f"{figures['resident_after_bytes'] / 1e6:.0f} MB",
        ),
        ("the load generator took", f"{figures['generator_cores']:.2f} cores"),
        ("books balance", str(figures["books_balance"])),
    ]
    return markdown_table(("Overload", ""), rows)
