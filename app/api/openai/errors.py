"""Errors in the shape that clients of the OpenAI API read."""

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from app.api.errors import ERROR_KINDS, ProblemResponse

_STATUSES = {"invalid_request": 400, "unsupported_model": 404}
"""Statuses that differ from ours: those by which these clients choose their exception."""
_CODES = {"unknown_model": "model_not_found"}
"""Codes that these clients know by another name than ours."""
_MODEL_CODES = frozenset({"unknown_model", "unsupported_model"})


class OpenAIErrorDetails(BaseModel):
    """What went wrong, as the OpenAI API says it."""

    model_config = ConfigDict(extra="forbid")

    message: str = Field(description="What is wrong this time.")
    type: str = Field(
        description="invalid_request_error: the client can fix it; rate_limit_error: the queue is "
        "full; server_error: it is not the client's fault."
    )
    param: str | None = Field(default=None, description="The parameter at fault, or null.")
    code: str = Field(
        description="Gatehouse's stable code, but `model_not_found` for `unknown_model`."
    )


class OpenAIError(BaseModel):
    """An error, as the OpenAI API gives it."""

    model_config = ConfigDict(extra="forbid")

    error: OpenAIErrorDetails


def status_of(code: str) -> int:
    """The status with which this dialect answers an error.

    Args:
        code: of :data:`app.api.errors.ERROR_KINDS`.
    """
    return _STATUSES.get(code, ERROR_KINDS[code].status)


def openai_error_body(answer: ProblemResponse) -> OpenAIError:
    """A problem in this dialect's shape."""
    problem, param = answer.problem, None
    if problem.errors:
        param = problem.errors[0].field or None
    if problem.code in _MODEL_CODES:
        param = "model"
    return OpenAIError(
        error=OpenAIErrorDetails(
            message=problem.detail,
            type=_type(problem.status),
            param=param,
            code=_CODES.get(problem.code, problem.code),
        )
    )


def openai_error(answer: ProblemResponse) -> JSONResponse:
    """The answer for a problem in this dialect, its headers included."""
    kept = {"retry-after", "allow", "www-authenticate"}
    headers = {name: value for name, value in answer.headers.items() if name in kept}
    body = openai_error_body(answer).model_dump()
    return JSONResponse(body, status_of(answer.code), headers)


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"
