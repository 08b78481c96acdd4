"""``/metrics`` of all replicas in one answer: behind Ray's proxy nobody can ask for one of them."""

from collections.abc import Iterable, Sequence

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from ray import serve
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.api.errors import problem_of
from app.exceptions import NotReadyError

REPLICA_LABEL = "replica"

_TIMEOUT_SECONDS = 5.0


class ReplicaMetrics:
    """The metrics of one replica.

    Args:
        replica: its name.
        registry: its metrics.
    """

    def __init__(self, replica: str, registry: CollectorRegistry) -> None:
        self.replica = replica
        self._registry = registry

    def exposition(self) -> tuple[str, str]:
        """The replica's name and its metrics in Prometheus' text format."""
        return self.replica, generate_latest(self._registry).decode()


def serve_metrics_of_all(app: FastAPI) -> None:
    """Have ``/metrics`` answer for all replicas of the deployment that the app is a replica of."""
    context = serve.get_replica_context()

    async def metrics(request: Request) -> Response:
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        try:
            found = await handle.broadcast("exposition").results_async(
                timeout_s=_TIMEOUT_SECONDS, return_exceptions=True
            )
        except TimeoutError:
            return problem_of(NotReadyError("a replica did not tell its metrics in time"))
        # One that died meanwhile is not there any more.
        there = [answer for answer in found if not isinstance(answer, BaseException)]
        return Response(merged(there), headers={"Content-Type": CONTENT_TYPE_LATEST})

    # In the place of the route that knows one replica; keys are asked for before either.
    app.router.routes.insert(0, Route("/metrics", metrics))


def merged(expositions: Sequence[tuple[str, str]]) -> bytes:
    """The metrics of several replicas in one text, with a label that tells them apart.

    Args:
        expositions: name and metrics of each.
    """
    registry = CollectorRegistry()
    registry.register(_Replicas(expositions))
    return generate_latest(registry)


class _Replicas(Collector):
    def __init__(self, expositions: Sequence[tuple[str, str]]) -> None:
        self._expositions = expositions

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self._expositions:
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, REPLICA_LABEL: replica}
                    merged.add_sample(sample.name, labels, sample.value)
        return families.values()
