"""The OpenAPI description: limits from the settings, errors with their codes, live examples."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api.authorization import is_admin, is_open
from app.api.errors import ERROR_KINDS, ErrorShape, FieldError, Problem, ProblemResponse, problem
from app.api.events import ERROR, GENERATE_EVENTS, TRANSLATE_EVENTS
from app.api.examples import PROBLEM_DETAILS, PROBLEM_FIELD_ERRORS
from app.api.libretranslate.errors import LibreTranslateError
from app.api.openai.errors import OpenAIError
from app.catalog import GENERATE
from app.keys import KeyRing
from app.runtime import Runtime
from app.service.service import limits_of
from app.settings import Settings

_SCHEMAS = "#/components/schemas/"
_EVENTS = (*GENERATE_EVENTS.values(), *TRANSLATE_EVENTS.values())
_RETRY_STATUSES = (429, 503)


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Responses of an endpoint that may answer with these errors.

    Args:
        codes: of :data:`app.api.errors.ERROR_KINDS`.
    """
    return described_errors(lambda answer: answer, Problem.__name__, *codes)


def described_errors(
    shape: ErrorShape, schema: str, *codes: str
) -> dict[int | str, dict[str, Any]]:
    """Responses of an endpoint that may answer with these errors in the shape of its dialect.

    Args:
        shape: of the dialect.
        schema: name of what describes it.
        codes: of :data:`app.api.errors.ERROR_KINDS`.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    answers = {code: shape(_example_problem(code)) for code in codes}
    for status in sorted({answer.status_code for answer in answers.values()}):
        told = {code: answers[code] for code in codes if answers[code].status_code == status}
        responses[status] = {
            "description": "; ".join(f"`{code}`: {ERROR_KINDS[code].title}" for code in told),
            "content": {
                str(answer.media_type): {
                    "schema": {"$ref": f"{_SCHEMAS}{schema}"},
                    # Errors as they are really sent: Swagger would make them up of strings.
                    "examples": {
                        code: {"summary": code, "value": json.loads(bytes(answers[code].body))}
                        for code in told
                    },
                }
                for answer in told.values()
            },
        }
        if status in _RETRY_STATUSES:
            responses[status]["headers"] = {
                "Retry-After": {
                    "description": "Seconds after which to try again.",
                    "schema": {"type": "integer"},
                }
            }
    return responses


def of_both(
    one: Mapping[int | str, dict[str, Any]], other: Mapping[int | str, dict[str, Any]]
) -> dict[int | str, dict[str, Any]]:
    """Responses of an endpoint that two dialects share: of each status, the content of both.

    Args:
        one: errors in one dialect, from :func:`described_errors`.
        other: errors in the other.
    """
    merged: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*one, *other}, key=str):
        parts = [responses[status] for responses in (one, other) if status in responses]
        kinds = [kind for part in parts for kind in part["description"].split("; ")]
        merged[status] = {
            **parts[0],
            "description": "; ".join(dict.fromkeys(kinds)),
            "content": {name: each for part in parts for name, each in part["content"].items()},
        }
    return merged


def event_stream(
    events: Mapping[str, type[BaseModel]], example: str
) -> dict[int | str, dict[str, Any]]:
    """The other answer of an endpoint that streams.

    Args:
        events: what each event carries, by its name, the last one's at the end.
        example: a whole stream.
    """
    described: dict[str, type[BaseModel]] = {**events, ERROR: Problem}
    content = {
        # As OpenAPI 3.2 and FastAPI describe each of a stream's events; a `schema` beside it would
        # be that of all events in a list.
        "itemSchema": {
            "description": "With `stream`: server-sent events, each with a JSON object. "
            + "; ".join(f"`{name}`: {data.__name__}" for name, data in described.items()),
            "oneOf": [
                {
                    "type": "object",
                    "properties": {
                        "event": {"const": name},
                        "data": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": {"$ref": f"{_SCHEMAS}{data.__name__}"},
                        },
                    },
                    "required": ["event", "data"],
                    "additionalProperties": False,
                }
                for name, data in described.items()
            ],
        },
        "example": example,
    }
    return {200: {"content": {"text/event-stream": content}}}


def form_too(body: type[BaseModel]) -> dict[str, Any]:
    """Additions to an operation whose body may also come as a form."""
    content = {"schema": {"$ref": f"{_SCHEMAS}{body.__name__}"}}
    forms = ("application/x-www-form-urlencoded", "multipart/form-data")
    return {"requestBody": {"content": dict.fromkeys(forms, content)}}


def chunk_stream(
    chunk: type[BaseModel], error: type[BaseModel], last: str, example: str
) -> dict[int | str, dict[str, Any]]:
    """The other answer of an endpoint that streams as the OpenAI API does.

    Args:
        chunk: what each event carries but the last.
        error: what the last one carries where something went wrong.
        last: what it says otherwise.
        example: a whole stream.
    """
    carried = [{"$ref": f"{_SCHEMAS}{data.__name__}"} for data in (chunk, error)]
    in_json = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"oneOf": carried},
    }
    content = {
        "itemSchema": {
            "description": f"With `stream`: server-sent events, each with a {chunk.__name__}, the "
            f"last with `{last}`, or with an {error.__name__}.",
            "oneOf": [
                {
                    "type": "object",
                    # What the standard calls an event without a name.
                    "properties": {"event": {"const": "message"}, "data": data},
                    "required": ["data"],
                    "additionalProperties": False,
                }
                for data in (in_json, {"const": last})
            ],
        },
        "example": example,
    }
    return {200: {"content": {"text/event-stream": content}}}


def _example_problem(code: str) -> ProblemResponse:
    errors = [FieldError(**PROBLEM_FIELD_ERRORS[code])] if code in PROBLEM_FIELD_ERRORS else []
    return problem(code, PROBLEM_DETAILS[code], errors=errors)


def install_openapi(app: FastAPI, runtime: Runtime) -> None:
    """Have the application describe itself with the limits and models that it really has."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
        )
        _fill_in_limits(schema, _limits_by_name(runtime.settings))
        _replace_fastapi_errors(schema)
        _describe_keys(schema, app.state.keys)
        if runtime.catalog is not None:
            models = runtime.catalog.models
            for path in ("/models/{name}", "/admin/models/{name}/reload"):
                _set_model_example(schema, path, models[0].name)
            for model in models:
                if GENERATE in model.tasks:
                    _set_model_example(schema, "/v1/models/{name}", model.name)
            # Kept only now: before, the models were not known.
            app.openapi_schema = schema
        return schema

    # FastAPI's documented way to change the description is to replace this method.
    setattr(app, "openapi", describe)  # noqa: B010


def _describe_keys(schema: dict[str, Any], keys: KeyRing) -> None:
    """Say where a key is needed, where the service has any."""
    if not len(keys):
        return
    schema["components"]["securitySchemes"] = {
        "ApiKey": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key as `gatehouse keys` makes it.",
        }
    }
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if not is_open(path):
                needed: list[dict[str, list[str]]] = [{"ApiKey": []}]
                free = keys.allows_anonymous and not is_admin(path)
                operation["security"] = [{}, *needed] if free else needed


def _replace_fastapi_errors(schema: dict[str, Any]) -> None:
    """Describe problems where FastAPI describes errors of its own, and what it does not know."""
    for path in schema["paths"].values():
        for operation in path.values():
            described = operation["responses"].get("422", {}).get("content", {})
            if "application/json" in described:
                del operation["responses"]["422"]
    schemas = schema["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    models: tuple[type[BaseModel], ...] = (Problem, OpenAIError, LibreTranslateError, *_EVENTS)
    _, described = models_json_schema(
        [(model, "validation") for model in models], ref_template=f"{_SCHEMAS}{{model}}"
    )
    schemas.update(described["$defs"])


def _limits_by_name(settings: Settings) -> dict[str, Any]:
    """What an ``x-limit`` may name: settings, and what follows from them."""
    of_documents = limits_of(settings).max_document_characters
    return {**settings.model_dump(), "max_document_characters": of_documents}


def _fill_in_limits(node: Any, limits: Mapping[str, Any]) -> None:
    """Replace every ``x-limit`` by the keyword and the value of the limit that it names."""
    if isinstance(node, list):
        for item in node:
            _fill_in_limits(item, limits)
    elif isinstance(node, dict):
        for keyword, limit in node.pop("x-limit", {}).items():
            node[keyword] = limits[limit]
        for item in node.values():
            _fill_in_limits(item, limits)


def _set_model_example(schema: dict[str, Any], path: str, name: str) -> None:
    for operation in schema["paths"][path].values():
        for parameter in operation["parameters"]:
            if parameter["name"] == "name":
                parameter["example"] = name
