"""The endpoints of the LibreTranslate dialect but ``/translate``, which two dialects share."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response
from pydantic import RootModel

from app.api.access import BODY_PROBLEMS, runtime_of
from app.api.body import StrictBodyRoute
from app.api.disconnect import while_connected
from app.api.libretranslate.errors import LibreTranslateError, libretranslate_error
from app.api.libretranslate.examples import DETECT_EXAMPLES
from app.api.libretranslate.requests import DetectBody
from app.api.libretranslate.responses import (
    DefaultLanguages,
    DetectedAnswer,
    LanguageAnswer,
    SettingsAnswer,
    languages_of,
    named,
)
from app.api.openapi import described_errors, form_too
from app.keys import KeyRing

_FRONTEND_TIMEOUT_MILLISECONDS = 500

libretranslate_errors = partial(
    described_errors, libretranslate_error, LibreTranslateError.__name__
)
"""Responses of an endpoint of this dialect that may answer with these errors."""

router = APIRouter(route_class=StrictBodyRoute, tags=["libretranslate"])


@router.post(
    "/detect",
    summary="Detect a text's language, as LibreTranslate does",
    response_model=list[DetectedAnswer],
    responses=libretranslate_errors(*BODY_PROBLEMS),
    openapi_extra=form_too(DetectBody),
)
async def detect(
    request: Request, body: Annotated[DetectBody, Body(openapi_examples=DETECT_EXAMPLES)]
) -> Response:
    """The languages of the loaded models that a text may be in, the likeliest first."""
    service = runtime_of(request).service()
    service.limits.check_document("q", [body.q])
    ranked = await while_connected(request.scope, request.receive, service.detect(body.q))
    answer = RootModel[list[DetectedAnswer]]([DetectedAnswer.of(each) for each in ranked])
    return Response(answer.model_dump_json(), media_type="application/json")


@router.get(
    "/languages",
    summary="List the languages, as LibreTranslate does",
    responses=libretranslate_errors("not_ready", "draining", "internal_error"),
)
async def languages(request: Request) -> list[LanguageAnswer]:
    """Every language that a loaded model reads or writes, and what it is translated to."""
    return languages_of(runtime_of(request).service().catalog)


@router.get(
    "/frontend/settings",
    summary="What a web page needs to know, as in LibreTranslate",
    responses=libretranslate_errors("unknown_model", "not_ready", "draining", "internal_error"),
)
async def frontend_settings(request: Request) -> SettingsAnswer:
    """Limits, the default languages, and what there is not."""
    service = runtime_of(request).service()
    keys: KeyRing = request.app.state.keys
    model = service.catalog.for_translation(None, None, None)
    source, target = model.languages or ("", "")
    return SettingsAnswer(
        api_keys=len(keys) > 0,
        char_limit=service.limits.max_document_characters,
        files_translation=False,
        frontend_timeout=_FRONTEND_TIMEOUT_MILLISECONDS,
        key_required=not keys.allows_anonymous,
        language=DefaultLanguages(source=named(source), target=named(target)),
        suggestions=False,
        supported_files_format=[],
    )
