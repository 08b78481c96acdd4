"""What the endpoints of every dialect share: how they reach the service, and how it may refuse."""

from fastapi import Request

from app.runtime import Runtime

BODY_PROBLEMS = (
    "invalid_json",
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
    """The service's life, of which every endpoint asks for what it needs."""
    runtime = request.app.state.runtime
    assert isinstance(runtime, Runtime)
    return runtime
