"""The container's walls: what the image and Compose say, and that the service lives within them."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.keys import make_key, read_keys
from app.settings import PROJECT_DIR, Settings, load_settings

UID = 10_001
SECONDS_TO_START = 180


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return _services()


def _services() -> dict[str, Any]:
    document = yaml.safe_load((PROJECT_DIR / "docker-compose.yml").read_text(encoding="utf-8"))
    return {name: one for name, one in document["services"].items() if "gatehouse" in name}


def test_compose_gives_the_service_no_more_than_it_needs(services: dict[str, Any]) -> None:
    assert set(services) == {"gatehouse", "gatehouse-gpu"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        assert "user" not in service  # the image's own
        # The engine's socket is all that is written, and nothing there may be run.
        (tmpfs,) = service["tmpfs"]
        assert tmpfs.startswith("/tmp:")
        assert {"noexec", "nosuid", "nodev"} <= set(tmpfs.partition(":")[2].split(","))
        assert all(volume["read_only"] for volume in service["volumes"])


def test_the_image_runs_as_a_user_without_rights_or_a_shell() -> None:
    text = (PROJECT_DIR / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(rf"^USER {UID}$", text, re.MULTILINE)
    assert f"useradd --system --uid {UID}" in text
    after = text[text.index(f"USER {UID}") :]
    assert "USER root" not in after
    assert "COPY" not in after  # the code belongs to root, and the service cannot change it


def settings_of(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **env: str) -> Settings:
    """The settings that a service of Compose has, with some lines of .env."""
    for name, value in {**env, **service["environment"]}.items():
        monkeypatch.setenv(name, str(value))
    return load_settings(env_file=None)


def test_compose_waives_keys_for_this_machine_alone_until_there_are_some(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        settings = settings_of(service, monkeypatch)
        assert settings.host == "0.0.0.0"
        assert read_keys(settings).allows_anonymous
        # A key in .env closes it again, whatever the waiver says.
        entry = make_key("alice", "user")[1].entry
        settings = settings_of(service, monkeypatch, GATEHOUSE_API_KEYS=entry)
        assert not read_keys(settings).allows_anonymous
        monkeypatch.delenv("GATEHOUSE_API_KEYS")


def test_the_image_alone_asks_for_keys() -> None:
    text = (PROJECT_DIR / "Dockerfile").read_text(encoding="utf-8")
    assert "GATEHOUSE_HOST=0.0.0.0" in text
    assert not re.search(r"^ENV.*GATEHOUSE_ALLOW_ANONYMOUS", text, re.MULTILINE)


# ------------------------------------------------- the same walls, without a container

_SCRIPT = """
set -eu
mount --rbind / "$ROOT"
mount -o remount,bind,ro "$ROOT"
mount -t tmpfs -o "$TMPFS" tmpfs "$ROOT$WRITABLE"
if [ -n "$CLOSED" ]; then
    mount -t tmpfs -o mode=755 tmpfs "$ROOT$CLOSED"
    mkdir -p "$ROOT$PYTHON"
    mount --bind "$PYTHON" "$ROOT$PYTHON"
    mount -o remount,bind,ro "$ROOT$PYTHON"
    mount -o remount,ro "$ROOT$CLOSED"
fi
exec chroot "$ROOT" setpriv --reuid {uid} --regid {uid} --clear-groups --no-new-privs \\
    --inh-caps=-all --bounding-set=-all "$@"
"""


def _walled(folder: Path, *command: str) -> list[str]:
    """A command as another user, without capabilities, where only one folder can be written."""
    root, writable = folder / "root", folder / "writable"
    root.mkdir(exist_ok=True)
    writable.mkdir(exist_ok=True)
    environment = [
        f"PYTHONPATH={PROJECT_DIR}",
        "PYTHONDONTWRITEBYTECODE=1",
        f"TMPDIR={writable}",
        "HOME=/nonexistent",
        "GATEHOUSE_HOST=0.0.0.0",
        "GATEHOUSE_ALLOW_ANONYMOUS=true",
    ]
    script = _SCRIPT.format(uid=UID)
    # No more room than Compose gives.
    tmpfs = _services()["gatehouse"]["tmpfs"][0].partition(":")[2]
    return [
        *("env", f"ROOT={root}", f"WRITABLE={writable}", f"TMPFS={tmpfs}"),
        *(f"CLOSED={_closed_folder() or ''}", f"PYTHON={sys.base_prefix}"),
        *("unshare", "--mount", "sh", "-c", script, "sh"),
        *("env", "-i", f"PATH={os.environ['PATH']}", *environment, *command),
    ]


def _closed_folder() -> Path | None:
    """The outermost folder around this Python that only its owner may enter, or None."""
    folders = reversed(Path(sys.base_prefix).parents)
    return next((folder for folder in folders if not folder.stat().st_mode & 0o001), None)


def _cannot_wall(folder: Path) -> str | None:
    """Why this machine cannot do that, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root can make another root file system here"
    if not all(map(shutil.which, ("unshare", "setpriv", "chroot"))):
        return "unshare, setpriv or chroot is missing here"
    probe = _walled(folder, sys.executable, "-c", "import app.cli")
    done = subprocess.run(probe, capture_output=True, text=True, check=False, cwd="/")
    return None if done.returncode == 0 else f"not possible here: {done.stderr.strip()[-200:]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # The tests' own folders must be such that another user may enter them.
    temporary = Path(tempfile.gettempdir())
    for parent in (tmp_path, *tmp_path.parents):
        if temporary in parent.parents:
            parent.chmod(parent.stat().st_mode | 0o011)
    if (reason := _cannot_wall(tmp_path)) is not None:
        pytest.skip(reason)
    return tmp_path


def test_the_walls_hold(folder: Path) -> None:
    code = f"""
import os, pathlib, json
def can_write(path):
    try:
        pathlib.Path(path).write_text("x")
        return True
    except OSError:
        return False
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({{
    "uid": os.getuid(),
    "capabilities": [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")],
    "no_new_privileges": status["NoNewPrivs"],
    "writes": [can_write(path) for path in ("/x", "/tmp/x", "{PROJECT_DIR}/x", "{folder}/x")],
    "writes_tmp": can_write("{folder}/writable/x"),
}}))
"""
    done = subprocess.run(
        _walled(folder, sys.executable, "-c", code), capture_output=True, check=True, cwd="/"
    )
    assert json.loads(done.stdout) == {
        "uid": UID,
        "capabilities": [0, 0, 0],
        "no_new_privileges": "1",
        "writes": [False, False, False, False],
        "writes_tmp": True,
    }


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    command = (sys.executable, "-m", "app.cli", "serve", "--port", "0", "--device", "cpu")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            _walled(folder, *command), stdout=subprocess.PIPE, stderr=log, text=True, cwd="/"
        )
    assert process.stdout is not None
    try:
        greeting = process.stdout.readline()
        assert "listens on" in greeting, (folder / "log").read_text()
        yield greeting.split()[-1].replace("0.0.0.0", "127.0.0.1")
    finally:
        process.terminate()
        status = process.wait(SECONDS_TO_START)
        process.stdout.close()
    assert status == 0, (folder / "log").read_text()


@pytest.mark.slow
def test_the_service_works_within_the_walls(folder: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with _served(folder) as address:
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                opener.open(f"{address}/health/ready", timeout=5).close()
                break
            except OSError:  # not ready, not listening, or slow to say so
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        for path, body in (
            ("/translate", {"text": "I am cold."}),
            ("/generate", {"prompt": "The", "max_new_tokens": 5}),
            ("/bleu", {"hypotheses": ["a"], "references": ["a"], "metrics": ["bleu", "chrf"]}),
            ("/detect", {"q": "Il est content."}),
        ):
            request = urllib.request.Request(
                address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            try:
                opener.open(request, timeout=30).close()
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{path}: {(folder / 'log').read_text()}") from error
    log = (folder / "log").read_text()
    assert "Traceback" not in log
    assert "Read-only file system" not in log


def test_the_audit_runs_or_says_why_not() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    assert hadolint.is_file()  # the image's own linter: tests/test_house.py runs it
    recipe = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "audit"],
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
    ).stdout
    assert "pip-audit --requirement constraints.txt --no-deps" in recipe
    assert "Not audited" in recipe
