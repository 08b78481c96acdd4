"""The import rules hold, and the checks that hold them catch a violation.

The rules themselves stand in pyproject.toml: import-linter's contracts, and ruff's banned names.
"""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
PACKAGES = ("app", "gatehouse_client", "models", "training")

SCHEDULER = "app.engine.scheduler"

# One violation per row: the contract that must break, the module that is written or appended to,
# and the offending line.
VIOLATIONS = [
    ("models-is-a-leaf", "models.config", "import app.exceptions"),
    ("models-is-a-leaf", "models.config", "import training"),
    ("models-is-a-leaf", "models.config", "def later() -> None:\n    import training"),
    ("training-without-app", "training.loop", "from app import exceptions"),
    ("app-without-training", "app.service", "import training.loop"),
    ("app-without-training", "app.engine.client", "import training"),
    ("client-is-apart", "gatehouse_client.answers", "import models.config"),
    ("client-is-apart", "gatehouse_client.retries", "from app import exceptions"),
    ("service-without-ray", "app.main", "import ray"),
    ("service-without-ray", "models.config", "def later() -> None:\n    from ray import serve"),
    ("http-without-torch", "app.main", "import torch"),
    ("http-without-torch", "app.service", "def later() -> None:\n    from numba import njit"),
    ("app-layers", "app.engine.client", "import app.service"),
    ("app-layers", "app.engine.client", "import app.api.routes"),
    ("app-layers", "app.service", "from app.api import routes"),
    ("app-layers", "app.api.routes", "import app.main"),
    ("app-layers", "app.main", "import app.cli"),
    ("engine-knows-no-http", "app.engine.client", "import fastapi"),
    ("engine-knows-no-http", "app.engine.client", "from starlette import status"),
    # Not directly either: over a module that the engine may import.
    ("engine-knows-no-http", "app.exceptions", "import fastapi"),
    ("engine-knows-no-text", "app.engine.client", "from models.tokenizers import PAD_ID"),
]

ALLOWED = [
    ("app-without-training", "app.cli", "def train() -> None:\n    import training.loop"),
    ("app-without-training", "app.cli", "import training"),
    ("training-without-app", "training.loop", "import models.config"),
    ("app-layers", "app.service", "import app.engine.client"),
]


def _run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def _lint_imports(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The command puts its working directory first on the path: these packages, not the installed.
    return _run(SCRIPTS / "lint-imports", "--no-cache", "--no-logo", *arguments, cwd=root)


def _banned_names(path: Path, root: Path) -> subprocess.CompletedProcess[str]:
    return _run(SCRIPTS / "ruff", "check", "--no-cache", "--select", "TID251", path, cwd=root)


def _append(root: Path, module: str, line: str) -> Path:
    """Write ``line`` at the end of a module, which is created where it is missing."""
    path = root.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    return path


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """A small project under the real rules: empty modules, and the real engine's client."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("app", "app.api", "app.engine", "gatehouse_client", "models", "training"):
        folder = tmp_path.joinpath(*package.split("."))
        folder.mkdir()
        (folder / "__init__.py").touch()
    for module in (
        "app.api.routes", "app.cli", "app.exceptions", "app.main", "app.server", "app.service",
        "app.settings",
        "models.config", "models.tokenizers", "training.loop",
    ):  # fmt: skip
        _append(tmp_path, module, "")
    _append(tmp_path, "app.engine.client", "import app.exceptions\nimport models.config")
    return tmp_path


def test_the_project_keeps_every_contract() -> None:
    result = _lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_contract_has_a_violation_below() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {contract["id"] for contract in settings["tool"]["importlinter"]["contracts"]}
    assert contracts == {contract for contract, _, _ in VIOLATIONS}


def test_the_skeleton_itself_keeps_every_contract(skeleton: Path) -> None:
    result = _lint_imports(skeleton)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("contract", "module", "line"), VIOLATIONS)
def test_a_violation_is_caught(skeleton: Path, contract: str, module: str, line: str) -> None:
    _append(skeleton, module, line)
    result = _lint_imports(skeleton, "--contract", contract)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout


@pytest.mark.parametrize(("contract", "module", "line"), ALLOWED)
def test_what_is_allowed_is_not_caught(
    skeleton: Path, contract: str, module: str, line: str
) -> None:
    _append(skeleton, module, line)
    result = _lint_imports(skeleton, "--contract", contract)
    assert result.returncode == 0, result.stdout + result.stderr


def test_only_the_settings_read_the_environment() -> None:
    for package in PACKAGES:
        result = _banned_names(ROOT / package, ROOT)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "lines",
    [
        "import os\nprint(os.environ['HOME'])",
        "from os import environ\nprint(environ['HOME'])",
        "import os\nprint(os.getenv('HOME'))",
        "from os import getenv as read\nprint(read('HOME'))",
    ],
)
@pytest.mark.parametrize("module", ["app.service", "models.config", "training.loop"])
def test_a_reader_of_the_environment_is_caught(skeleton: Path, module: str, lines: str) -> None:
    result = _banned_names(_append(skeleton, module, lines), skeleton)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "TID251" in result.stdout


def test_the_settings_may_read_the_environment(skeleton: Path) -> None:
    path = _append(skeleton, "app.settings", "import os\nprint(os.environ['HOME'])")
    result = _banned_names(path, skeleton)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_scheduler_imports_no_torch() -> None:
    graph = grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)
    assert SCHEDULER in graph.modules
    assert "torch" in graph.modules
    assert graph.find_shortest_chain(SCHEDULER, "torch") is None


def test_a_scheduler_that_imports_torch_is_caught(skeleton: Path) -> None:
    _append(skeleton, "models.config", "import torch")
    _append(skeleton, SCHEDULER, "import models.config")
    script = (
        "import grimp; graph = grimp.build_graph('app', 'models', 'training', "
        "include_external_packages=True, cache_dir=None); "
        f"print(*graph.find_shortest_chain({SCHEDULER!r}, 'torch'))"
    )
    result = _run(sys.executable, "-c", script, cwd=skeleton)
    assert result.stdout.split() == [SCHEDULER, "models.config", "torch"], result.stderr
