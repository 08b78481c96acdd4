"""One uvicorn against one and two replicas behind Ray's proxy, at the same total of threads.

Clients that wait for their answers ask each for translations. Beside requests/s and latencies it
is told where the time goes: the processor time of a request in Ray's proxy, in the replicas' HTTP
side, in their engines and in the rest of Ray, and how much of a request's time Gatehouse itself
sees. The load generator shares the machine with the servers.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import Outcome, Plan, send_load
from benchmarks.processes import HOST, ROOT, ServerProcess, free_port, running_server
from benchmarks.report import finish, markdown_table
from benchmarks.saturation import percentile
from benchmarks.sentences import DEFAULT_SENTENCES
from benchmarks.service_process import running_service

PATH = "/translate"
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Ray names its processes; the order matters, for the engine's command line names no Ray at all.
_PARTS = (
    ("engine", re.compile(r"gatehouse-engine")),
    ("proxy", re.compile(r"ray::(HTTP)?Proxy")),
    ("http", re.compile(r"ray::ServeReplica|app\.cli serve")),
    ("rest_of_ray", re.compile("")),
)
PARTS = tuple(name for name, _ in _PARTS)
# `serve run`, without a need for where the command is installed.
_SERVE = "import sys; from ray.serve.scripts import cli; sys.exit(cli())"


@dataclass(frozen=True)
class Contestant:
    """What is asked.

    Attributes:
        name: what people call it.
        replicas: behind Ray's proxy; 0: one uvicorn without Ray.
        engine_threads: of each replica.
    """

    name: str
    replicas: int
    engine_threads: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "checkpoints" / "en-fr")
    parser.add_argument("--threads", type=int, default=2, help="of all engines together")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2], help="behind the proxy")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--sentences", type=Path, default=DEFAULT_SENTENCES)


def run(arguments: argparse.Namespace) -> int:
    """Measure all of them, and print it.

    Returns:
        0, or 1 where Ray is not there or a request failed.
    """
    if importlib.util.find_spec("ray") is None:
        print("ray is not installed: pip install -e '.[ray]'", file=sys.stderr)
        return 1
    lines = arguments.sentences.read_text(encoding="utf-8").splitlines()
    bodies = [json.dumps({"text": line, "beam_size": 1}) for line in lines if line]
    rows = []
    for contestant in contestants(arguments.threads, arguments.replicas):
        with _serving(contestant, arguments.checkpoints, json.loads(bodies[0])) as server:
            for connections in arguments.connections:
                row = _measure(server, bodies, connections, arguments.seconds)
                rows.append(asdict(contestant) | {"connections": connections} | row)
    print(table(rows), end="\n\n")
    print(parts_table(rows), end="\n\n")
    finish("ray_serving", {"cores": len(os.sched_getaffinity(0)), "rows": rows})
    return 1 if any(row["failures"] for row in rows) else 0


def contestants(threads: int, replicas: Sequence[int]) -> list[Contestant]:
    """One uvicorn, and numbers of replicas that share out the same threads.

    Raises:
        ValueError: the threads cannot be shared out.
    """
    if any(threads % number for number in replicas):
        raise ValueError(f"{threads} threads cannot be shared out to {replicas} replicas")
    behind_ray = [
        Contestant(f"Ray, {number} x {threads // number} threads", number, threads // number)
        for number in replicas
    ]
    return [Contestant(f"uvicorn, {threads} threads", 0, threads), *behind_ray]


@contextlib.contextmanager
def _serving(
    contestant: Contestant, checkpoints: Path, probe: Mapping[str, Any]
) -> Iterator[ServerProcess]:
    if not contestant.replicas:
        settings = {
            "GATEHOUSE_NUM_THREADS": str(contestant.engine_threads),
            "GATEHOUSE_LOG_LEVEL": "warning",
        }
        with running_service(checkpoints, settings, probe, PATH) as server:
            yield server
        return
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "serve_config.json"
        config.write_text(json.dumps(serve_config(contestant, checkpoints.resolve(), port)))
        environment = {
            "PYTHONPATH": str(ROOT),
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray.proxy.middlewares",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [sys.executable, "-c", _SERVE, "run", str(config)]
        with running_server(command, environment, port) as server:
            server.wait_until_it_answers(PATH, probe)
            _wait_for_replicas(server, contestant.replicas)
            yield server


def serve_config(contestant: Contestant, checkpoints: Path, port: int) -> dict[str, Any]:
    """As deploy/ray/serve_config.yaml, with a number of replicas that stays."""
    settings = {
        "allow_anonymous": True,
        "checkpoints_dir": str(checkpoints),
        "device": "cpu",
        "log_level": "warning",
        "num_threads": contestant.engine_threads,
    }
    deployment = {
        "name": "gatehouse",
        "num_replicas": contestant.replicas,
        # Counted, not used: all replicas are to fit on a machine of any size.
        "ray_actor_options": {"num_cpus": 0.1},
        "logging_config": {"enable_access_log": False},
    }
    application = {
        "name": "gatehouse",
        "route_prefix": "/",
        "import_path": "deploy.ray.application:build",
        "args": {"settings": settings},
        "deployments": [deployment],
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": HOST, "port": port},
        "logging_config": {"enable_access_log": False},
        "applications": [application],
    }


def _wait_for_replicas(server: ServerProcess, number: int) -> None:
    deadline = time.monotonic() + 120
    while len(_metric(server, "gatehouse_ready")) < number:
        if time.monotonic() > deadline:
            raise TimeoutError(f"there are not {number} replicas")
        time.sleep(0.2)


def _measure(
    server: ServerProcess, bodies: Sequence[str], connections: int, seconds: float
) -> dict[str, Any]:
    _send(server, bodies, connections, min(3.0, seconds))  # everything has happened once
    cpu, inside = processor_seconds(server.leader), _seconds_inside(server)
    outcome = _send(server, bodies, connections, seconds)
    # Over the lead-in and the last answers, too: so over all requests.
    used, spent = processor_seconds(server.leader), _seconds_inside(server)
    requests = spent[1] - inside[1]
    latencies = sorted(outcome.latencies_ms)
    return {
        "requests_per_second": outcome.answered / outcome.seconds,
        "p50_ms": percentile(latencies, 0.5),
        "p97_ms": percentile(latencies, 0.97),
        "mean_ms": sum(latencies) / len(latencies) if latencies else float("nan"),
        "inside_mean_ms": 1e3 * (spent[0] - inside[0]) / requests if requests else float("nan"),
        "cpu_ms_per_request": {
            part: 1e3 * (used[part] - cpu[part]) / requests if requests else float("nan")
            for part in PARTS
        },
        "generator_cpu_ms_per_request": 1e3 * outcome.cpu_seconds / max(1, outcome.sent),
        "failures": outcome.failures,
    }


def _send(
    server: ServerProcess, bodies: Sequence[str], connections: int, seconds: float
) -> Outcome:
    plan = Plan(HOST, server.port, PATH, bodies, seconds, connections=connections)
    return send_load(plan)


def _seconds_inside(server: ServerProcess) -> tuple[float, float]:
    """What Gatehouse counted: seconds of all requests for translations, and how many."""
    wanted = '_{}{{endpoint="translate"'
    seconds, requests = (
        sum(_metric(server, "gatehouse_request_seconds" + wanted.format(what)))
        for what in ("sum", "count")
    )
    return seconds, requests


def _metric(server: ServerProcess, prefix: str) -> list[float]:
    url = f"http://{HOST}:{server.port}/metrics"
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
        return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(prefix)]
    return []


def processor_seconds(leader: int) -> dict[str, float]:
    """Processor time of a process and all below it, by what they are: see :data:`PARTS`."""
    found: dict[int, tuple[int, float, str]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(OSError):  # it has just ended
                stat = (path / "stat").read_text().rpartition(")")[2].split()
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                seconds = sum(map(int, stat[11:13])) / _TICKS_PER_SECOND
                found[int(path.name)] = int(stat[1]), seconds, command
    used = dict.fromkeys(PARTS, 0.0)
    for pid, (_, seconds, command) in found.items():
        if _is_below(pid, leader, found):
            part = next(name for name, pattern in _PARTS if pattern.search(command))
            used[part] += seconds
    return used


def _is_below(pid: int, leader: int, found: Mapping[int, tuple[int, float, str]]) -> bool:
    while pid in found and pid != leader:
        pid = found[pid][0]
    return pid == leader


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Speeds and latencies, for people."""
    header = ("server", "connections", "requests/s", "p50 ms", "p97 ms", "failures")
    return markdown_table(
        header,
        [
            (
                row["name"],
                str(row["connections"]),
                f"{row['requests_per_second']:.0f}",
                f"{row['p50_ms']:.1f}",
                f"{row['p97_ms']:.1f}",
                str(sum(row["failures"].values())),
            )
            for row in rows
        ],
    )


def parts_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where the time of a request goes, for people."""
    header = ("server", "connections", "mean ms", "of it in Gatehouse")
    parts = tuple(f"CPU ms: {part.replace('_', ' ')}" for part in PARTS)
    return markdown_table(
        (*header, *parts),
        [
            (
                row["name"],
                str(row["connections"]),
                f"{row['mean_ms']:.1f}",
                f"{row['inside_mean_ms']:.1f}",
                *(f"{row['cpu_ms_per_request'][part]:.2f}" for part in PARTS),
            )
            for row in rows
        ],
    )
