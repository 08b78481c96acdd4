"""A real server that asks for keys: every client gets in with one, and no key is ever told."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import httpx2 as httpx
import pytest
from libretranslatepy import (  # type: ignore[import-untyped]  # it has no types
    LibreTranslateAPI,
)
from openai import AuthenticationError, OpenAI, RateLimitError

from app.keys import append_key, make_key
from app.settings import PROJECT_DIR
from gatehouse_client import AnswerError, AsyncClient, Client, Retries
from tests.app.conftest import ENDLESS, NO_TOKEN_LIMIT, Server

ALICE, ALICES = make_key("alice", "user")
BOB, BOBS = make_key("bob", "user")
ROOT, ROOTS = make_key("root", "admin")
WRONG = make_key("nobody", "user")[0]


@pytest.fixture(scope="module")
def keyed(checkpoints_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Logs everything that it can, and listens where others may reach it."""
    folder = tmp_path_factory.mktemp("keyed")
    for key in (ALICES, ROOTS):
        append_key(folder / "keys", key)
    server = Server(
        checkpoints_dir,
        folder,
        GATEHOUSE_API_KEYS=BOBS.entry,
        GATEHOUSE_API_KEYS_FILE=str(folder / "keys"),
        GATEHOUSE_LOG_LEVEL="debug",
        GATEHOUSE_HOST="0.0.0.0",
    )
    server.client.close()
    server.address = server.address.replace("0.0.0.0", "127.0.0.1")
    server.client = httpx.Client(base_url=server.address, timeout=60)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


def test_the_own_client(keyed: Server) -> None:
    with Client(keyed.address, api_key=ALICE) as client:
        assert client.is_ready()
        assert client.models()
        assert client.translate("go").translations
        assert list(client.stream_generate("the", max_new_tokens=3))
    for key, code in ((None, "missing_api_key"), (WRONG, "invalid_api_key")):
        with Client(keyed.address, api_key=key) as client:
            assert client.is_ready()
            with pytest.raises(AnswerError) as refused:
                client.translate("go")
        assert (refused.value.status, refused.value.code) == (401, code)
        assert WRONG not in str(refused.value)


def test_the_own_asynchronous_client(keyed: Server) -> None:
    async def ask(key: str) -> str:
        async with AsyncClient(keyed.address, api_key=key) as client:
            assert [event async for event in client.stream_translate("go")]
            return (await client.translate("go")).translations[0].text

    assert asyncio.run(ask(ALICE)) == asyncio.run(ask(BOB))
    with pytest.raises(AnswerError, match="invalid_api_key"):
        asyncio.run(ask(WRONG))


def test_openais_client(keyed: Server) -> None:
    def client(key: str) -> OpenAI:
        return OpenAI(base_url=f"{keyed.address}/v1", api_key=key, max_retries=0)

    with client(ALICE) as good:
        answer = good.completions.create(model="letters", prompt="a", max_tokens=3)
        assert answer.choices
    with client(WRONG) as bad, pytest.raises(AuthenticationError) as refused:
        bad.completions.create(model="letters", prompt="a")
    assert refused.value.code == "invalid_api_key"
    assert WRONG not in str(refused.value)


def test_libretranslates_client(keyed: Server) -> None:
    good = LibreTranslateAPI(keyed.address, ALICE)
    assert isinstance(good.translate("we lost", "en", "fr"), str)
    assert good.detect("nous avons perdu")
    assert LibreTranslateAPI(keyed.address).languages()
    for key, status in ((None, 400), (WRONG, 403)):
        with pytest.raises(HTTPError) as refused:
            LibreTranslateAPI(keyed.address, key).translate("we lost", "en", "fr")
        assert refused.value.code == status
        assert "API key" in json.loads(refused.value.read())["error"]


def translate(keyed: Server, key: str | None) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(PROJECT_DIR), "PATH": "/usr/bin:/bin"}
    if key is not None:
        environment["GATEHOUSE_API_KEY"] = key
    words = ["translate", "--server", keyed.address, "--from", "en", "--to", "fr"]
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *words],
        input="we lost\n",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line(keyed: Server) -> None:
    done = translate(keyed, ALICE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    for key, words in (
        (None, "missing_api_key (401)"),
        (WRONG, "invalid_api_key (401)"),
        (f"{ALICE} \n", "GATEHOUSE_API_KEY: an API key has visible ASCII characters"),
    ):
        refused = translate(keyed, key)
        assert refused.returncode == 1
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
        assert ALICE not in refused.stderr
        assert WRONG not in refused.stderr


def test_a_limit_is_the_clients_rate_limit(checkpoints_dir: Path, tmp_path: Path) -> None:
    settings = {"GATEHOUSE_API_KEYS": ALICES.entry, "GATEHOUSE_KEY_REQUESTS_PER_MINUTE": "1"}
    server = Server(checkpoints_dir, tmp_path, **settings)
    try:
        server.wait_until_ready()
        with OpenAI(base_url=f"{server.address}/v1", api_key=ALICE, max_retries=0) as openai:
            openai.completions.create(model="letters", prompt="a", max_tokens=1)
            with pytest.raises(RateLimitError):
                openai.completions.create(model="letters", prompt="a", max_tokens=1)
        once = Retries(attempts=1)
        with (
            Client(server.address, api_key=ALICE, retries=once) as client,
            pytest.raises(AnswerError) as refused,
        ):
            client.generate("a")
        assert refused.value.code == "rate_limit_exceeded"
        assert 0 < (refused.value.retry_after_seconds or 0) <= 60
    finally:
        server.close()


def test_a_client_that_goes_away_has_its_tokens_counted(
    checkpoints_dir: Path, tmp_path: Path
) -> None:
    settings = {"GATEHOUSE_API_KEYS": ALICES.entry, "GATEHOUSE_KEY_TOKENS_PER_MINUTE": "20"}
    server = Server(checkpoints_dir, tmp_path, **settings, **NO_TOKEN_LIMIT)
    try:
        server.wait_until_ready()
        headers = {"Authorization": f"Bearer {ALICE}"}
        body = {**ENDLESS, "stream": True}
        with server.client.stream("POST", "/translate", json=body, headers=headers) as answer:
            lines = answer.iter_lines()
            while not next(lines).startswith("event: token"):
                pass
            for _ in range(200):
                next(lines)
        metrics = {"headers": headers}
        server.wait_for(
            lambda: 'outcome="cancelled"' in server.client.get("/metrics", **metrics).text  # type: ignore[arg-type]  # the headers
        )
        again = server.client.post("/generate", json={"prompt": "a"}, headers=headers)
        assert again.status_code == 429
    finally:
        server.close()


def send_raw(keyed: Server, request: bytes) -> None:
    """Sends what no client would."""
    port = int(keyed.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(request)
        assert connection.recv(1_000).startswith(b"HTTP/1.1 400 ")


def test_no_key_is_in_the_log_whatever_goes_wrong(keyed: Server) -> None:
    """Run last: the log holds what all tests before it did, too."""
    client = keyed.client
    for key in (ALICE, WRONG, ROOT):
        headers = {"Authorization": f"Bearer {key}"}
        client.post("/generate", json={"prompt": "a"}, headers=headers)
        client.post("/generate", content=b"{", headers=headers)
        client.get(f"/models?api_key={key}&key={key}")
        client.post(f"/detect?api_key={key}", data={"q": "a", "api_key": key})
        client.post("/translate", json={"q": 1, "api_key": key})
        client.get("/admin", headers=headers)
        send_raw(keyed, f"GET / HTTP/9.9\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        send_raw(keyed, f"GET /{key} HTTP/1.1\r\nBroken {key}\r\n\r\n".encode())
    log = keyed.log.read_text()
    assert "/models" in log  # the access log is on
    assert '"key_name":"alice"' in log
    assert "an admin request was refused: admin_key_required" in log
    for stored in (ALICES, BOBS, ROOTS):
        assert stored.digest.hex() not in log
    for secret in (ALICE, BOB, ROOT, WRONG):
        assert secret not in log
        assert secret.removeprefix("gth_") not in log


def test_a_waiver_is_seen_in_the_log(checkpoints_dir: Path, tmp_path: Path) -> None:
    settings = {"GATEHOUSE_HOST": "0.0.0.0", "GATEHOUSE_ALLOW_ANONYMOUS": "true"}
    server = Server(checkpoints_dir, tmp_path, **settings)
    try:
        server.wait_for(lambda: "without a key" in server.log.read_text())
        assert "GATEHOUSE_ALLOW_ANONYMOUS" in server.log.read_text()
    finally:
        server.close()
