"""The pages in docs/ name everything that there is, and nothing that there is not."""

import json
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.core import Metric
from pydantic.fields import FieldInfo

from app.api.errors import CANCELLED, ERROR_KINDS
from app.api.observation import OK
from app.engine.request import EngineStats
from app.metrics import Metrics
from app.settings import PROJECT_DIR, Settings, variable_name

DOCS = PROJECT_DIR / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """Rows of a page's tables by the name in backquotes in their first cell."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"\| `([^`]+)` \|", line):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
            assert match[1] not in found, f"{match[1]} is documented twice"
            found[match[1]] = cells
    return found


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def _range_of(field: FieldInfo) -> str:
    """Between which numbers its value may be, as the page says it; empty for what is none."""
    limits = {
        name: f"{getattr(one, name):,}"
        for one in field.metadata
        for name in ("ge", "gt", "le")
        if hasattr(one, name)
    }
    if not limits:
        return ""
    above = f", above {limits['gt']}" if "gt" in limits else f", {limits['ge']}"
    if "le" not in limits:
        return above + " or more"
    return f"{above}, at most {limits['le']}" if "gt" in limits else f"{above} to {limits['le']}"


def test_settings() -> None:
    documented = rows(page("settings.md"))
    assert list(documented) == [variable_name(name) for name in Settings.model_fields]
    for name, field in Settings.model_fields.items():
        _, kind, default, meaning = documented[variable_name(name)]
        assert kind.endswith(_range_of(field)), f"{name}: {_range_of(field)}"
        assert meaning.removesuffix(" |") == field.description
        expected: Any = {None: "unset", (): "empty", "": "empty"}.get(field.default, field.default)
        if name == "checkpoints_dir":
            expected = "checkpoints"
        assert default == f"`{expected}`"


def test_settings_that_pages_mention_exist() -> None:
    known = {variable_name(name) for name in Settings.model_fields}
    for path in DOCS.glob("*.md"):
        mentioned = set(re.findall(r"GATEHOUSE_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8")))
        if path.name in ("settings.md", "api.md", "errors.md", "metrics.md"):
            assert mentioned <= known, path.name


def test_errors() -> None:
    documented = rows(page("errors.md"))
    assert list(documented) == list(ERROR_KINDS)
    for code, kind in ERROR_KINDS.items():
        assert documented[code][1] == str(kind.status)


STATS = EngineStats(
    waiting=0,
    running=0,
    rows_running={"letters": 0},
    row_budget=16,
    accepted=0,
    finished=0,
    failed=0,
    cancelled=0,
    restarts=0,
    last_step_age_seconds=0.0,
)


def test_metrics() -> None:
    documented = rows(page("metrics.md"))
    families: dict[str, tuple[str, tuple[str, ...]]] = {}
    metrics = Metrics()
    metrics.watch_engine(lambda: STATS)
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        families[name] = (family.type, _labels(metrics, family))
    assert set(documented) == set(families)
    for name, (kind, labels) in families.items():
        _, type_, unit, names, meaning = documented[name]
        assert type_ == kind, name
        assert unit in UNITS, name
        assert (unit == "seconds") is ("seconds" in name), name
        assert re.findall(r"`(\w+)`", names) == list(labels), name
        assert meaning, name


UNITS = {
    "requests",
    "texts",
    "tokens",
    "rows",
    "positions",
    "reloads",
    "restarts",
    "seconds",
    "0 or 1",
    "1",
}


def _labels(metrics: Metrics, family: Metric) -> tuple[str, ...]:
    for collector in vars(metrics).values():
        if getattr(collector, "_name", None) == family.name:
            labels: tuple[str, ...] = collector._labelnames
            return labels
    return tuple(family.samples[0].labels)


def test_outcomes_are_documented() -> None:
    for outcome in (OK, CANCELLED):
        assert f"`{outcome}`" in page("metrics.md")


def test_endpoints(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    there = [
        f"{method.upper()} {path}"
        for path, methods in schema["paths"].items()
        for method in methods
    ]
    assert list(rows(page("api.md").partition("\n## ")[0])) == there
    titled = {
        name
        for path in ("api.md", "openai.md", "libretranslate.md")
        for title in re.findall(r"^## ((?:GET|POST) .*)$", page(path), re.MULTILINE)
        for name in title.removesuffix(" with q").split(" and ")
    }
    assert titled == set(there) - {"GET /metrics"}


def page_of(title: str) -> str:
    """The page with the section of an endpoint."""
    if " /v1/" in title:
        return "openai.md"
    paths = (" with q", "/detect", "/languages", "/frontend/")
    is_libretranslate = any(path in title for path in paths)
    return "libretranslate.md" if is_libretranslate else "api.md"


@pytest.mark.parametrize(
    ("title", "request_", "answer", "nested"),
    [
        (
            "POST /v1/completions",
            "CompletionBody",
            "CompletionAnswer",
            {
                "choices[]": "CompletionChoice",
                "choices[].logprobs": "CompletionLogprobs",
                "usage": "CompletionUsage",
            },
        ),
        ("GET /v1/models and GET /v1/models/{name}", None, "OpenAIModel", {}),
        (
            "POST /translate with q",
            "LibreTranslateBody",
            "LibreTranslateAnswer",
            {"detectedLanguage": "DetectedAnswer"},
        ),
        ("POST /detect", "DetectBody", "DetectedAnswer", {}),
        ("GET /languages", None, "LanguageAnswer", {}),
        ("GET /frontend/settings", None, "SettingsAnswer", {}),
        (
            "POST /generate",
            "GenerateBody",
            "GenerateAnswer",
            {
                "outputs[]": "OutputAnswer",
                "token": "GenerateTokenEvent",
                "finish": "GenerateFinishEvent",
                "done": "GenerateDoneEvent",
            },
        ),
        (
            "POST /translate",
            "TranslateBody",
            "TranslateAnswer",
            {
                "translations[]": "TranslationAnswer",
                "token": "TranslateTokenEvent",
                "finish": "TranslateFinishEvent",
                "done": "TranslateDoneEvent",
            },
        ),
        ("POST /bleu", "BleuBody", "BleuAnswer", {"scores.*": "ScoreAnswer"}),
        ("GET /models and GET /models/{name}", None, "ModelAnswer", {}),
        ("POST /admin/models/{name}/reload", None, "ReloadAnswer", {}),
    ],
)
def test_fields(
    client: TestClient, title: str, request_: str | None, answer: str, nested: dict[str, str]
) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    text = section(page(page_of(title)), title)
    before, _, after = text.partition("The answer:") if request_ else ("", "", text)
    if request_:
        documented = rows(before)
        properties = schemas[request_]["properties"]
        assert list(documented) == list(properties)
        for name in properties:
            required = name in schemas[request_].get("required", [])
            assert (documented[name][2] == "required") == required, name
    expected = set(schemas[answer]["properties"])
    for prefix, name in nested.items():
        expected |= {f"{prefix}.{field}" for field in schemas[name]["properties"]}
    if "token" in nested:
        expected |= {"token", "finish", "done", "error"}
    assert set(rows(after)) == expected


def test_every_fault_names_tests_that_exist() -> None:
    text = page("reliability.md")
    tables = section(text, "Faults") + section(text, "Hostile input")
    lines = [line for line in tables.splitlines() if line.startswith("| ")]
    lines = [line for line in lines if not line.endswith(" Test |")]
    named = [line.split("|")[-2] for line in lines if not line.startswith("| ---")]
    assert len(named) > 25
    for cell in named:
        found = re.findall(r"`([\w/]+\.py)::(\w+)`", cell)
        assert found, cell
        for path, function in found:
            source = (PROJECT_DIR / "tests" / path).read_text(encoding="utf-8")
            assert re.search(rf"^def {function}\(", source, re.MULTILINE), f"{path}::{function}"


@pytest.mark.parametrize(("marker", "files"), [("chaos", "*.py"), ("fuzz", "**/*.py")])
def test_every_test_of_chaos_and_fuzzing_is_in_a_table(marker: str, files: str) -> None:
    text = page("reliability.md")
    tests = PROJECT_DIR / "tests"
    found = 0
    for path in (tests / "app").glob(files):
        source = path.read_text(encoding="utf-8")
        if re.search(rf"^pytestmark = .*pytest\.mark\.{marker}", source, re.MULTILINE):
            for function in re.findall(r"^def (test_\w+)\(", source, re.MULTILINE):
                assert f"`{path.relative_to(tests).as_posix()}::{function}`" in text, function
                found += 1
    assert found > 5


def test_defaults_of_request_fields(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for title, name in (
        ("POST /generate", "GenerateBody"),
        ("POST /translate", "TranslateBody"),
        ("POST /bleu", "BleuBody"),
        ("POST /v1/completions", "CompletionBody"),
        ("POST /translate with q", "LibreTranslateBody"),
        ("POST /detect", "DetectBody"),
    ):
        documented = rows(section(page(page_of(title)), title).partition("The answer:")[0])
        for field, part in schemas[name]["properties"].items():
            if field in schemas[name].get("required", []):
                continue
            assert documented[field][2].strip("`") == _shown(part.get("default")), field


def _shown(default: Any) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    return default if isinstance(default, str) else json.dumps(default)
