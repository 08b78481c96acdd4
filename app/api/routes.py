"""The endpoints: each checks its body, asks the service, and gives the answer its shape."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api.access import BODY_PROBLEMS, READING_PROBLEMS, STATE_PROBLEMS, runtime_of
from app.api.bleu_request import BleuBody
from app.api.body import StrictBodyRoute
from app.api.disconnect import while_connected
from app.api.events import (
    GENERATE_EVENTS,
    TRANSLATE_EVENTS,
    encode_generation,
    encode_translation,
)
from app.api.examples import (
    BLEU_EXAMPLES,
    GENERATE_EXAMPLES,
    GENERATE_STREAM,
    TRANSLATE_EXAMPLES,
    TRANSLATE_STREAM,
)
from app.api.libretranslate.examples import LIBRETRANSLATE_EXAMPLES
from app.api.libretranslate.requests import LibreTranslateBody
from app.api.libretranslate.responses import LibreTranslateAnswer
from app.api.libretranslate.routes import libretranslate_errors
from app.api.libretranslate.translation import answer_libretranslate
from app.api.model_answers import ModelAnswer, ModelsAnswer
from app.api.observation import MODEL_SCOPE_KEY
from app.api.openapi import event_stream, form_too, of_both, problems
from app.api.page import PAGE_FILE, PageFiles
from app.api.requests import GenerateBody, TranslateBody
from app.api.responses import (
    BleuAnswer,
    GenerateAnswer,
    HealthAnswer,
    JsonResponse,
    TranslateAnswer,
)
from app.api.streaming import EventStreamResponse
from app.exceptions import NotReadyError

_TRANSLATE_PROBLEMS = (
    *BODY_PROBLEMS,
    "unknown_model",
    "unknown_language_pair",
    "unsupported_model",
)

router = APIRouter(route_class=StrictBodyRoute)


@router.post(
    "/generate",
    tags=["text"],
    summary="Continue texts with a language model",
    response_model=GenerateAnswer,
    responses={
        **event_stream(GENERATE_EVENTS, GENERATE_STREAM),
        **problems(*BODY_PROBLEMS, "unknown_model", "unsupported_model", *STATE_PROBLEMS),
    },
)
async def generate(
    request: Request, body: Annotated[GenerateBody, Body(openapi_examples=GENERATE_EXAMPLES)]
) -> Response:
    """Continue one prompt or a list of prompts: greedy, sampled, or by beam search."""
    runtime = runtime_of(request)
    service = runtime.service()
    generation = body.to_request(service.limits)
    request.scope[MODEL_SCOPE_KEY] = service.catalog.for_generation(body.model).name
    if body.stream:
        stream = service.stream_generation(generation)
        keepalive_seconds = runtime.settings.stream_keepalive_seconds
        return EventStreamResponse(stream, encode_generation, keepalive_seconds)
    result = await while_connected(request.scope, request.receive, service.generate(generation))
    return JsonResponse(GenerateAnswer.of(result))


@router.post(
    "/translate",
    tags=["text"],
    summary="Translate texts",
    response_model=TranslateAnswer | LibreTranslateAnswer,
    openapi_extra=form_too(LibreTranslateBody),
    responses={
        **event_stream(TRANSLATE_EVENTS, TRANSLATE_STREAM),
        **of_both(problems(*_TRANSLATE_PROBLEMS), libretranslate_errors(*_TRANSLATE_PROBLEMS)),
    },
)
async def translate(
    request: Request,
    body: Annotated[
        TranslateBody | LibreTranslateBody,
        Body(openapi_examples={**TRANSLATE_EXAMPLES, **LIBRETRANSLATE_EXAMPLES}),
    ],
) -> Response:
    """Translate one text or a list of texts, with the n best and alignments where asked for.

    A body with `q` is LibreTranslate's, and is answered as that does, errors included.
    """
    runtime = runtime_of(request)
    service = runtime.service()
    if isinstance(body, LibreTranslateBody):
        return JsonResponse(await answer_libretranslate(request, service, body))
    translation = body.to_request()
    model = service.catalog.for_translation(body.model, body.source, body.target)
    request.scope[MODEL_SCOPE_KEY] = model.name
    if body.stream:
        opening = service.stream_translation(translation)
        stream = await while_connected(request.scope, request.receive, opening)
        keepalive_seconds = runtime.settings.stream_keepalive_seconds
        return EventStreamResponse(stream, encode_translation, keepalive_seconds)
    result = await while_connected(request.scope, request.receive, service.translate(translation))
    return JsonResponse(TranslateAnswer.of(result, with_hypotheses=body.num_hypotheses is not None))


@router.post(
    "/bleu",
    tags=["text"],
    summary="Score translations",
    response_model=BleuAnswer,
    responses=problems(*_TRANSLATE_PROBLEMS),
)
async def bleu(
    request: Request, body: Annotated[BleuBody, Body(openapi_examples=BLEU_EXAMPLES)]
) -> Response:
    """Score given hypotheses, or the served model's translations of given sources."""
    service = runtime_of(request).service()
    translation, scoring = body.to_translation(), body.to_scoring()
    if translation is None:
        scores = await while_connected(request.scope, request.receive, service.score(scoring))
        return JsonResponse(BleuAnswer.of(scores, None))
    model = service.catalog.for_translation(body.model, body.source, body.target)
    request.scope[MODEL_SCOPE_KEY] = model.name
    work = service.translate_and_score(translation, scoring)
    result, scores = await while_connected(request.scope, request.receive, work)
    return JsonResponse(BleuAnswer.of(scores, result))


@router.get(
    "/models",
    tags=["models"],
    summary="List the loaded models",
    responses=problems(*READING_PROBLEMS),
)
async def models(request: Request) -> ModelsAnswer:
    """Every loaded model: what it can do, where it runs, how good it is, whose data it saw."""
    catalog = runtime_of(request).service().catalog
    return ModelsAnswer(models=[ModelAnswer.of(model, catalog) for model in catalog.models])


@router.get(
    "/models/{name}",
    tags=["models"],
    summary="Describe a loaded model",
    responses=problems("unknown_model", *READING_PROBLEMS),
)
async def model(
    request: Request,
    name: Annotated[str, Path(description="Name of a model that GET /models lists.")],
) -> ModelAnswer:
    """One loaded model."""
    catalog = runtime_of(request).service().catalog
    return ModelAnswer.of(catalog.get(name), catalog)


@router.get("/health/live", tags=["operation"], summary="Is the process running?")
async def live() -> HealthAnswer:
    """Answers as long as the process runs, whether or not it can serve."""
    return HealthAnswer(status="alive")


@router.get(
    "/health/ready",
    tags=["operation"],
    summary="Can it serve?",
    responses=problems("not_ready", "internal_error"),
)
async def ready(request: Request) -> HealthAnswer:
    """Every configured model is loaded, and the engine did a real step a moment ago."""
    reason = runtime_of(request).not_ready_because()
    if reason is not None:
        raise NotReadyError(reason)
    return HealthAnswer(status="ready")


@router.get(
    "/metrics",
    tags=["operation"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems("missing_api_key", "invalid_api_key"),
    },
)
async def metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format; docs/metrics.md describes them."""
    text = generate_latest(runtime_of(request).metrics.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


page_files = PageFiles()


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """The page to try the service on."""
    return await page_files.get_response(PAGE_FILE, request.scope)
