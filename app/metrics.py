"""The service's Prometheus metrics; ``docs/metrics.md`` describes each.

Labels have few values: endpoints, loaded models, error codes. No text, address, key or
unknown model name ever becomes one.
"""

from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.engine.request import EngineStats

# When a counter was made helps nobody here, and would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client has no hint here

_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

NO_MODEL = ""
"""Label of a request that ended before its model was known, or that needs none."""


class Metrics:
    """All metrics of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._declare_requests()
        self._declare_decoding()
        self._declare_models()

    def _declare_requests(self) -> None:
        self.requests = Counter(
            "gatehouse_requests",
            "Requests answered, by endpoint, model and outcome (ok or an error code).",
            ["endpoint", "model", "outcome"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "gatehouse_request_seconds",
            "Time from the first byte of a request's head to the end of its answer.",
            ["endpoint"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.rejected = self._counter(
            "gatehouse_rejected", "Requests turned away, by reason (an error code).", ["reason"]
        )
        self.cancelled = self._counter(
            "gatehouse_cancelled", "Requests given up because the client went away.", ["endpoint"]
        )
        self.expired = self._counter(
            "gatehouse_expired", "Requests that ran into their deadline.", ["endpoint"]
        )

    def _declare_decoding(self) -> None:
        self.queue_seconds = self._per_model(
            "gatehouse_queue_seconds", "Time that a text waited for the engine.", _REQUEST_BUCKETS
        )
        self.first_token_seconds = self._per_model(
            "gatehouse_first_token_seconds",
            "Time from submitting a request's texts to its first token.",
            _REQUEST_BUCKETS,
        )
        self.token_interval_seconds = self._per_model(
            "gatehouse_token_interval_seconds",
            "Time between two tokens of one output; beams, which come whole, do not count.",
            _TOKEN_BUCKETS,
        )
        self.input_tokens = self._counter(
            "gatehouse_input_tokens", "Tokens of accepted prompts and source texts.", ["model"]
        )
        self.output_tokens = self._counter(
            "gatehouse_output_tokens", "Tokens generated for answers.", ["model"]
        )

    def _declare_models(self) -> None:
        self.ready = Gauge(
            "gatehouse_ready",
            "1 when every model is loaded and requests are taken, else 0.",
            registry=self.registry,
        )
        self.model_info = Gauge(
            "gatehouse_model_info",
            "1 for every loaded model; what it is stands in the labels.",
            ["model", "kind", "precision", "device", "fingerprint"],
            registry=self.registry,
        )
        self.model_load_seconds = Gauge(
            "gatehouse_model_load_seconds",
            "Time that loading a model's weights took.",
            ["model"],
            registry=self.registry,
        )

    def watch_engine(self, stats: Callable[[], EngineStats]) -> None:
        """Export the engine's books, read at every scrape."""
        self.registry.register(_EngineCollector(stats))

    def _counter(self, name: str, documentation: str, labels: list[str]) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _per_model(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, documentation, ["model"], buckets=buckets, registry=self.registry)


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        for name, documentation, value in (
            ("gatehouse_queue_depth", "Texts that wait for the engine.", stats.waiting),
            ("gatehouse_texts_running", "Texts being decoded.", stats.running),
            ("gatehouse_rows_running", "Rows of the batch in use.", stats.rows_running),
            ("gatehouse_row_budget", "Rows that can run at once.", stats.row_budget),
            (
                "gatehouse_last_step_age_seconds",
                "Time since the engine last finished a real step.",
                stats.last_step_age_seconds,
            ),
        ):
            yield GaugeMetricFamily(name, documentation, value=value)
        for name, documentation, value in (
            ("gatehouse_texts_accepted", "Texts that the engine accepted.", stats.accepted),
            ("gatehouse_texts_finished", "Texts decoded to their end.", stats.finished),
            ("gatehouse_texts_failed", "Texts that ended with an engine error.", stats.failed),
            (
                "gatehouse_texts_cancelled",
                "Texts whose decoding was stopped: stop string found, client gone, deadline.",
                stats.cancelled,
            ),
        ):
            yield CounterMetricFamily(name, documentation, value=value)
