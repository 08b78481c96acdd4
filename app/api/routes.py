"""The endpoints: each checks its body, asks the service, and gives the answer its shape."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Request
from fastapi.responses import RedirectResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api.body import StrictBodyRoute
from app.api.disconnect import while_connected
from app.api.examples import BLEU_EXAMPLES, GENERATE_EXAMPLES, TRANSLATE_EXAMPLES
from app.api.observation import MODEL_SCOPE_KEY
from app.api.openapi import problems
from app.api.requests import BleuBody, GenerateBody, TranslateBody
from app.api.responses import (
    BleuAnswer,
    GenerateAnswer,
    HealthAnswer,
    ModelAnswer,
    ModelsAnswer,
    TranslateAnswer,
)
from app.exceptions import NotReadyError
from app.runtime import Runtime
from app.service.service import Service

router = APIRouter(route_class=StrictBodyRoute)

_BODY_PROBLEMS = (
    "invalid_json",
    "body_too_large",
    "unsupported_media_type",
    "invalid_request",
    "queue_full",
    "internal_error",
    "not_ready",
    "draining",
    "engine_failed",
    "deadline_exceeded",
)


def _runtime(request: Request) -> Runtime:
    runtime = request.app.state.runtime
    assert isinstance(runtime, Runtime)
    return runtime


def _service(runtime: Annotated[Runtime, Depends(_runtime)]) -> Service:
    return runtime.service()


RuntimeDependency = Annotated[Runtime, Depends(_runtime)]
ServiceDependency = Annotated[Service, Depends(_service)]


@router.post(
    "/generate",
    tags=["text"],
    summary="Continue texts with a language model",
    response_model_exclude_unset=True,
    responses=problems(*_BODY_PROBLEMS, "unknown_model", "unsupported_model"),
)
async def generate(
    request: Request,
    service: ServiceDependency,
    body: Annotated[GenerateBody, Body(openapi_examples=GENERATE_EXAMPLES)],
) -> GenerateAnswer:
    """Continue one prompt or a list of prompts: greedy, sampled, or by beam search."""
    generation = body.to_request(service.limits)
    request.scope[MODEL_SCOPE_KEY] = service.catalog.for_generation(body.model).name
    result = await while_connected(request, service.generate(generation))
    return GenerateAnswer.of(result, body.logprobs)


@router.post(
    "/translate",
    tags=["text"],
    summary="Translate texts",
    response_model_exclude_unset=True,
    responses=problems(
        *_BODY_PROBLEMS, "unknown_model", "unknown_language_pair", "unsupported_model"
    ),
)
async def translate(
    request: Request,
    service: ServiceDependency,
    body: Annotated[TranslateBody, Body(openapi_examples=TRANSLATE_EXAMPLES)],
) -> TranslateAnswer:
    """Translate one text or a list of texts, with the n best and alignments where asked for."""
    translation = body.to_request()
    model = service.catalog.for_translation(body.model, body.source, body.target)
    request.scope[MODEL_SCOPE_KEY] = model.name
    result = await while_connected(request, service.translate(translation))
    return TranslateAnswer.of(result, with_hypotheses=body.num_hypotheses is not None)


@router.post(
    "/bleu",
    tags=["text"],
    summary="Score translations",
    response_model_exclude_unset=True,
    responses=problems(
        *_BODY_PROBLEMS, "unknown_model", "unknown_language_pair", "unsupported_model"
    ),
)
async def bleu(
    request: Request,
    service: ServiceDependency,
    body: Annotated[BleuBody, Body(openapi_examples=BLEU_EXAMPLES)],
) -> BleuAnswer:
    """Score given hypotheses, or the served model's translations of given sources."""
    translation, scoring = body.to_translation(), body.to_scoring()
    if translation is None:
        return BleuAnswer.of(await while_connected(request, service.score(scoring)), None)
    model = service.catalog.for_translation(body.model, body.source, body.target)
    request.scope[MODEL_SCOPE_KEY] = model.name
    work = service.translate_and_score(translation, scoring)
    result, scores = await while_connected(request, work)
    return BleuAnswer.of(scores, result)


@router.get(
    "/models",
    tags=["models"],
    summary="List the loaded models",
    responses=problems("not_ready", "draining", "internal_error"),
)
async def models(service: ServiceDependency) -> ModelsAnswer:
    """Every loaded model: what it can do, where it runs, how good it is, whose data it saw."""
    catalog = service.catalog
    return ModelsAnswer(models=[ModelAnswer.of(model, catalog) for model in catalog.models])


@router.get(
    "/models/{name}",
    tags=["models"],
    summary="Describe a loaded model",
    responses=problems("unknown_model", "not_ready", "draining", "internal_error"),
)
async def model(
    service: ServiceDependency,
    name: Annotated[str, Path(description="Name of a model that GET /models lists.")],
) -> ModelAnswer:
    """One loaded model."""
    return ModelAnswer.of(service.catalog.get(name), service.catalog)


@router.get("/health/live", tags=["operation"], summary="Does the process run?")
async def live() -> HealthAnswer:
    """Answers as long as the process runs, whether or not it can serve."""
    return HealthAnswer(status="alive")


@router.get(
    "/health/ready",
    tags=["operation"],
    summary="Can it serve?",
    responses=problems("not_ready", "internal_error"),
)
async def ready(runtime: RuntimeDependency) -> HealthAnswer:
    """Every configured model is loaded, and the engine did a real step a moment ago."""
    reason = runtime.not_ready_because()
    if reason is not None:
        raise NotReadyError(reason)
    return HealthAnswer(status="ready")


@router.get(
    "/metrics",
    tags=["operation"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(runtime: RuntimeDependency) -> Response:
    """All metrics in Prometheus' text format; docs/metrics.md describes them."""
    return Response(
        generate_latest(runtime.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


@router.get("/", include_in_schema=False)
async def root() -> Any:
    """Leads to the documentation of the API."""
    return RedirectResponse("/docs")
