"""A rolling update without a cluster: two services, and who asks them as a proxy would.

The order is the Deployment's: the new one is ready, the old one goes on serving while the proxy has
not heard of its end (``preStop``), gets SIGTERM, and drains.
"""

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.app.conftest import ENDLESS, Server, save_language_model, save_translator

# Four services compile their kernels before anything is tested.
pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300)]

CLIENTS = 4
HEARS_LATE_SECONDS = 0.5
"""Between the end of a pod's turn and the moment when the proxy knows."""
PRE_STOP_SECONDS = 1.0
LONG_TOKENS = 3_000
"""Of a request that runs for seconds."""


class Proxy:
    """Sends short requests to any of its servers, again and again, on connections of its own."""

    def __init__(self, *servers: Server) -> None:
        self.servers = list(servers)
        self.answers: list[int] = []
        self._over = threading.Event()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Send while the block runs."""
        threads = [threading.Thread(target=self._send, args=(seed,)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _send(self, seed: int) -> None:
        draw = random.Random(seed)
        while not self._over.is_set():
            address = draw.choice(self.servers).address
            try:
                answer = httpx.post(f"{address}/generate", json={"prompt": "a", "seed": 1})
                self.answers.append(answer.status_code)
            except httpx.TransportError:
                self.answers.append(0)


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """The old and the new one, both ready."""
    save_language_model(tmp_path / "checkpoints" / "letters")
    save_translator(tmp_path / "checkpoints" / "en-fr", "en", "fr")
    with ExitStack() as stack:
        both = []
        for name in ("old", "new"):
            folder = tmp_path / name
            folder.mkdir()
            more = {"GATEHOUSE_MAX_NEW_TOKENS_LIMIT": str(LONG_TOKENS)}
            drain = {"GATEHOUSE_DRAIN_TIMEOUT_SECONDS": "60"}  # as the Deployment has it
            server = Server(tmp_path / "checkpoints", folder, 0, **more, **drain)
            stack.callback(_end, server)
            both.append(server)
        for server in both:
            server.wait_until_ready()
        yield both[0], both[1]


def _end(server: Server) -> None:
    server.client.close()
    if server.process.poll() is None:
        server.process.terminate()
    server.process.wait(timeout=60)
    assert server.process.stdout is not None
    server.process.stdout.close()


def test_an_update_in_the_deployments_order_drops_nothing(
    replicas: tuple[Server, Server],
) -> None:
    old, new = replicas
    proxy = Proxy(old, new)
    long = {**ENDLESS, "max_new_tokens": LONG_TOKENS}
    long_answers: list[httpx.Response] = []

    def ask_for_long() -> None:
        long_answers.append(old.client.post("/translate", json=long))

    with proxy.busy():
        # The old one's turn ends here; the proxy hears of it later.
        time.sleep(HEARS_LATE_SECONDS)
        proxy.servers = [new]
        asking = threading.Thread(target=ask_for_long)
        asking.start()
        time.sleep(PRE_STOP_SECONDS - HEARS_LATE_SECONDS)
        assert asking.is_alive(), long_answers
        old.process.send_signal(signal.SIGTERM)
        assert old.process.wait(timeout=60) == 0
        asking.join()
    assert [answer.status_code for answer in long_answers] == [200]
    assert len(proxy.answers) > 20
    assert set(proxy.answers) == {200}


def test_without_the_pause_before_the_end_requests_are_dropped(
    replicas: tuple[Server, Server],
) -> None:
    """The pause is there for a reason."""
    old, new = replicas
    proxy = Proxy(old, new)
    with proxy.busy():
        time.sleep(0.5)
        old.process.send_signal(signal.SIGTERM)
        assert old.process.wait(timeout=60) == 0
        time.sleep(HEARS_LATE_SECONDS)
        proxy.servers = [new]
    assert set(proxy.answers) > {200}
