"""The service behind nginx with the file that docs/proxy.md shows."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from app.keys import make_key
from tests.app.conftest import NO_TOKEN_LIMIT, TIMEOUT_SECONDS, Server

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed here"),
]

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "nginx" / "gatehouse.conf"
PREFIX = "/gatehouse"
LONG = {"prompt": "the", "max_new_tokens": 1_000_000, "stream": True}
SECRET, KEY = make_key("alice", "user")


def main_file(folder: Path, sites: str) -> str:
    """What a distribution's own file does, for one that is not root."""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"pid {folder}/pid;\nerror_log {folder}/error.log;\ndaemon off;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{sites}}}\n"
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def site(server: Server, port: int) -> str:
    """The file, without TLS, and with the service below a path too, as the page shows it."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if "ssl_certificate" not in line)
    text = text.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    text = text.replace(
        "server 127.0.0.1:8000;", f"server {server.address.removeprefix('http://')};"
    )
    page = (ROOT / "docs" / "proxy.md").read_text(encoding="utf-8")
    below = page.partition("```nginx\n")[2].partition("```")[0]
    whole = text.partition("location / {\n        proxy_pass http://gatehouse;\n")[2].partition(
        "}"
    )[0]
    below = below.replace('    # and the other lines of "location /"\n', whole)
    return text.replace("    location / {", f"{below}    location / {{")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        "GATEHOUSE_MODELS": "timemachine-gru",
        "GATEHOUSE_API_KEYS": KEY.entry,
        "GATEHOUSE_IDLE_TIMEOUT_SECONDS": "75",
        "GATEHOUSE_ROOT_PATH": PREFIX,
    }
    folder = tmp_path_factory.mktemp("behind")
    server = Server(ROOT / "checkpoints", folder, **settings, **NO_TOKEN_LIMIT)
    try:
        server.client.headers["Authorization"] = f"Bearer {SECRET}"
        server.wait_until_ready()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of nginx, with a key."""
    assert NGINX is not None
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    file = folder / "nginx.conf"
    file.write_text(main_file(folder, site(server, port)), encoding="utf-8")
    process = subprocess.Popen([NGINX, "-p", folder, "-c", file, "-e", folder / "error.log"])
    headers = {"Authorization": f"Bearer {SECRET}"}
    address = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=address, headers=headers, timeout=TIMEOUT_SECONDS) as client:
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while True:
                try:
                    client.get("/health/live")
                    break
                except httpx.ConnectError:
                    assert process.poll() is None, (folder / "error.log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield client
    finally:
        process.terminate()
        process.wait(TIMEOUT_SECONDS)


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_requests_with_a_key_are_answered(proxy: httpx.Client, prefix: str) -> None:
    answer = proxy.post(f"{prefix}/generate", json={"prompt": "a", "max_new_tokens": 3})
    assert answer.status_code == 200
    assert len(answer.headers["x-request-id"]) == 32  # nginx's
    assert httpx.post(f"{proxy.base_url}{prefix}/generate", json={"prompt": "a"}).status_code == 401


def test_a_stream_comes_as_it_is_written_and_ends_when_the_client_goes(
    proxy: httpx.Client, server: Server
) -> None:
    with proxy.stream("POST", "/generate", json=LONG) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.iter_lines()
        assert next(events)
        assert server.metric("gatehouse_rows_running") == 1
    server.wait_for(server.is_idle)


def test_connections_to_the_service_are_kept(proxy: httpx.Client, server: Server) -> None:
    port = f":{int(server.address.rpartition(':')[2]):04X} "

    def connections() -> set[str]:
        """Their ends at the proxy."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return {row[1] for row in rows if f"{row[2]} ".endswith(port) and row[3] == "01"}

    proxy.get("/models")
    before = connections()
    for _ in range(5):
        assert proxy.get("/models").status_code == 200
    assert connections() == before


def test_what_nobody_outside_is_to_see(proxy: httpx.Client) -> None:
    assert proxy.get("/metrics").status_code == 403
    assert proxy.post("/admin/models/letters/reload").status_code == 403
    assert proxy.post("/translate", content=b"a" * (2 * 1024 * 1024 + 1)).status_code == 413


def test_below_a_path_the_pages_find_their_files(proxy: httpx.Client) -> None:
    assert proxy.get(f"{PREFIX}/").status_code == 200
    page = proxy.get(f"{PREFIX}/docs").text
    script = page.partition('<script src="')[2].partition('"')[0]
    assert script.startswith(f"{PREFIX}/")
    assert proxy.get(script).status_code == 200
    assert proxy.get(f"{PREFIX}/openapi.json").json()["servers"] == [{"url": PREFIX}]
