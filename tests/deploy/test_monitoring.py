"""Dashboard, alerts and Compose agree with the metrics that the service has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "gatehouse.json"
SUFFIXES = ("_bucket", "_sum", "_count")
FOREIGN = {"up"}
"""Metrics that Prometheus makes itself."""
ADDED = {"instance", "job", "le"}
"""Labels that Prometheus adds, and that of a histogram's buckets."""


def _documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of every metric by its name; a test holds the page against the code."""
    row = r"^\| `(gatehouse_\w+)` \| (\w+) \| [^|]* \|([^|]*)\|"
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    return {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in re.findall(row, text, re.MULTILINE)
    }


def _dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return document


def _alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def _expressions() -> Iterator[tuple[str, str]]:
    for panel in _dashboard()["panels"]:
        for target in panel["targets"]:
            # What Grafana fills in.
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1h")
            yield panel["title"], expression.replace("$instance", ".*")
    for rule in _alerts():
        yield rule["alert"], rule["expr"]


EXPRESSIONS = list(_expressions())


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[e[0] for e in EXPRESSIONS])
def test_every_expression_is_one_and_names_what_exists(where: str, expression: str) -> None:
    promql_parser.parse(expression)
    documented = _documented()
    named = re.findall(
        r"\b(gatehouse_\w+|up)\b(?:\{([^}]*)\})?", expression.replace('"gatehouse"', "")
    )
    assert named, where
    used = set()
    for name, matchers in named:
        if name in FOREIGN:
            continue
        suffix = next((s for s in SUFFIXES if name.endswith(s)), "")
        kind, labels = documented[name.removesuffix(suffix)]
        assert (kind == "histogram") == bool(suffix), f"{where}: {name}"
        used |= labels
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= labels | ADDED
    for grouping in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        assert {label.strip() for label in grouping.split(",")} <= used | ADDED, where


def test_a_counter_is_only_looked_at_by_its_rate() -> None:
    counters = {name for name, (kind, _) in _documented().items() if kind == "counter"}
    for where, expression in EXPRESSIONS:
        for name in counters & set(re.findall(r"gatehouse_\w+", expression)):
            for match in re.finditer(rf"\b{name}\b", expression):
                before = expression[: match.start()]
                assert before.endswith(("rate(", "increase(")), f"{where}: {name}"


def test_legends_name_labels_that_the_panel_keeps() -> None:
    for panel in _dashboard()["panels"]:
        for target in panel["targets"]:
            kept = set(
                re.findall(r"[\w]+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"])))
            )
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= kept | ADDED, panel["title"]


def test_the_dashboard_shows_what_an_operator_asks_for() -> None:
    titles = " ".join(panel["title"].lower() for panel in _dashboard()["panels"])
    for question in ("outcome", "time of a request", "first token", "waiting", "rows", "tokens"):
        assert question in titles
    ids = [panel["id"] for panel in _dashboard()["panels"]]
    assert len(set(ids)) == len(ids)


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in _dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_alert_says_what_it_means_and_how_bad_it_is() -> None:
    for rule in _alerts():
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_every_alert_is_documented_with_what_to_do() -> None:
    names = [rule["alert"] for rule in _alerts()]
    table = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Gatehouse\w+)` \|", table, re.MULTILINE) == names
    _, _, advice = (
        (ROOT / "docs" / "operate.md")
        .read_text(encoding="utf-8")
        .partition("## What to do on an alert")
    )
    assert re.findall(r"^### (\w+)$", advice, re.MULTILINE) == names


def test_a_stalled_engine_is_told_though_the_service_is_not_ready_then() -> None:
    """``gatehouse_ready`` becomes 0 long before a step is as old as the rule wants."""
    [rule] = [rule for rule in _alerts() if rule["alert"] == "GatehouseEngineStalled"]
    age = int(re.findall(r"gatehouse_last_step_age_seconds > (\d+)", rule["expr"])[0])
    assert Settings().max_step_age_seconds < age
    assert "gatehouse_ready" not in rule["expr"]


def test_compose_mounts_what_the_watchers_read() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    for name in ("prometheus", "grafana"):
        service = services[name]
        assert service["profiles"] == ["monitoring"]
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), "pinned to a release"
        for volume in service["volumes"]:
            source, target, *options = volume.split(":")
            if source.startswith("."):
                assert (ROOT / source).is_dir()
                assert options == ["ro"]
                assert target.startswith("/")
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
    (job,) = scraped["scrape_configs"]
    assert f'job="{job["job_name"]}"' in _alerts()[0]["expr"]
    provisioned = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text("utf-8")
    )
    (source,) = provisioned["datasources"]
    used = {panel["datasource"]["uid"] for panel in _dashboard()["panels"]}
    assert used == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"


def test_prometheus_scrapes_every_service_and_misses_only_those_that_always_run() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    ports = {
        name: service["environment"]["GATEHOUSE_PORT"]
        for name, service in services.items()
        if "GATEHOUSE_PORT" in service.get("environment", {})
    }
    always = {f"{name}:{port}" for name, port in ports.items() if "profiles" not in services[name]}
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
    (job,) = scraped["scrape_configs"]
    # A static target is down where nothing runs, and GatehouseDown tells; a name is not resolved.
    (static,) = job["static_configs"]
    assert set(static["targets"]) == always
    (found,) = job["dns_sd_configs"]
    assert found["type"] == "A"
    assert {f"{name}:{found['port']}" for name in found["names"]} == {
        f"{name}:{port}" for name, port in ports.items() if "profiles" in services[name]
    }
    (rule,) = job["relabel_configs"]
    assert rule["target_label"] == "instance"
    assert rule["replacement"] == f"$1:{found['port']}"
    # Of a static target the label is empty, and its own instance stays.
    assert re.fullmatch(rule["regex"], "") is None


def test_every_alert_is_documented() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(Gatehouse\w+)` \| (\w+) \|", text, re.MULTILINE)
    assert table == [(rule["alert"], rule["labels"]["severity"]) for rule in _alerts()]
