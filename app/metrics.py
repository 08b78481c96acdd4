"""The service's Prometheus metrics; ``docs/metrics.md`` describes each.

Labels have few values: endpoints, loaded models, error codes. No text, address, key or
unknown model name ever becomes one.
"""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.catalog import ServedModel
from app.engine.request import EngineStats, StepReport

# When a counter was made helps nobody here, and would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client has no hint here

_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_STEP_BUCKETS = (0.0001, 0.00025, *_TOKEN_BUCKETS)
_ROW_BUCKETS = tuple(float(2**power) for power in range(13))

NO_MODEL = ""
"""Label of a request that ended before its model was known, or that needs none."""


class Metrics:
    """All metrics of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._declare_requests()
        self._declare_decoding()
        self._declare_steps()
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
            "Time from a request's head to the end of its answer, whatever the outcome.",
            ["endpoint"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.rejected = self._counter(
            "gatehouse_rejected", "Requests turned away, by reason (an error code).", ["reason"]
        )
        self.cancelled = self._counter(
            "gatehouse_cancelled",
            "Requests given up because the client disconnected.",
            ["endpoint"],
        )
        self.expired = self._counter(
            "gatehouse_expired", "Requests that exceeded their deadline.", ["endpoint"]
        )

    def _declare_decoding(self) -> None:
        self.queue_seconds = self._per_model(
            "gatehouse_queue_seconds",
            "Time that a text waited for the engine, of requests that were answered.",
            _REQUEST_BUCKETS,
        )
        self.first_token_seconds = self._per_model(
            "gatehouse_first_token_seconds",
            "Time from submitting a request's texts to its first token.",
            _REQUEST_BUCKETS,
        )
        self.token_interval_seconds = self._per_model(
            "gatehouse_token_interval_seconds",
            "Time between two tokens of one output; beams, whose tokens arrive all at once, do "
            "not count.",
            _TOKEN_BUCKETS,
        )
        self.input_tokens = self._counter(
            "gatehouse_input_tokens", "Tokens of accepted prompts and source texts.", ["model"]
        )
        self.output_tokens = self._counter(
            "gatehouse_output_tokens", "Tokens generated for answers.", ["model"]
        )

    def _declare_steps(self) -> None:
        self.step_rows = self._per_model(
            "gatehouse_step_rows", "Rows that one step advanced by a token.", _ROW_BUCKETS
        )
        self.step_seconds = self._per_model(
            "gatehouse_step_seconds",
            "Time of one step, including the prompts and sources that it read.",
            _STEP_BUCKETS,
        )
        self.positions_read = self._counter(
            "gatehouse_positions_read",
            "Positions of prompts and sources that were read; none of them is padding.",
            ["model"],
        )
        self.positions_attended = self._counter(
            "gatehouse_positions_attended",
            "Source positions to which attention was applied, including padding.",
            ["model"],
        )
        self.padding_attended = self._counter(
            "gatehouse_padding_attended",
            "Padding positions on which attention was wasted.",
            ["model"],
        )

        self.prefix_hits = self._counter(
            "gatehouse_prefix_hits",
            "Prompts for which the state of a beginning was still known.",
            ["model"],
        )
        self.prefix_misses = self._counter(
            "gatehouse_prefix_misses",
            "Prompts that were looked up and for which no beginning was known.",
            ["model"],
        )
        self.prefix_positions = self._counter(
            "gatehouse_prefix_positions",
            "Positions of prompts that did not have to be read, because their state was still "
            "known.",
            ["model"],
        )

    def _declare_models(self) -> None:
        self.ready = Gauge(
            "gatehouse_ready",
            "1 if every model is loaded and requests are accepted, else 0.",
            registry=self.registry,
        )
        self.model_info = Gauge(
            "gatehouse_model_info",
            "1 for every loaded model; the labels describe it.",
            ["model", "kind", "precision", "device", "fingerprint"],
            registry=self.registry,
        )
        self.model_load_seconds = Gauge(
            "gatehouse_model_load_seconds",
            "How long loading a model's weights took.",
            ["model"],
            registry=self.registry,
        )

        self.model_reloads = self._counter(
            "gatehouse_model_reloads",
            "Reloads of a model, by outcome: changed, unchanged or failed.",
            ["model", "outcome"],
        )

    def describe_model(self, model: ServedModel) -> None:
        """Export what a loaded model is."""
        self.model_info.labels(*_identity(model)).set(1)
        self.model_load_seconds.labels(model.name).set(model.load_seconds)

    def forget_model(self, model: ServedModel) -> None:
        """Take back what a model that was replaced is; its counters go on."""
        self.model_info.remove(*_identity(model))

    def watch_engine(self, stats: Callable[[], EngineStats]) -> None:
        """Export the engine's books, read at every scrape."""
        self.registry.register(_EngineCollector(stats))

    def observe_steps(self, steps: Sequence[StepReport]) -> None:
        """Count what the engine's steps did."""
        for step in steps:
            if step.rows:
                self.step_rows.labels(step.model).observe(step.rows)
            self.step_seconds.labels(step.model).observe(step.seconds)
            self.positions_read.labels(step.model).inc(step.positions_read)
            self.positions_attended.labels(step.model).inc(step.positions_attended)
            self.padding_attended.labels(step.model).inc(step.padding_attended)
            self.prefix_hits.labels(step.model).inc(step.prefix_hits)
            self.prefix_misses.labels(step.model).inc(step.prefix_misses)
            self.prefix_positions.labels(step.model).inc(step.prefix_positions)

    def _counter(self, name: str, documentation: str, labels: list[str]) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _per_model(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, documentation, ["model"], buckets=buckets, registry=self.registry)


def _identity(model: ServedModel) -> tuple[str, ...]:
    """Values of the labels of ``gatehouse_model_info``."""
    kind, fingerprint = model.info.config.kind, model.info.fingerprint
    return model.name, kind, model.precision, model.device, fingerprint


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        for name, documentation, value in (
            ("gatehouse_queue_depth", "Texts waiting for the engine.", stats.waiting),
            ("gatehouse_texts_running", "Texts being decoded.", stats.running),
            ("gatehouse_row_budget", "Rows that one model can use at once.", stats.row_budget),
            (
                "gatehouse_last_step_age_seconds",
                "Time since the engine last finished a real step.",
                stats.last_step_age_seconds,
            ),
        ):
            yield GaugeMetricFamily(name, documentation, value=value)
        rows = GaugeMetricFamily("gatehouse_rows_running", "Rows in use.", labels=["model"])
        for model, running in stats.rows_running.items():
            rows.add_metric([model], running)
        yield rows
        for name, documentation, value in (
            ("gatehouse_texts_accepted", "Texts that the engine accepted.", stats.accepted),
            ("gatehouse_texts_finished", "Texts decoded to the end.", stats.finished),
            ("gatehouse_texts_failed", "Texts that ended with an engine error.", stats.failed),
            (
                "gatehouse_texts_cancelled",
                "Texts whose decoding was stopped: stop string found, client disconnected, "
                "deadline.",
                stats.cancelled,
            ),
            (
                "gatehouse_engine_restarts",
                "Number of times that the engine was restarted after it had died.",
                stats.restarts,
            ),
        ):
            yield CounterMetricFamily(name, documentation, value=value)
