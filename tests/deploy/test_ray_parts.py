"""The parts of deploy/ray without a cluster: settings, merged metrics, answers of the proxy."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message, Receive, Scope, Send

from app.exceptions import StartupError, UnknownModelError
from app.keys import read_keys
from app.settings import PROJECT_DIR, Settings
from deploy.ray.proxy import middlewares

pytestmark = pytest.mark.timeout(300)  # importing torch and Ray takes a while on a busy machine

pytest.importorskip("ray.serve", reason="ray is not installed: pip install -e '.[ray]'")

CONFIG = PROJECT_DIR / "deploy" / "ray" / "serve_config.yaml"
START = {"type": "http.response.start", "status": 200}
JSON_HEADER = [(b"content-type", b"application/json")]
TEXT_HEADER = [(b"content-type", b"text/plain")]
EVENTS_HEADER = [(b"content-type", b"text/event-stream; charset=utf-8")]


# ---------------------------------------------------------------- the configuration


def test_the_configuration_is_what_ray_takes_and_names_what_there_is() -> None:
    from ray.serve.schema import ServeDeploySchema

    from deploy.ray import application

    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))
    (app,) = config.applications
    module, _, name = app.import_path.partition(":")
    assert module == application.__name__
    assert callable(getattr(application, name))
    arguments = application.Arguments.model_validate(app.args)
    assert arguments.settings.keys() <= Settings.model_fields.keys()
    (deployment,) = app.deployments
    assert deployment.name == application.DEPLOYMENT
    assert config.http_options.host == "127.0.0.1"


def test_a_replica_has_the_time_that_a_request_and_draining_may_take() -> None:
    from deploy.ray.application import gatehouse

    settings = Settings()
    needed = settings.request_timeout_seconds + settings.drain_timeout_seconds
    assert gatehouse._deployment_config.graceful_shutdown_timeout_s >= needed + 10


def test_threads_are_those_that_ray_counts_less_one() -> None:
    from deploy.ray.application import replica_settings

    for num_cpus, threads in ((0.1, 1), (1, 1), (2, 1), (4, 3)):
        assert replica_settings({"allow_anonymous": True}, num_cpus).num_threads == threads
    assert replica_settings({"num_threads": 7}, 2).num_threads == 7


def test_a_replica_needs_keys_or_the_word_that_it_needs_none() -> None:
    from deploy.ray.application import replica_settings

    with pytest.raises(StartupError):
        read_keys(replica_settings({}, 1))
    read_keys(replica_settings({"allow_anonymous": True}, 1))


def test_a_setting_that_does_not_exist_is_named() -> None:
    from deploy.ray.application import replica_settings

    with pytest.raises(StartupError, match="row_budgets"):
        replica_settings({"row_budgets": 64}, 1)


# ---------------------------------------------------------------- metrics


def test_metrics_of_replicas_are_told_apart_by_a_label_and_lose_nothing() -> None:
    from deploy.ray.metrics import ReplicaMetrics, merged

    given = []
    for number, replica in enumerate(("a", 'b"\\')):
        registry = CollectorRegistry()
        Counter("asked", "How often.", ["model"], registry=registry).labels("x").inc(number + 1)
        Gauge("depth", "How deep.", registry=registry).set(number)
        Histogram("seconds", "How long.", buckets=(1, 2), registry=registry).observe(1.5)
        given.append(ReplicaMetrics(replica, registry).exposition())
    families = {f.name: f for f in text_string_to_metric_families(merged(given).decode())}
    assert families["asked"].type == "counter"
    assert families["seconds"].type == "histogram"
    asked = {
        tuple(sorted(sample.labels.items())): sample.value
        for sample in families["asked"].samples
        if sample.name == "asked_total"
    }
    assert asked == {
        (("model", "x"), ("replica", "a")): 1.0,
        (("model", "x"), ("replica", 'b"\\')): 2.0,
    }
    assert {sample.labels["replica"] for sample in families["depth"].samples} == {"a", 'b"\\'}
    buckets = [s for s in families["seconds"].samples if s.name == "seconds_bucket"]
    assert len(buckets) == 6


# ---------------------------------------------------------------- what the proxy answers


def through_the_proxy(messages: Sequence[Message], path: str = "/generate") -> list[Message]:
    """What a client gets where Ray's proxy sends these messages."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    (middleware,) = middlewares()
    app: Any = middleware.cls(proxy, *middleware.args, **middleware.kwargs)
    asyncio.run(app({"type": "http", "path": path, "headers": []}, receive, send))
    return sent


def body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def problem_in(sent: Sequence[Message]) -> tuple[int, dict[bytes, bytes], Any]:
    start, content = sent
    return start["status"], dict(start["headers"]), json.loads(content["body"])


def test_an_answer_is_passed_on_as_it_comes() -> None:
    for messages in (
        [START | {"headers": JSON_HEADER}, body(b"{}")],
        [START | {"headers": EVENTS_HEADER}, body(b"event", more=True), body(b"")],
        [START | {"headers": TEXT_HEADER}, body(b"metrics")],
        [START | {"status": 503, "headers": JSON_HEADER}, body(b"{}")],
        [START | {"status": 404, "headers": TEXT_HEADER}, body(b"no such path")],
    ):
        assert through_the_proxy(messages) == messages


def test_no_answer_at_all_is_a_problem_that_is_worth_another_try() -> None:
    status, headers, problem = problem_in(through_the_proxy([]))
    assert status == 503
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"retry-after"] == b"1"
    assert problem["code"] == "engine_failed"


def test_a_problem_has_the_shape_of_the_dialect() -> None:
    assert "message" in problem_in(through_the_proxy([], "/v1/completions"))[2]["error"]
    assert isinstance(problem_in(through_the_proxy([], "/detect"))[2]["error"], str)


def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    begun = [START | {"headers": EVENTS_HEADER}, body(b"event: token\n\n", more=True)]
    *passed, last = through_the_proxy(begun)
    assert passed == begun
    assert not last["more_body"]
    name, _, data = last["body"].decode().partition("\ndata: ")
    assert name == "event: error"
    assert json.loads(data)["code"] == "engine_failed"
    chunk = through_the_proxy(begun, "/v1/completions")[-1]["body"].decode()
    assert json.loads(chunk.removeprefix("data: "))["error"]["code"] == "engine_failed"


def test_half_of_another_answer_stays_half() -> None:
    begun = [START | {"headers": JSON_HEADER}, body(b'{"half', more=True)]
    assert through_the_proxy(begun) == begun


def test_rays_refusals_become_problems() -> None:
    refusal = [*TEXT_HEADER, (b"retry-after", b"7")]
    status, headers, problem = problem_in(
        through_the_proxy([START | {"status": 429, "headers": refusal}, body(b"full")])
    )
    assert (status, headers[b"retry-after"], problem["code"]) == (429, b"7", "queue_full")
    status, headers, problem = problem_in(
        through_the_proxy([START | {"status": 503, "headers": TEXT_HEADER}, body(b"gone")])
    )
    assert (status, headers[b"retry-after"], problem["code"]) == (503, b"1", "not_ready")


def test_rays_own_pages_are_left_alone() -> None:
    messages = [START | {"status": 503, "headers": TEXT_HEADER}, body(b"unhealthy")]
    assert through_the_proxy(messages, "/-/healthz") == messages


# ---------------------------------------------------------------- models on demand


@pytest.mark.parametrize(
    ("path", "is_granted", "wanted"),
    [("/generate", True, "amber"), ("/generate", False, ""), ("/health/live", True, "")],
)
def test_nobody_has_a_model_loaded_whom_the_service_would_not_answer(
    monkeypatch: pytest.MonkeyPatch, path: str, is_granted: bool, wanted: str
) -> None:
    from ray import serve

    from app.api.admission import Admission, set_admission
    from app.key_limits import KeyLimits
    from deploy.ray.multiplexing import ModelInHeaderMiddleware

    asked: list[str] = []

    class Models:
        resident = frozenset({"letters"})

        def models_on_demand(self) -> "Models":
            return self

        async def check(self, name: str) -> None:
            asked.append(name)
            raise UnknownModelError("there is none")

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START | {"headers": JSON_HEADER})

    async def send(message: Message) -> None:
        sent.append(message)

    monkeypatch.setattr(serve, "get_multiplexed_model_id", lambda: "amber")
    keys = read_keys(Settings(allow_anonymous=True))
    scope: dict[str, Any] = {"type": "http", "path": path, "headers": []}
    set_admission(scope, Admission(keys, KeyLimits(None, None), is_open=is_granted))
    sent: list[Message] = []
    runtime: Any = Models()
    load: Any = None
    asyncio.run(ModelInHeaderMiddleware(answer, runtime, load)(scope, load, send))
    assert "".join(asked) == wanted
    assert sent[0]["status"] == (404 if wanted else 200)
