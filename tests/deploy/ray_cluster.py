"""A Ray cluster of several nodes on this machine, and Gatehouse on it as deploy/ray has it."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from app.settings import PROJECT_DIR

ray = pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
pytest.importorskip("ray.serve", reason="ray[serve] is not installed: pip install -e '.[ray]'")

TIMEOUT_SECONDS = 180.0
"""A guard, not a promise: a busy machine takes its time to start processes."""
KEY = "k" * 32

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
            **settings,
        }
        actor = {"num_cpus": 1}
        chosen = {"ray_actor_options": actor, "graceful_shutdown_wait_loop_s": 0.1, **options}
        serve.run(gatehouse.options(**chosen).bind(given, models_per_replica))

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return httpx.post(f"{self.address}{path}", json=body, timeout=TIMEOUT_SECONDS, **more)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.address}{path}", timeout=TIMEOUT_SECONDS)

    def replicas(self) -> list[str]:
        """Names of the replicas that run."""
        from ray import serve

        found = serve.status().applications["default"].deployments["gatehouse"]
        return [state for state, count in found.replica_states.items() for _ in range(count)]

    def close(self) -> None:
        from ray import serve

        serve.shutdown()


@contextmanager
def ray_cluster(nodes: int) -> Iterator[RayCluster]:
    """A cluster that is gone behind the block, whatever happens in it."""
    given = {
        "PYTHONPATH": str(PROJECT_DIR),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray.proxy.middlewares",
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
