"""Gatehouse on a Ray cluster of several nodes: what replicas share, and what they need not."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest

from tests.app.conftest import ENDLESS, save_language_model, save_translator
from tests.deploy.ray_cluster import (
    REPLICA,
    TIMEOUT_SECONDS,
    Load,
    RayService,
    ray_service,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODEL_HEADER = "serve_multiplexed_model_id"
ON_DEMAND = ("amber", "beryl", "coral")
TEXT = {"prompt": "a", "max_new_tokens": 20, "temperature": 0}
LIMIT = 20_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayService]:
    """Two replicas on two nodes, each with two models, and room for one more out of three."""
    root = tmp_path_factory.mktemp("checkpoints")
    save_translator(root / "en-fr", "en", "fr")
    for number, name in enumerate(("letters", *ON_DEMAND)):
        save_language_model(root / name, hidden_size=12 + 2 * number)
    with ray_service(nodes=2) as service:
        service.deploy(
            root,
            options={"num_replicas": 2},
            models_per_replica=1,
            models=("letters", "en-fr"),
            max_new_tokens_limit=LIMIT,
        )
        yield service


def figures(service: RayService, name: str) -> dict[str, float]:
    """A metric of each replica."""
    found: dict[str, float] = {}
    for line in service.get("/metrics").text.splitlines():
        if line.startswith(name) and 'replica="' in line:
            replica = line.partition('replica="')[2].partition('"')[0]
            found[replica] = found.get(replica, 0.0) + float(line.split()[-1])
    return found


def test_requests_spread_over_the_replicas_which_give_the_same_answer(service: RayService) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: service.post("/generate", TEXT), range(60)))
    assert {answer.status_code for answer in answers} == {200}
    by = Counter(answer.headers[REPLICA] for answer in answers)
    assert len(by) == 2
    assert min(by.values()) > 5, by
    assert len({answer.json()["outputs"][0]["text"] for answer in answers}) == 1


def test_a_state_of_one_replica_goes_on_at_another(service: RayService) -> None:
    drawn = {"temperature": 0.8, "seed": 7}
    whole = service.post("/generate", {**TEXT, **drawn}).json()["outputs"][0]
    half = {**drawn, "max_new_tokens": 10}
    first = service.post("/generate", {**TEXT, **half, "return_state": True})
    output = first.json()["outputs"][0]
    body = {"state": output["state"], "max_new_tokens": 10, "temperature": 0.8}

    def elsewhere() -> Any:
        answer = service.post("/generate", body)
        assert answer.status_code == 200, answer.text
        return answer if answer.headers[REPLICA] != first.headers[REPLICA] else None

    second = wait_for(elsewhere).json()["outputs"][0]
    assert output["text"] + second["text"] == whole["text"]


def test_metrics_are_those_of_all_replicas(service: RayService) -> None:
    before = figures(service, "gatehouse_requests_total")
    for _ in range(10):
        service.post("/generate", TEXT)
    after = figures(service, "gatehouse_requests_total")
    assert len(after) == 2
    assert sum(after.values()) == sum(before.values()) + 10
    assert figures(service, "gatehouse_ready") == dict.fromkeys(after, 1.0)
    kind = service.get("/metrics").headers["Content-Type"]
    assert kind.startswith("text/plain; version=")


def test_ready_speaks_for_the_replica_that_it_names(service: RayService) -> None:
    answer = service.get("/health/ready")
    assert answer.json() == {"status": "ready"}
    assert answer.headers[REPLICA] in figures(service, "gatehouse_ready")


def test_a_request_has_one_id(service: RayService) -> None:
    for given in ({}, {"X-Request-ID": "one-of-mine"}):
        answer = service.post("/generate", TEXT, headers=given)
        (shown,) = answer.headers.get_list("X-Request-ID")
        assert shown == given.get("X-Request-ID", shown)


def test_errors_come_through_as_they_are(service: RayService) -> None:
    answer = service.post("/generate", {"prompt": 1})
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert service.get("/nowhere").json()["code"] == "not_found"


def test_a_stream_comes_as_it_is_made(service: RayService) -> None:
    body = {**ENDLESS, "text": "go", "max_new_tokens": 2_000, "stream": True}
    came: list[float] = []
    with httpx.stream(
        "POST", f"{service.address}/translate", json=body, timeout=TIMEOUT_SECONDS
    ) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                came.append(time.monotonic())
                last = line
    assert last == "event: done"
    assert len(came) > 100
    # Not held back until the end: there are times between the first and the last.
    assert came[len(came) // 2] - came[0] > 0.1 * (came[-1] - came[0]) > 0


def test_a_client_that_goes_away_frees_its_rows(service: RayService) -> None:
    body = {**ENDLESS, "max_new_tokens": LIMIT, "stream": True}
    cancelled = sum(figures(service, "gatehouse_texts_cancelled_total").values())
    with httpx.stream(
        "POST", f"{service.address}/translate", json=body, timeout=TIMEOUT_SECONDS
    ) as answer:
        next(answer.iter_lines())
    wait_for(lambda: sum(figures(service, "gatehouse_rows_running").values()) == 0)
    assert sum(figures(service, "gatehouse_texts_cancelled_total").values()) > cancelled


def test_a_header_brings_a_model_and_the_one_used_longest_ago_leaves(service: RayService) -> None:
    texts: dict[str, str] = {}
    for name in (*ON_DEMAND, *ON_DEMAND):
        answer = service.post("/generate", {**TEXT, "model": name}, headers={MODEL_HEADER: name})
        assert answer.status_code == 200, answer.text
        text = answer.json()["outputs"][0]["text"]
        assert texts.setdefault(name, text) == text
    assert len(set(texts.values())) == 3
    # Of three models two are there: one on each replica.
    loaded = {
        line.partition('model="')[2].partition('"')[0]
        for line in service.get("/metrics").text.splitlines()
        if line.startswith("gatehouse_model_info{")
    }
    assert {"letters", "en-fr"} < loaded
    assert len(loaded & set(ON_DEMAND)) <= 2


def test_models_that_take_turns_under_load_never_miss_a_request(service: RayService) -> None:
    def ask(number: int) -> tuple[int, str]:
        name = ON_DEMAND[number % 3]
        answer = service.post("/generate", {**TEXT, "model": name}, headers={MODEL_HEADER: name})
        return answer.status_code, answer.text[:200]

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, range(24)))
    assert {status for status, _ in answers} == {200}, answers


def test_a_name_that_nobody_knows_is_told_and_drops_no_model(service: RayService) -> None:
    there = service.get("/metrics").text.count("gatehouse_model_info{")
    answer = service.post("/generate", TEXT, headers={MODEL_HEADER: "../letters"})
    assert answer.status_code == 404
    assert answer.json()["code"] == "unknown_model"
    assert service.get("/metrics").text.count("gatehouse_model_info{") == there


def test_a_model_that_a_replica_began_with_needs_no_header_and_bears_one(
    service: RayService,
) -> None:
    answer = service.post("/generate", TEXT, headers={MODEL_HEADER: "letters"})
    assert answer.json()["model"] == "letters"


def _busy_replica(service: RayService) -> str | None:
    running = figures(service, "gatehouse_rows_running")
    return max(running, key=lambda name: running[name]) if any(running.values()) else None


def test_a_replica_that_dies_over_requests_leaves_none_without_an_answer(
    service: RayService,
) -> None:
    """The short form of what tests/deploy/test_ray_faults.py does under load."""
    load = Load(service, clients=4, long_tokens=8_000)
    with load.busy():
        wait_for(lambda: len(load.answers) > 10)
        # One that has a stream on its way, which takes a second or more.
        service.kill_replica(wait_for(lambda: _busy_replica(service)))
        wait_for(lambda: load.lost)
        seen = len(load.answers)
        wait_for(lambda: len(load.answers) > seen + 10)
    load.check_lost_requests_were_told()
    wait_for(lambda: len(figures(service, "gatehouse_ready")) == 2)
