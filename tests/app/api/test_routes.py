"""Models, health and the books, as a client sees them."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from app.engine.loading import LoadedEngine, load_engine
from app.engine.spec import EngineSpec
from app.main import create_app
from app.runtime import Runtime
from tests.app.conftest import make_settings, wait_until_ready

StartService = Callable[..., TestClient]


def sample(client: TestClient, name: str, **labels: str) -> float:
    """Sum of a metric's samples that have these labels."""
    return sum(
        s.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for s in family.samples
        if s.name == name and labels.items() <= s.labels.items()
    )


def test_models_say_what_they_are(client: TestClient) -> None:
    models = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert list(models) == ["both-ways", "en-fr", "en-fr-small", "fr-en-plain", "letters"]
    letters = models["letters"]
    assert letters == client.get("/models/letters").json()
    assert letters["kind"] == "language_model"
    assert (letters["tasks"], letters["default_for"]) == (["generate"], ["generate"])
    assert letters["vocabulary_size"] == 63
    assert (letters["source_vocabulary_size"], letters["languages"]) == (None, None)
    assert (letters["device"], letters["precision"]) == ("cpu", "int8")
    assert letters["quality"] == {"metrics": {"perplexity": 60.0}, "note": "random weights"}
    assert (letters["licence"], letters["attribution"]) == ("CC0-1.0", "Nobody")
    assert len(letters["fingerprint"]) == 64
    assert models["both-ways"]["tasks"] == []
    assert models["en-fr"]["languages"] == {"source": "en", "target": "fr"}
    assert models["en-fr"]["source_vocabulary_size"] > 4
    problem = client.get("/models/nope").json()
    assert problem["code"] == "unknown_model"


def test_bleu_of_sources_translates_first(client: TestClient) -> None:
    sources = ["I am cold .", "", "go"]
    translated = client.post("/translate", json={"text": sources}).json()
    hypotheses = [translation["text"] for translation in translated["translations"]]
    answer = client.post("/bleu", json={"sources": sources, "references": sources}).json()
    assert answer["hypotheses"] == hypotheses
    assert (answer["model"], answer["source"], answer["target"]) == ("en-fr", "en", "fr")
    assert answer["usage"] == translated["usage"]
    direct = client.post("/bleu", json={"hypotheses": hypotheses, "references": sources}).json()
    assert answer["scores"] == direct["scores"]
    assert set(direct) == {"scores"}


def test_bleu_gives_what_was_asked_for(client: TestClient) -> None:
    body = {
        "hypotheses": ["the cat sat on the mat"],
        "references": ["the cat sat on the mat"],
        "metrics": ["textbook_bleu", "ter", "chrf", "bleu"],
        "sentence_level": True,
    }
    scores = client.post("/bleu", json=body).json()["scores"]
    assert set(scores) == {"bleu", "chrf", "ter", "textbook_bleu"}
    assert scores["textbook_bleu"] == {"score": 1.0, "sentences": [1.0]}
    assert scores["ter"]["score"] == 0
    assert (scores["ter"]["edits"], scores["ter"]["reference_length"]) == (0, 6)
    assert scores["bleu"]["hypothesis_length"] == scores["bleu"]["reference_length"] == 6
    assert "sentences" not in client.post("/bleu", json={**body, "sentence_level": False}).text


class SlowLoader:
    """Loads the models when a test lets it go on."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()

    def __call__(self, spec: EngineSpec) -> LoadedEngine:
        self.may_go_on.wait(10)
        return load_engine(spec)


def test_the_process_lives_while_models_load(
    start_service: StartService, checkpoints_dir: Path
) -> None:
    slow = SlowLoader()
    runtime = Runtime(make_settings(checkpoints_dir), engine_loader=slow)
    client = start_service(runtime=runtime, ready=False)
    assert client.get("/health/live").json() == {"status": "alive"}
    for response in (
        client.get("/health/ready"),
        client.get("/models"),
        client.post("/generate", json={"prompt": "a"}),
    ):
        assert response.status_code == 503
        assert response.json()["code"] == "not_ready"
        assert response.headers["retry-after"] == "1"
    assert client.get("/openapi.json").status_code == 200
    assert sample(client, "gatehouse_ready") == 0
    assert sample(client, "gatehouse_rejected_total", reason="not_ready") == 1
    slow.may_go_on.set()
    wait_until_ready(client)
    assert sample(client, "gatehouse_ready") == 1
    assert client.get("/openapi.json").json()["paths"]["/models/{name}"]["get"]["parameters"][0][
        "example"
    ]


class StuckRuntime(Runtime):
    """Loaded, with an engine that does not move."""

    def not_ready_because(self) -> str | None:
        return "the engine's last step is 3600 seconds ago"


def test_readiness_says_what_is_missing(checkpoints_dir: Path) -> None:
    client = TestClient(create_app(runtime=StuckRuntime(make_settings(checkpoints_dir))))
    response = client.get("/health/ready")
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert response.json()["detail"] == "the engine's last step is 3600 seconds ago"
    assert response.headers["retry-after"] == "1"
    assert client.get("/health/live").status_code == 200


def test_a_full_queue_and_a_deadline(start_service: StartService) -> None:
    client = start_service(
        queue_capacity=2,
        row_budget=16,
        max_texts_per_request=2,
        request_timeout_seconds=5,  # in which the others must have asked
        max_new_tokens_limit=1_000_000,
        max_characters_per_text=1_000,
    )
    answers: list[Any] = []
    # Word models of random weights seldom end, and longest words keep the engine busy for long.
    body = {"text": ["go", "we lost"], "beam_size": 16, "max_new_tokens": 1_000_000}

    def post() -> None:
        answers.append(client.post("/translate", json=body))

    first = threading.Thread(target=post)
    first.start()
    while sample(client, "gatehouse_texts_running") == 0:
        time.sleep(0.001)
    # One of its texts runs, the other waits: there is room for one more, not for two.
    for _ in range(2):
        post()
    first.join()
    codes = sorted(answer.json().get("code", "ok") for answer in answers)
    assert codes == ["deadline_exceeded", "queue_full", "queue_full"]
    full = next(answer for answer in answers if answer.status_code == 429)
    assert int(full.headers["retry-after"]) >= 1
    assert sample(client, "gatehouse_expired_total", endpoint="translate") == 1
    assert sample(client, "gatehouse_rejected_total", reason="queue_full") == 2


def test_outcomes_are_counted_and_unknown_models_are_no_labels(start_service: StartService) -> None:
    client = start_service()
    client.post("/generate", json={"prompt": "a", "max_new_tokens": 3, "temperature": 0})
    client.post("/generate", json={"prompt": "a", "model": "Xyzzy"})
    client.post("/bleu", json={"hypotheses": ["a"], "references": ["a"]})

    def count(endpoint: str, model: str, outcome: str) -> float:
        labels = {"endpoint": endpoint, "model": model, "outcome": outcome}
        return sample(client, "gatehouse_requests_total", **labels)

    assert count("generate", "letters", "ok") == 1
    assert count("generate", "", "unknown_model") == 1
    assert count("bleu", "", "ok") == 1
    assert sample(client, "gatehouse_request_seconds_count", endpoint="generate") == 2
    assert sample(client, "gatehouse_output_tokens_total", model="letters") == 3
    # Outputs that are decoded apart read their prompt once, as the client is told.
    body = {"prompt": "a b", "n": 3, "stop": "Xyzzy", "max_new_tokens": 2, "temperature": 1}
    before = sample(client, "gatehouse_input_tokens_total", model="letters")
    usage = client.post("/generate", json=body).json()["usage"]
    after = sample(client, "gatehouse_input_tokens_total", model="letters")
    assert after - before == usage["input_tokens"]
    assert sample(client, "gatehouse_model_info", model="letters", device="cpu") == 1
    assert "Xyzzy" not in client.get("/metrics").text


def test_the_engines_books_are_exported_and_add_up(start_service: StartService) -> None:
    client = start_service()
    for _ in range(3):
        client.post("/translate", json={"text": ["go", "we lost"]})
    accepted = sample(client, "gatehouse_texts_accepted_total")
    assert accepted == 6
    assert accepted == sum(
        sample(client, f"gatehouse_texts_{name}")
        for name in ("finished_total", "failed_total", "cancelled_total", "running")
    ) + sample(client, "gatehouse_queue_depth")
