"""Exceptions to ``application/problem+json`` (RFC 9457): the one place that knows HTTP statuses.

Another dialect of the API gives the same problems the shape that its clients read.

No answer repeats what the client sent, and an unexpected exception's details stay in the log.
"""

import http
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.api.body import shown_field
from app.api.disconnect import ClientGoneError
from app.api.fields import UNION_TAGS
from app.api.scope import ERROR_SHAPE_SCOPE_KEY
from app.exceptions import (
    GatehouseError,
    InvalidRequestError,
    QueueFullError,
    RateLimitError,
    StateTokenError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
OUTCOME_SCOPE_KEY = "gatehouse.outcome"
"""Where the error's code is left for whoever counts outcomes."""
CANCELLED = "cancelled"
"""What is left there when the client went away: nobody is there to be told an error."""

_DEFAULT_RETRY_AFTER_SECONDS = 1
_UNAUTHORIZED = 401
_CLIENT_CLOSED_REQUEST = 499  # nginx's status; nobody is there to read it
_MAX_FIELD_ERRORS = 20
_UNEXPECTED = "an unexpected error happened; the log has the details"


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """What every error of one code has in common."""

    code: str
    status: int
    title: str


ERROR_KINDS = {
    kind.code: kind
    for kind in (
        ErrorKind("invalid_json", 400, "The body is not valid JSON"),
        ErrorKind("missing_api_key", 401, "An API key is needed"),
        ErrorKind("invalid_api_key", 401, "The API key is not known here"),
        ErrorKind("admin_key_required", 403, "This needs an admin key"),
        ErrorKind("admin_disabled", 403, "The service has no admin key"),
        ErrorKind("not_found", 404, "There is no such page"),
        ErrorKind("unknown_model", 404, "No such model is loaded"),
        ErrorKind("method_not_allowed", 405, "The page does not take this method"),
        ErrorKind("request_timeout", 408, "The request did not arrive in time"),
        ErrorKind("reload_failed", 409, "The model cannot be replaced"),
        ErrorKind("body_too_large", 413, "The body is too large"),
        ErrorKind("unsupported_media_type", 415, "The body is not declared as JSON"),
        ErrorKind("invalid_request", 422, "The request breaks a rule"),
        ErrorKind("unknown_language_pair", 422, "No model translates this language pair"),
        ErrorKind("unsupported_model", 422, "The model cannot do this"),
        ErrorKind("state_cut", 422, "The state is not whole"),
        ErrorKind("state_forged", 422, "The state was altered or signed with another key"),
        ErrorKind("state_outdated", 422, "The state is of another version"),
        ErrorKind("state_foreign", 422, "The state belongs to another model or machine"),
        ErrorKind("queue_full", 429, "The queue is full"),
        ErrorKind("rate_limit_exceeded", 429, "The key has had what it may ask for"),
        ErrorKind("internal_error", 500, "Something unexpected went wrong"),
        ErrorKind("too_many_connections", 503, "The service has too many connections"),
        ErrorKind("not_ready", 503, "The service is not ready"),
        ErrorKind("draining", 503, "The service is shutting down"),
        ErrorKind("engine_failed", 503, "The engine failed"),
        ErrorKind("deadline_exceeded", 504, "The request took too long"),
    )
}
"""Every error that an answer can carry, by code."""

_CODE_OF_STATUS = {
    400: "invalid_json",
    404: "not_found",
    405: "method_not_allowed",
    415: "unsupported_media_type",
}


class FieldError(BaseModel):
    """One field that breaks a rule."""

    model_config = ConfigDict(extra="forbid")

    field: str = Field(
        description="The field, dotted, with positions in lists; empty for the whole body.",
        examples=["beam_size"],
    )
    message: str = Field(examples=["Input should be less than or equal to 16"])


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(description="Identifies the kind of error: urn:gatehouse:error:CODE.")
    title: str = Field(description="The kind of error in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong this time.")
    code: str = Field(description="Stable identifier of the kind of error.")
    errors: list[FieldError] | None = Field(
        default=None, description="The fields at fault, if any."
    )


class ProblemResponse(JSONResponse):
    """A :class:`Problem` on its way out."""

    media_type = MEDIA_TYPE

    def __init__(self, body: Problem, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body.model_dump(exclude_none=True), body.status, headers)
        self.problem = body
        self.code = body.code


ErrorShape = Callable[[ProblemResponse], Response]
"""Gives a problem the shape that the clients of another dialect read."""


def problem(
    code: str,
    detail: str,
    *,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    """The answer for an error.

    Args:
        code: one of :data:`ERROR_KINDS`.
        detail: what is wrong this time.
        errors: the fields at fault.
        headers: of the answer.
    """
    kind = ERROR_KINDS[code]
    body = Problem(
        type=f"urn:gatehouse:error:{code}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        code=code,
        errors=list(errors) or None,
    )
    return ProblemResponse(body, headers)


def install_error_handlers(app: FastAPI) -> None:
    """Have the application answer every exception with a :class:`Problem`."""

    async def on_error(request: Request, error: Exception) -> Response:
        # What is unexpected is answered by UnexpectedErrorMiddleware, but for what middleware
        # outside it may raise: the server logs that with its traceback.
        return answer_of(request.scope, error) or unexpected_error(request.scope)

    for kind in (GatehouseError, RequestValidationError, HTTPException, ClientGoneError, Exception):
        app.add_exception_handler(kind, on_error)


def answer_of(scope: Scope, error: Exception) -> Response | None:
    """The answer for an exception that an endpoint raised; None for an unexpected one."""
    if isinstance(error, GatehouseError):
        return told(scope, problem_of(error))
    if isinstance(error, RequestValidationError):
        return told(scope, _from_validation_error(error))
    if isinstance(error, HTTPException):
        return told(scope, _from_http_exception(error))
    if isinstance(error, ClientGoneError):
        scope[OUTCOME_SCOPE_KEY] = CANCELLED
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    return None


def unexpected_error(scope: Scope) -> Response:
    """The answer for an exception that nobody expected; the log has it, the client does not."""
    return told(scope, problem("internal_error", _UNEXPECTED))


def told(scope: Scope, answer: ProblemResponse) -> Response:
    """A problem in the shape of the request's dialect; its code is left for the books."""
    scope[OUTCOME_SCOPE_KEY] = answer.code
    shape: ErrorShape | None = scope.get(ERROR_SHAPE_SCOPE_KEY)
    return answer if shape is None else shape(answer)


def problem_of(error: Exception) -> ProblemResponse:
    """The answer for an exception of :mod:`app.exceptions`; any other one is logged."""
    code = error.code if isinstance(error, GatehouseError) else None
    if code not in ERROR_KINDS:
        logger.error("an error without an HTTP status reached a request", exc_info=error)
        return problem("internal_error", _UNEXPECTED)
    headers = {}
    if isinstance(error, UnavailableError):
        seconds = _DEFAULT_RETRY_AFTER_SECONDS
        if isinstance(error, QueueFullError | RateLimitError):
            seconds = error.retry_after_seconds
        headers["Retry-After"] = str(seconds)
    if ERROR_KINDS[code].status == _UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"  # RFC 6750, section 3
    errors = []
    if isinstance(error, InvalidRequestError | StateTokenError):
        errors.append(FieldError(field=error.field, message=error.reason))
    return problem(code, str(error), errors=errors, headers=headers)


def _from_http_exception(error: Exception) -> ProblemResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    code = _CODE_OF_STATUS.get(status, "internal_error")
    detail = {
        "invalid_json": "the body cannot be read as JSON in UTF-8",
        "not_found": "there is nothing at this path; /docs lists what there is",
        "method_not_allowed": "this path does not take this method; the Allow header says which",
        "unsupported_media_type": "send JSON with the header Content-Type: application/json",
        "internal_error": http.HTTPStatus(status).phrase,
    }[code]
    return problem(code, detail, headers=headers)


def _from_validation_error(error: Exception) -> ProblemResponse:
    found: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else ()
    errors = [
        FieldError(field=_field(item["loc"]), message=item["msg"].removeprefix("Value error, "))
        for item in found[:_MAX_FIELD_ERRORS]
    ]
    detail = "; ".join(f"{e.field}: {e.message}" if e.field else e.message for e in errors[:3])
    if len(found) > 3:
        detail += f"; and {len(found) - 3} more"
    return problem("invalid_request", detail, errors=errors)


def _field(location: Sequence[str | int]) -> str:
    """The dotted name of a field, without where it came from or which form of it was tried."""
    return shown_field(".".join(str(part) for part in location[1:] if part not in UNION_TAGS))
