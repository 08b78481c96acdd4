"""Whatever the OpenAPI description allows or forbids, the service answers as it says there.

schemathesis makes the requests and checks the answers; ``schemathesis.toml`` holds its settings.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.keys import make_key
from app.settings import PROJECT_DIR
from tests.app.conftest import Server

ADMIN_SECRET, ADMIN_KEY = make_key("root", "admin")
_, USER_KEY = make_key("alice", "user")

# Small, so that requests at the limits and beyond them are made and answered soon.
SMALL_LIMITS = {
    "GATEHOUSE_MAX_TEXTS_PER_REQUEST": "4",
    "GATEHOUSE_MAX_SEGMENTS_PER_SCORE": "6",
    "GATEHOUSE_MAX_CHARACTERS_PER_TEXT": "60",
    "GATEHOUSE_MAX_NEW_TOKENS_LIMIT": "12",
    "GATEHOUSE_DEFAULT_MAX_NEW_TOKENS": "4",
}


@pytest.fixture(scope="module")
def keyed(checkpoints_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for keys everywhere where it may, so that they are tried as well."""
    entries = f"{ADMIN_KEY.entry},{USER_KEY.entry}"
    folder = tmp_path_factory.mktemp("described")
    server = Server(checkpoints_dir, folder, GATEHOUSE_API_KEYS=entries, **SMALL_LIMITS)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


GUARD_SECONDS_PER_EXAMPLE = 30
"""For a busy machine: one takes a second or less."""


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.timeout(0)  # that of the program counts
def test_every_check_of_schemathesis(
    keyed: Server, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file"]
    command += [str(PROJECT_DIR / "schemathesis.toml"), "run", f"{keyed.address}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {ADMIN_SECRET}", "--no-color"]
    examples = int(pytestconfig.getoption("--examples"))
    command += ["--max-examples", str(examples), "--seed", str(pytestconfig.getoption("--seed"))]
    command += ["--generation-database", "none", "--continue-on-failure"]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=GUARD_SECONDS_PER_EXAMPLE * examples,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    # An engine that died would have been started anew, and nobody would have noticed.
    assert keyed.metric("gatehouse_engine_restarts_total") == 0
