"""Gatehouse as a Ray Serve application: each replica is one Gatehouse with its engine.

Ray places the replicas, shares the requests out, scales, and replaces what dies; nothing of that
is done here. What is here tells Ray how a Gatehouse is started, whether it is well, and how it
ends. ``serve run deploy/ray/serve_config.yaml`` runs it.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import get_runtime_context, serve
from ray.serve.config import BackpressureConfig
from starlette.middleware import Middleware

from app.exceptions import NotReadyError, StartupError
from app.garbage import freeze_heap
from app.logs import configure_logging, resolve_format
from app.main import create_app
from app.runtime import Runtime
from app.settings import Settings, load_settings
from deploy.ray.metrics import ReplicaMetrics, serve_metrics_of_all
from deploy.ray.multiplexing import LoadModel, ModelInHeaderMiddleware, multiplexed
from deploy.ray.replica_headers import ReplicaHeadersMiddleware

DEPLOYMENT = "gatehouse"
"""Name of the one deployment, which the configuration's ``deployments`` refers to."""

_ALL_ADDRESSES = "0.0.0.0"


class Arguments(BaseModel):
    """The application's ``args``.

    Attributes:
        settings: of every replica, by their names in :class:`app.settings.Settings`; they go
            before the environment of its node.
        models_per_replica: most models that a replica loads on demand, beside those that it
            begins with; 0: none.
    """

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any] = Field(default_factory=dict)
    models_per_replica: int = Field(0, ge=0)


class Replica:
    """One replica.

    Args:
        given: settings that go before the environment's.
        models_per_replica: see :class:`Arguments`.

    Raises:
        StartupError: a setting is unknown or refused, or an API key cannot be read.
    """

    def __init__(self, given: dict[str, Any], models_per_replica: int = 0) -> None:
        settings = replica_settings(given, num_cpus=_assigned_cpus())
        configure_logging(settings.log_level, resolve_format(settings.log_format))
        if settings.engine == "inline":
            # An engine on a thread would import PyTorch while Ray counts the seconds until the
            # replica is well.
            import app.engine.loading  # noqa: F401
        self._runtime = Runtime(settings, on_loaded=freeze_heap)
        # Ray looks for it here, and then tells its proxies which replica has which model.
        self._load_model: LoadModel | None = None
        if models_per_replica:
            self._load_model = multiplexed(self._runtime, models_per_replica)
        context = serve.get_replica_context()
        self._metrics = ReplicaMetrics(context.replica_id.unique_id, self._runtime.metrics.registry)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray once, before the lifespan begins and the models are loaded."""
        app = create_app(runtime=self._runtime)
        if self._load_model is not None:
            # Behind the keys and the limits of create_app, and in front of its innermost: that
            # is DirectMiddleware, which calls endpoints.
            app.user_middleware.insert(
                -1,
                Middleware(ModelInHeaderMiddleware, runtime=self._runtime, load=self._load_model),
            )
        serve_metrics_of_all(app)
        app.add_middleware(ReplicaHeadersMiddleware, replica=self._metrics.replica)
        return app

    async def check_health(self) -> None:
        """Called by Ray before the replica gets its first request, and then again and again.

        Raises:
            StartupError: the models could not be loaded.
            NotReadyError: the engine does not answer.
        """
        await self._runtime.wait_until_loaded()
        if (reason := self._runtime.not_ready_because()) is not None:
            raise NotReadyError(reason)

    async def exposition(self) -> tuple[str, str]:
        """This replica's name and its metrics, for whichever replica is asked for all of them."""
        return self._metrics.exposition()


# What a Gatehouse needs whatever it runs on; serve_config.yaml has what depends on the machines.
gatehouse = serve.deployment(
    name=DEPLOYMENT,
    # The engine decodes many requests together, and has a queue of its own. A replica that is
    # given a few at a time, as is Ray's default, has nothing to put into one batch.
    max_ongoing_requests=256,
    # Of each proxy, when all replicas have as many as they take. Then clients are refused at
    # once, as Gatehouse itself does it.
    max_queued_requests=256,
    backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
    # A replica that is to go takes no more requests, and has as long as a request may take
    # (request_timeout_seconds), and then as long as draining may (drain_timeout_seconds).
    graceful_shutdown_timeout_s=100,
    graceful_shutdown_wait_loop_s=0.5,
    # Three failures in a row replace a replica: an engine that died may come back before.
    health_check_period_s=10,
    health_check_timeout_s=30,
    # New replicas are ready before old ones go.
    max_surge_percent=100,
)(serve.ingress()(Replica))


def build(arguments: Arguments) -> serve.Application:
    """The application; ``import_path`` of the configuration names this."""
    return gatehouse.bind(arguments.settings, arguments.models_per_replica)


def replica_settings(given: dict[str, Any], num_cpus: float) -> Settings:
    """The settings of a replica.

    Args:
        given: settings that go before the environment's.
        num_cpus: processors that Ray counts for the replica.

    Raises:
        StartupError: a setting is unknown or refused.
    """
    unknown = sorted(given.keys() - Settings.model_fields.keys())
    if unknown:
        raise StartupError(f"args.settings has no {', '.join(unknown)}; docs/settings.md has all")
    # Ray's proxy listens, perhaps for everybody: without keys, that must be asked for by name.
    settings = load_settings(env_file=None, **{"host": _ALL_ADDRESSES, **given})
    if settings.num_threads is not None:
        return settings
    # Several replicas may share a machine, so that its cores say nothing. One is for HTTP.
    return settings.model_copy(update={"num_threads": max(1, int(num_cpus) - 1)})


def _assigned_cpus() -> float:
    return float(get_runtime_context().get_assigned_resources().get("CPU", 1))
