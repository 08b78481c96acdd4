"""What the project is installed, built and run with fits together."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import Settings, variable_name
from training.preset import available_presets

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
TARGETS = (
    "serve",
    "serve-ray",
    "test",
    "check",
    "audit",
    "fix",
    "bench",
    "chaos",
    "soak",
    "fuzz",
    "train",
)


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# What make hands down to the commands of its recipes, its command line's variables among it.
OF_MAKE = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "ARGS", "PRESET", "TORCH_INDEX_URL"}


def _run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> tuple[int, str]:
    """Run a command without input, and outside any make that runs these tests."""
    inherited = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    result = subprocess.run(
        command,
        cwd=cwd,
        env=inherited | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads(_read("pyproject.toml"))


@pytest.fixture(scope="module")
def constraints() -> dict[str, Requirement]:
    lines = (line.split("#")[0].strip() for line in _read("constraints.txt").splitlines())
    requirements = [Requirement(line) for line in lines if line]
    pins: dict[str, Requirement] = {
        canonicalize_name(requirement.name): requirement for requirement in requirements
    }
    assert len(pins) == len(requirements), "a package is pinned twice"
    return pins


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document = yaml.safe_load(_read("docker-compose.yml"))
    assert isinstance(document, dict)
    return document


# ---------------------------------------------------------------- packages


def test_every_constraint_is_one_exact_public_version(constraints: dict[str, Requirement]) -> None:
    for name, requirement in constraints.items():
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", name
        assert "*" not in specifier.version, name
        # A local version (torch's +cpu) would bind everyone to one build.
        assert "+" not in specifier.version, name


def _installed_closure(name: str, extras: frozenset[str]) -> set[str]:
    """Names of all packages that a package and some of its extras need on this machine."""
    seen: set[tuple[str, str]] = set()
    todo = [(name, extra) for extra in {"", *extras}]
    while todo:
        package, extra = todo.pop()
        if (package, extra) in seen:
            continue
        seen.add((package, extra))
        for text in importlib.metadata.requires(package) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                todo += [(needed, wanted) for wanted in {"", *requirement.extras}]
    return {package for package, _ in seen} - {name}


def test_constraints_pin_all_that_is_needed_at_the_version_installed(
    constraints: dict[str, Requirement],
) -> None:
    needed = _installed_closure("gatehouse", frozenset({"train", "dev", "ray"}))
    assert {"torch", "starlette", "matplotlib", "pytest"} <= needed
    # The CUDA builds bring their own libraries, at versions that torch itself pins exactly.
    needed = {
        name for name in needed if not name.startswith(("nvidia-", "cuda-")) and name != "triton"
    }
    assert needed <= set(constraints), "not pinned"
    for name in needed:
        version = importlib.metadata.version(name)
        assert constraints[name].specifier.contains(version, prereleases=True), (name, version)


def test_serving_needs_neither_training_nor_development_packages(project: dict[str, Any]) -> None:
    serving = _installed_closure("gatehouse", frozenset())
    extras = project["project"]["optional-dependencies"]
    others = {
        canonicalize_name(Requirement(text).name) for extra in extras.values() for text in extra
    }
    # sacrebleu and torch themselves bring some of what training and development name too.
    assert not serving & (others - {"filelock", "packaging", "pyyaml"})


def test_the_linters_check_for_the_python_that_is_required(project: dict[str, Any]) -> None:
    assert project["project"]["requires-python"] == ">=3.11"
    assert project["tool"]["ruff"]["target-version"] == "py311"
    assert project["tool"]["mypy"]["python_version"] == "3.11"
    assert re.search(r"^FROM python:3\.11\.\d+-slim", _read("Dockerfile"), re.MULTILINE)


def test_warnings_are_errors_but_for_justified_ones(project: dict[str, Any]) -> None:
    assert project["tool"]["mypy"]["strict"] is True
    filters = project["tool"]["pytest"]["ini_options"]["filterwarnings"]
    assert filters[0] == "error"
    # Each exception names a message or a module, never a whole class of warnings.
    for exception in filters[1:]:
        assert re.fullmatch(r"ignore:[^:]+:.+", exception), exception


def test_the_command_is_installed(project: dict[str, Any]) -> None:
    assert project["project"]["scripts"] == {"gatehouse": "app.cli:main"}
    assert (SCRIPTS / "gatehouse").is_file()


def test_the_version_is_in_the_changelogs_form(project: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    headings = re.findall(r"^## (.+)$", _read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"


# ---------------------------------------------------------------- make and CI


def test_make_without_a_target_lists_every_target() -> None:
    code, output = _run("make", "--no-print-directory")
    assert code == 0, output
    for target in TARGETS:
        assert re.search(rf"^  make {target}\s+\S", output, re.MULTILINE), target


def _recipe(target: str, *arguments: str) -> str:
    code, output = _run("make", "--no-print-directory", "--dry-run", target, *arguments)
    assert code == 0, output
    return output


def test_the_targets_run_what_they_say() -> None:
    assert "gatehouse serve --port 8001" in _recipe("serve", "ARGS=--port 8001")
    assert "gatehouse train some-preset" in _recipe("train", "PRESET=some-preset")
    assert "serve run deploy/ray/serve_config.yaml" in _recipe("serve-ray")
    tests = _recipe("test", "ARGS=-n 0 --pdb").strip()
    assert "-m pytest -n logical" in tests
    assert tests.endswith("-n 0 --pdb")
    assert "-m pytest -m chaos" in _recipe("chaos")
    assert "-m benchmarks overload --seconds 5" in _recipe("chaos", "ARGS=--seconds 5")
    assert "-m benchmarks soak --requests 9" in _recipe("soak", "ARGS=--requests 9")
    fuzz = _recipe("fuzz", "ARGS=-k forms")
    assert "-m pytest -m fuzz --hypothesis-profile fuzz" in fuzz
    assert fuzz.strip().endswith("-k forms")
    check = _recipe("check")
    for command in ("ruff check .", "ruff format --check .", "mypy", "lint-imports"):
        assert command in check
    assert "ruff check --fix ." in _recipe("fix")


def test_torch_comes_from_the_index_that_was_asked_for(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    dry_run = ("make", "--dry-run", "serve")
    _, default = _run(*dry_run, cwd=tmp_path)
    assert "--index-url https://download.pytorch.org/whl/cpu " in default
    _, asked = _run(*dry_run, "TORCH_INDEX_URL=https://example.org/whl", cwd=tmp_path)
    assert "--index-url https://example.org/whl " in asked
    _, asked = _run(*dry_run, cwd=tmp_path, TORCH_INDEX_URL="https://example.org/whl")
    assert "--index-url https://example.org/whl " in asked


def test_another_index_replaces_torch_and_the_default_leaves_it_alone(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    for stamp in ("torch", "serve"):
        (tmp_path / ".venv" / f"{stamp}.stamp").write_text("https://example.org/one\n")
    dry_run = ("make", "--dry-run", "serve")
    for same in ((), ("TORCH_INDEX_URL=https://example.org/one",)):
        _, output = _run(*dry_run, *same, cwd=tmp_path)
        assert "pip" not in output
    _, output = _run(*dry_run, "TORCH_INDEX_URL=https://example.org/two", cwd=tmp_path)
    assert "--force-reinstall" in output
    assert "--index-url https://example.org/two" in output


def test_an_old_python_gets_one_clear_sentence(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\n[ $1 = --version ] && echo Python 3.9.2\n")
    old.chmod(0o755)
    code, output = _run("make", "serve", f"PYTHON={old}", cwd=tmp_path)
    assert code != 0
    lines = [line for line in output.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, output
    assert lines[0].startswith("Gatehouse needs Python 3.11 or newer")
    assert "Python 3.9.2" in lines[0]
    assert not (tmp_path / ".venv").exists()


def test_train_without_a_preset_names_the_presets() -> None:
    # The environment counts as installed, for this run only.
    code, output = _run("make", "train", "--old-file=.venv/train.stamp")
    assert code != 0
    (listed,) = [line for line in output.splitlines() if "timemachine-gru" in line]
    assert listed.split() == sorted(available_presets())
    assert "make train ARGS='--text novel.txt'" in output


def test_ci_runs_the_checks_and_then_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    code, output = _run(SCRIPTS / "shellcheck", script)
    assert code == 0, output
    text = _read(".ci/run")
    assert "set -euo pipefail" in text
    assert text.index(" check") < text.index(" test")


# ---------------------------------------------------------------- image


def test_the_dockerfile_is_clean() -> None:
    code, output = _run(SCRIPTS / "hadolint", "--failure-threshold", "info", "Dockerfile")
    assert code == 0, output
    assert output == ""


def test_the_image_is_non_root_with_a_health_check_and_an_exec_command() -> None:
    text = _read("Dockerfile")
    user = re.search(r"^USER (\S+)$", text, re.MULTILINE)
    assert user
    assert user[1] not in {"root", "0"}
    assert "/health/ready" in text[text.index("HEALTHCHECK") :]
    assert 'CMD ["gatehouse", "serve"]' in text
    assert "EXPOSE 8000" in text
    assert "GATEHOUSE_HOST=0.0.0.0" in text


def _gatehouses(compose: dict[str, Any]) -> list[dict[str, Any]]:
    """The services that are Gatehouse: the others only watch it."""
    return [one for name, one in compose["services"].items() if name.startswith("gatehouse")]


def test_the_health_check_holds_whichever_port_is_set(compose: dict[str, Any]) -> None:
    # In the image the port may be set; in the Compose file it is fixed.
    health_check = _read("Dockerfile").split("HEALTHCHECK")[1]
    assert "GATEHOUSE_PORT" in health_check
    for service in _gatehouses(compose):
        port = service["environment"]["GATEHOUSE_PORT"]
        assert f"127.0.0.1:{port}/" in service["healthcheck"]["test"][-1]
        assert all(published.endswith(f":{port}") for published in service["ports"])


def test_new_code_does_not_install_torch_again() -> None:
    text = _read("Dockerfile")
    assert text.rindex("pip install") < min(
        text.index(f"COPY {folder} ")
        for folder in ("app", "gatehouse_client", "models", "training", "checkpoints")
    )


def test_the_image_gets_what_it_copies_and_nothing_else() -> None:
    copied = re.findall(r"^COPY (\S+) \S+$", _read("Dockerfile"), re.MULTILINE)
    ignored = [line for line in _read(".dockerignore").splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    assert sorted(copied) == sorted(line[1:] for line in ignored if line.startswith("!"))


def test_the_indexes_are_the_same_everywhere(compose: dict[str, Any]) -> None:
    cpu, gpu = (
        compose["services"][name]["build"]["args"]["TORCH_INDEX_URL"]
        for name in ("gatehouse", "gatehouse-gpu")
    )
    assert f"\nTORCH_INDEX_URL ?= {cpu}\n" in _read("Makefile")
    assert f"\nARG TORCH_INDEX_URL={cpu}\n" in _read("Dockerfile")
    assert gpu in _read("Makefile")
    assert gpu in _read("Dockerfile")


# ---------------------------------------------------------------- compose


def test_the_compose_file_fits_the_specifications_schema() -> None:
    check = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec")
    code, output = _run(*check, "docker-compose.yml")
    assert code == 0, output


def test_the_schema_refuses_a_wrong_compose_file(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(_read("docker-compose.yml").replace("restart:", "restarts:"))
    check = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec")
    code, output = _run(*check, wrong)
    assert code != 0
    assert "restarts" in output


def test_compose_serves_on_8000_and_only_to_this_machine(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["gatehouse"]["ports"] == ["127.0.0.1:8000:8000"]
    assert "profiles" not in services["gatehouse"]
    # Started together, the two must not want the same port.
    ports = [port.rpartition(":")[0] for service in services.values() for port in service["ports"]]
    assert len(set(ports)) == len(ports)
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_services_restart_are_watched_and_mount_the_checkpoints(
    compose: dict[str, Any],
) -> None:
    (workdir,) = re.findall(r"^WORKDIR (\S+)$", _read("Dockerfile"), re.MULTILINE)
    for service in _gatehouses(compose):
        assert service["restart"] == "unless-stopped"
        assert "/health/ready" in service["healthcheck"]["test"][-1]
        (volume,) = service["volumes"]
        assert volume["read_only"] is True
        assert volume["source"] == "./checkpoints"
        assert volume["target"] == f"{workdir}/checkpoints"
        assert service["environment"]["GATEHOUSE_HOST"] == "0.0.0.0"
        assert service["environment"]["GATEHOUSE_CHECKPOINTS_DIR"] == volume["target"]


def test_the_gpu_service_is_a_profile_that_reserves_a_device(compose: dict[str, Any]) -> None:
    service = compose["services"]["gatehouse-gpu"]
    assert service["profiles"] == ["gpu"]
    assert service["environment"]["GATEHOUSE_DEVICE"] == "cuda"
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]


# ---------------------------------------------------------------- odds and ends


@pytest.mark.parametrize("name", [".env.example", "Dockerfile", "docker-compose.yml"])
def test_every_setting_that_is_named_exists(name: str) -> None:
    settings = {variable_name(setting) for setting in Settings.model_fields}
    named = set(re.findall(r"\bGATEHOUSE_[A-Z_]*[A-Z]\b", _read(name)))
    assert named
    assert named <= settings


def test_the_licence_is_mit_everywhere(project: dict[str, Any]) -> None:
    assert _read("LICENSE").startswith("MIT License")
    assert project["project"]["license"] == "MIT"
