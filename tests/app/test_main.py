from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app import VERSION
from app.main import create_app
from app.settings import PROJECT_DIR
from tests.app.conftest import make_settings


def test_settings_come_from_the_environment_unless_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEHOUSE_MAX_BODY_BYTES", "12345")
    app = create_app()
    assert app.state.runtime.settings.max_body_bytes == 12_345
    assert create_app(make_settings(tmp_path)).state.runtime.settings.checkpoints_dir == tmp_path


def test_every_service_has_metrics_of_its_own(tmp_path: Path) -> None:
    first, second = (create_app(make_settings(tmp_path)).state.runtime for _ in range(2))
    assert first.metrics.registry is not second.metrics.registry


def test_version_is_that_of_the_project() -> None:
    assert f'version = "{VERSION}"' in (PROJECT_DIR / "pyproject.toml").read_text()


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    with TestClient(create_app(make_settings(tmp_path))) as client:
        for _ in range(500):
            detail = client.get("/health/ready").json()["detail"]
            if "being loaded" not in detail:
                break
        assert detail.startswith("the service could not start: no checkpoint found in")
        assert client.get("/health/live").status_code == 200
        assert client.post("/generate", json={"prompt": "a"}).status_code == 503
