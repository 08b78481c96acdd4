"""Errors in the shape that clients of LibreTranslate read."""

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from app.api.errors import ERROR_KINDS, ProblemResponse

_BAD_REQUEST = 400
_UNPROCESSABLE = 422
_STATUSES = {"missing_api_key": 400, "invalid_api_key": 403}
"""Statuses by which these clients know what is the matter with a key."""
_WORDS = {
    "missing_api_key": "Please contact the server operator to get an API key",
    "invalid_api_key": "Invalid API key",
}
"""LibreTranslate's own words, which some of its clients look for."""


class LibreTranslateError(BaseModel):
    """An error, as LibreTranslate gives it."""

    model_config = ConfigDict(extra="forbid")

    error: str = Field(description="What is wrong, for people.")


def libretranslate_status(code: str) -> int:
    """The status with which this dialect answers an error: 400 where ours is 422, for instance.

    Args:
        code: of :data:`app.api.errors.ERROR_KINDS`.
    """
    status = _STATUSES.get(code, ERROR_KINDS[code].status)
    return _BAD_REQUEST if status == _UNPROCESSABLE else status


def libretranslate_error(answer: ProblemResponse) -> JSONResponse:
    """The answer for a problem in this dialect, its headers included."""
    kept = {"retry-after", "allow", "www-authenticate"}
    headers = {name: value for name, value in answer.headers.items() if name in kept}
    body = LibreTranslateError(error=_WORDS.get(answer.code, answer.problem.detail))
    return JSONResponse(body.model_dump(), libretranslate_status(answer.code), headers)
