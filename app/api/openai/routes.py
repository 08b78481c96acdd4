"""The endpoints of the OpenAI dialect: text completion over the same service as ``/generate``."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Path, Request
from fastapi.responses import Response

from app.api.access import BODY_PROBLEMS, READING_PROBLEMS, runtime_of
from app.api.body import StrictBodyRoute
from app.api.disconnect import while_connected
from app.api.observation import MODEL_SCOPE_KEY
from app.api.openai.errors import OpenAIError, openai_error
from app.api.openai.examples import COMPLETION_EXAMPLES, COMPLETION_STREAM
from app.api.openai.requests import CompletionBody, own_parameter_names
from app.api.openai.responses import (
    DONE,
    CompletionAnswer,
    CompletionWriter,
    OpenAIModel,
    OpenAIModels,
    encode_openai_error,
)
from app.api.openapi import chunk_stream, described_errors
from app.api.responses import JsonResponse
from app.api.streaming import EventStreamResponse
from app.catalog import GENERATE, Catalog, ServedModel
from app.exceptions import UnknownModelError

openai_errors = partial(described_errors, openai_error, OpenAIError.__name__)
"""Responses of an endpoint of this dialect that may answer with these errors."""

router = APIRouter(route_class=StrictBodyRoute, prefix="/v1", tags=["openai"])


@router.post(
    "/completions",
    summary="Complete texts, as the OpenAI API does",
    response_model=CompletionAnswer,
    responses={
        **chunk_stream(CompletionAnswer, OpenAIError, DONE, COMPLETION_STREAM),
        **openai_errors(*BODY_PROBLEMS, "unknown_model", "unsupported_model"),
    },
)
async def completions(
    request: Request, body: Annotated[CompletionBody, Body(openapi_examples=COMPLETION_EXAMPLES)]
) -> Response:
    """Continue one prompt or a list of prompts."""
    runtime = runtime_of(request)
    service = runtime.service()
    generation = body.to_request(service.limits)
    model = service.catalog.for_generation(body.model)
    request.scope[MODEL_SCOPE_KEY] = model.name
    writer = CompletionWriter(body, model)
    with own_parameter_names():
        if body.stream:
            return EventStreamResponse(
                service.stream_generation(generation),
                writer.encode,
                runtime.settings.stream_keepalive_seconds,
                encode_openai_error,
            )
        result = await while_connected(request.scope, request.receive, service.generate(generation))
    return JsonResponse(writer.answer(result))


@router.get(
    "/models",
    summary="List the models for completions, as the OpenAI API does",
    responses=openai_errors(*READING_PROBLEMS),
)
async def openai_models(request: Request) -> OpenAIModels:
    """Every loaded model that continues texts; translation models are not among them."""
    catalog = runtime_of(request).service().catalog
    models = [OpenAIModel.of(model) for model in _completing(catalog)]
    return OpenAIModels(data=models, object="list")


@router.get(
    "/models/{name}",
    summary="Describe a model for completions, as the OpenAI API does",
    responses=openai_errors("unknown_model", *READING_PROBLEMS),
)
async def openai_model(
    request: Request,
    name: Annotated[str, Path(description="Name of a model that GET /v1/models lists.")],
) -> OpenAIModel:
    """One model that continues texts."""
    models = {model.name: model for model in _completing(runtime_of(request).service().catalog)}
    if name not in models:
        there = ", ".join(models) or "none"
        raise UnknownModelError(f"no such model completes texts; there are: {there}")
    return OpenAIModel.of(models[name])


def _completing(catalog: Catalog) -> list[ServedModel]:
    return [model for model in catalog.models if GENERATE in model.tasks]
