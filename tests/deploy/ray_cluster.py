"""A Ray cluster of several nodes on this machine, and Gatehouse on it as deploy/ray has it."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from app.settings import PROJECT_DIR

ray = pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
pytest.importorskip("ray.serve", reason="ray[serve] is not installed: pip install -e '.[ray]'")

TIMEOUT_SECONDS = 300.0
"""A guard, not a promise: a busy machine takes its time to start processes."""
KEY = "k" * 32
PAUSE_SECONDS = 0.1
"""Of a client between two requests."""
REPLICA = "X-Gatehouse-Replica"

# Nodes that die are found out within seconds; Ray's defaults take half a minute.
_SYSTEM = {
    "health_check_initial_delay_ms": 5_000,
    "health_check_period_ms": 1_000,
    "health_check_timeout_ms": 5_000,
    "health_check_failure_threshold": 3,
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for(is_so: Callable[[], Any], timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + timeout_seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.1)
    return found


class RayCluster:
    """A head without processors to give, and nodes for one replica each."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "gcs_server_port": free_port(),
                "_system_config": _SYSTEM,
            },
        )
        self.nodes = [self.add_node() for _ in range(nodes)]
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="error")

    def add_node(self) -> Any:
        return self.cluster.add_node(num_cpus=1)

    def kill_node(self, node: Any) -> None:
        """End all its processes, and the replicas with them, as a power cut would."""
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


class RayService:
    """Gatehouse behind Ray's proxy."""

    def __init__(self, cluster: RayCluster) -> None:
        from ray import serve
        from ray.serve.config import ProxyLocation

        self.cluster = cluster
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(
            base_url=self.address,
            timeout=TIMEOUT_SECONDS,
            limits=httpx.Limits(max_connections=200, max_keepalive_connections=200),
        )
        # All nodes have this machine's address, on which there is one such port.
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options={"host": "127.0.0.1", "port": self.port},
        )

    def deploy(
        self,
        checkpoints_dir: Path,
        *,
        options: dict[str, Any],
        models_per_replica: int = 0,
        **settings: Any,
    ) -> None:
        """Run the application, or update it; returns when it runs as it is to."""
        from ray import serve

        from deploy.ray.application import gatehouse

        given = {
            "checkpoints_dir": str(checkpoints_dir),
            "device": "cpu",
            "engine": "inline",
            "allow_anonymous": True,
            "state_key": KEY,
            "drain_timeout_seconds": 5,
            "request_timeout_seconds": TIMEOUT_SECONDS,  # no test here is about that
            **settings,
        }
        actor = {"num_cpus": 1}
        chosen = {"ray_actor_options": actor, "graceful_shutdown_wait_loop_s": 0.1, **options}
        serve.run(gatehouse.options(**chosen).bind(given, models_per_replica))

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return self.client.post(path, json=body, **more)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def replicas(self) -> list[Any]:
        """What Ray knows of the replicas that run."""
        from ray.serve.context import _get_global_client

        details = _get_global_client().get_serve_details()
        found = details["applications"]["default"]["deployments"]["gatehouse"]["replicas"]
        return [replica for replica in found if replica["state"] == "RUNNING"]

    def message(self) -> str:
        """What `serve status` says of the deployment."""
        from ray import serve

        message: str = serve.status().applications["default"].deployments["gatehouse"].message
        return message

    def kill_replica(self, name: str | None = None) -> None:
        """End the process of this one, or of any, as the kernel does when memory runs out."""
        pids = {replica["replica_id"]: replica["pid"] for replica in self.replicas()}
        os.kill(pids[name or next(iter(pids))], signal.SIGKILL)

    def close(self) -> None:
        from ray import serve

        self.client.close()
        serve.shutdown()


@dataclass(frozen=True)
class Answered:
    """How a request ended: with a status, and with the code of a problem where there was one."""

    status: int
    code: str | None
    retry_after: str | None
    replica: str | None
    is_stream: bool


class Load:
    """Clients that send texts to a service again and again, every other one as a stream.

    Args:
        service: that is asked.
        clients: threads, each with one request on its way.
        tokens: of a text.
        long_tokens: of a stream.
    """

    def __init__(
        self, service: RayService, *, clients: int, tokens: int = 20, long_tokens: int = 500
    ) -> None:
        self.answers: list[Answered] = []
        self._service = service
        self._clients = clients
        self._tokens = tokens
        self._long_tokens = long_tokens
        self._over = threading.Event()

    @property
    def lost(self) -> list[Answered]:
        """Requests that got no answer of a replica, or half of one."""
        return [answer for answer in self.answers if answer.code is not None]

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Send while the block runs; whoever hangs fails here."""
        threads = [
            threading.Thread(target=self._send, args=(number % 2 == 1,), daemon=True)
            for number in range(self._clients)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(TIMEOUT_SECONDS)
        assert not any(thread.is_alive() for thread in threads), "a request hangs"

    def check_lost_requests_were_told(self) -> None:
        """Each request got its answer, or a clear error that says to ask again."""
        assert {answer.status for answer in self.answers} <= {200, 429, 503}, self.answers
        for answer in self.lost:
            assert answer.code in {"engine_failed", "not_ready", "queue_full", "draining"}, answer
            assert answer.is_stream or answer.retry_after is not None, answer

    def _send(self, as_stream: bool) -> None:
        ask = self._stream if as_stream else self._whole
        while not self._over.is_set():
            try:
                answer = ask()
            except httpx.TransportError:
                answer = Answered(0, "no answer at all", None, None, as_stream)
            self.answers.append(answer)
            # Replicas that start share the cores with all this.
            time.sleep(PAUSE_SECONDS)

    def _whole(self) -> Answered:
        body = {"prompt": "a", "max_new_tokens": self._tokens, "temperature": 0}
        answer = self._service.post("/generate", body)
        code = None if answer.status_code == 200 else answer.json().get("code", answer.text)
        headers = answer.headers
        return Answered(
            answer.status_code, code, headers.get("Retry-After"), headers.get(REPLICA), False
        )

    def _stream(self) -> Answered:
        body = {"text": "go", "max_new_tokens": self._long_tokens, "stream": True, "beam_size": 1}
        with self._service.client.stream("POST", "/translate", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line]
        retry_after = answer.headers.get("Retry-After")
        replica = answer.headers.get(REPLICA)
        code = None
        if answer.status_code != 200:
            code = json.loads(lines[-1])["code"]
        elif lines[-2:][0] != "event: done":
            assert lines[-2] == "event: error", lines[-2:]
            code = json.loads(lines[-1].removeprefix("data: "))["code"]
        return Answered(answer.status_code, code, retry_after, replica, True)


@contextmanager
def ray_cluster(nodes: int) -> Iterator[RayCluster]:
    """A cluster that is gone behind the block, whatever happens in it."""
    given = {
        "PYTHONPATH": str(PROJECT_DIR),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray.proxy.middlewares",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("GATEHOUSE_")]:
            patch.delenv(name)
        for name, value in given.items():
            patch.setenv(name, value)
        cluster = RayCluster(nodes)
        try:
            yield cluster
        finally:
            cluster.close()


@contextmanager
def ray_service(nodes: int) -> Iterator[RayService]:
    """Gatehouse's proxy on a cluster of its own; nothing is deployed yet."""
    with ray_cluster(nodes) as cluster:
        service = RayService(cluster)
        try:
            yield service
        finally:
            service.close()
