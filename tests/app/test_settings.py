import re
from pathlib import Path

import pytest

from app.engine.request import MAX_ROWS_PER_REQUEST
from app.exceptions import StartupError
from app.settings import PROJECT_DIR, Settings, load_settings, variable_name


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_name(name), raising=False)


def test_defaults_serve_the_projects_own_checkpoints_on_loopback() -> None:
    settings = load_settings(env_file=None)
    assert settings.checkpoints_dir == PROJECT_DIR / "checkpoints"
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_command_line_beats_environment_beats_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(
        "GATEHOUSE_PORT=1\nGATEHOUSE_HOST=file\nGATEHOUSE_LOG_LEVEL=ERROR\nTORCH_INDEX_URL=x\n"
    )
    monkeypatch.setenv("GATEHOUSE_PORT", "2")
    monkeypatch.setenv("gatehouse_models", "a, b")
    settings = load_settings(env_file, port=3, host=None)
    assert (settings.port, settings.host, settings.log_level) == (3, "file", "error")
    assert settings.models == ("a", "b")


def test_unknown_variable_is_refused_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEHOUSE_PROT", "9000")
    with pytest.raises(StartupError, match="GATEHOUSE_PROT: did you mean GATEHOUSE_PORT"):
        load_settings(env_file=None)
    monkeypatch.delenv("GATEHOUSE_PROT")
    env_file = tmp_path / ".env"
    env_file.write_text("GATEHOUSE_QUEUE_SIZE=3\n")
    with pytest.raises(
        StartupError, match="GATEHOUSE_QUEUE_SIZE: did you mean GATEHOUSE_QUEUE_CAP"
    ):
        load_settings(env_file)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("PORT", "70000", "GATEHOUSE_PORT: Input should be less than or equal to 65535"),
        ("PRECISION", "int4", "GATEHOUSE_PRECISION: Input should be 'auto', 'float32'"),
        ("ENGINE", "thread", "GATEHOUSE_ENGINE: Input should be 'process' or 'inline'"),
        ("ROW_BUDGET", "15", "GATEHOUSE_ROW_BUDGET: Input should be greater than or equal to 16"),
        ("STREAM_KEEPALIVE_SECONDS", "0", "GATEHOUSE_STREAM_KEEPALIVE_SECONDS"),
        ("DEVICE", "tpu", "GATEHOUSE_DEVICE"),
        (
            *("QUEUE_CAPACITY", "3"),
            "GATEHOUSE_MAX_TEXTS_PER_REQUEST (64) is above GATEHOUSE_QUEUE_CAPACITY (3)",
        ),
        ("STATE_KEY", "short", "GATEHOUSE_STATE_KEY: Value should have at least 32 characters"),
        ("CORS_ORIGINS", "https://*.example.org", "https://*.example.org is no origin"),
        ("CORS_ORIGINS", "https://a.org:99999", "https://a.org:99999 is no origin"),
        ("CORS_ORIGINS", "https://a.org/x", "https://a.org/x is no origin"),
    ],
)
def test_refused_value_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(f"GATEHOUSE_{name}", value)
    with pytest.raises(StartupError, match=re.escape(complaint)):
        load_settings(env_file=None)


def test_a_default_gives_way_to_a_limit_and_a_choice_does_not() -> None:
    assert load_settings(env_file=None, max_new_tokens_limit=3).max_new_tokens_limit == 3
    complaint = "GATEHOUSE_DEFAULT_MAX_NEW_TOKENS (4) is above GATEHOUSE_MAX_NEW_TOKENS_LIMIT (3)"
    with pytest.raises(StartupError, match=re.escape(complaint)):
        load_settings(env_file=None, max_new_tokens_limit=3, default_max_new_tokens=4)


def test_names_are_taken_once_and_origins_as_browsers_write_them() -> None:
    settings = load_settings(
        env_file=None,
        models="en-fr, fr-en,en-fr",
        cors_origins="https://Example.org:8443,http://[::1]:80,https://example.org:8443",
    )
    assert settings.models == ("en-fr", "fr-en")
    assert settings.cors_origins == ("https://example.org:8443", "http://[::1]:80")


def test_a_file_of_settings_that_is_no_text_is_named(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_bytes(b"GATEHOUSE_PORT=\xff\n")
    with pytest.raises(StartupError, match=re.escape(f"{env_file} cannot be read")):
        load_settings(env_file)


def test_the_widest_request_fits_into_the_smallest_row_budget() -> None:
    assert load_settings(env_file=None, row_budget=16).row_budget == MAX_ROWS_PER_REQUEST


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_nothing_else_reads_the_environment() -> None:
    readers = [
        path.name
        for path in (PROJECT_DIR / "app").rglob("*.py")
        if re.search(r"os\.environ|getenv|BaseSettings", path.read_text())
    ]
    # The other sets what Ray reads, and nothing of ours, before it is started.
    assert sorted(readers) == ["cluster.py", "settings.py"]
