"""What the endpoints of every dialect share: how they reach the service, and how it may refuse."""

from fastapi import Request

from app.api.admission import admission_of
from app.exceptions import MissingKeyError
from app.runtime import Runtime

ACCESS_PROBLEMS = ("missing_api_key", "invalid_api_key", "rate_limit_exceeded")
"""Errors of every endpoint that takes a key, where the service asks for one."""
ADMIN_PROBLEMS = ("missing_api_key", "invalid_api_key", "admin_key_required", "admin_disabled")
"""Errors of every endpoint below ``/admin``, whatever else it may refuse."""
READING_PROBLEMS = (*ACCESS_PROBLEMS, "not_ready", "draining", "internal_error")
"""Errors of every endpoint that tells what there is."""
BODY_PROBLEMS = (
    *ACCESS_PROBLEMS,
    "invalid_json",
    "request_timeout",
    "body_too_large",
    "unsupported_media_type",
    "invalid_request",
    "queue_full",
    "internal_error",
    "too_many_connections",
    "not_ready",
    "draining",
    "engine_failed",
    "deadline_exceeded",
)
"""Errors of every endpoint with a body that is decoded."""

STATE_PROBLEMS = ("state_cut", "state_forged", "state_outdated", "state_foreign")
"""Errors of an endpoint that takes states."""


def runtime_of(request: Request) -> Runtime:
    """The service's life, of which every endpoint asks for what it needs.

    Raises:
        MissingKeyError: nobody has let the request in; so an endpoint that forgets to look for
            the key in its body serves nobody.
    """
    if not admission_of(request.scope).is_granted:
        raise MissingKeyError("send an API key in the header Authorization: Bearer KEY")
    runtime = request.app.state.runtime
    assert isinstance(runtime, Runtime)
    return runtime
