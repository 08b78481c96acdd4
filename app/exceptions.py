"""The one tree of exceptions that the service raises on purpose.

::

    GatehouseError
    |-- RequestError              the client can mend it
    |   |-- UnknownModelError         404 unknown_model
    |   |-- UnknownLanguagePairError  422 unknown_language_pair
    |   |-- InvalidRequestError       422 invalid_request (field, reason)
    |   |-- UnsupportedModelError     422 unsupported_model
    |   |-- StateTokenError           a state that cannot be gone on from (field)
    |   |   |-- CutStateError             422 state_cut
    |   |   |-- ForgedStateError          422 state_forged
    |   |   |-- OutdatedStateError        422 state_outdated
    |   |   `-- ForeignStateError         422 state_foreign
    |   |-- BodyTooLargeError         413 body_too_large
    |   `-- SlowRequestError          408 request_timeout
    |-- AccessError               the client may not do this
    |   |-- MissingKeyError           401 missing_api_key
    |   |-- InvalidKeyError           401 invalid_api_key
    |   |-- AdminKeyRequiredError     403 admin_key_required
    |   `-- AdminDisabledError        403 admin_disabled
    |-- UnavailableError          try again later
    |   |-- QueueFullError            429 queue_full (Retry-After)
    |   |-- RateLimitError            429 rate_limit_exceeded (Retry-After)
    |   |-- TooManyConnectionsError   503 too_many_connections
    |   |-- NotReadyError             503 not_ready
    |   |-- DrainingError             503 draining
    |   `-- EngineFailedError         503 engine_failed
    |-- ReloadError               409 reload_failed
    |-- DeadlineError             504 deadline_exceeded
    `-- StartupError              the service cannot start; the message says why

Each class carries a stable ``code``; :mod:`app.api.errors` alone knows the HTTP status.
"""

from typing import ClassVar


class GatehouseError(Exception):
    """Base of everything raised on purpose.

    Attributes:
        code: stable, documented identifier of the error.
    """

    code: ClassVar[str] = "internal_error"


class RequestError(GatehouseError):
    """The request cannot be served as it stands."""


class UnknownModelError(RequestError):
    """No loaded model has the name that was asked for."""

    code = "unknown_model"


class UnknownLanguagePairError(RequestError):
    """No loaded model translates between the two languages."""

    code = "unknown_language_pair"


class UnsupportedModelError(RequestError):
    """The model exists but cannot do what was asked of it."""

    code = "unsupported_model"


class InvalidRequestError(RequestError):
    """A rule over one or several fields is broken.

    Args:
        field: the field at fault, dotted, as the client sent it; empty for the whole body.
        reason: what is wrong with it.
    """

    code = "invalid_request"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class StateTokenError(RequestError):
    """A state that a client sent cannot be gone on from.

    Args:
        field: the field that it came in, dotted.
        reason: what is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class CutStateError(StateTokenError):
    """It is not whole, or no state at all."""

    code = "state_cut"


class ForgedStateError(StateTokenError):
    """It was altered, or signed with another key."""

    code = "state_forged"


class OutdatedStateError(StateTokenError):
    """It is of another version of the format."""

    code = "state_outdated"


class ForeignStateError(StateTokenError):
    """It is of another checkpoint, precision or processor."""

    code = "state_foreign"


class BodyTooLargeError(RequestError):
    """The body is larger than the limit."""

    code = "body_too_large"


class SlowRequestError(RequestError):
    """The request did not arrive within the time that it has for that."""

    code = "request_timeout"


class AccessError(GatehouseError):
    """The client may not do this."""


class MissingKeyError(AccessError):
    """A key is needed, and none was sent."""

    code = "missing_api_key"


class InvalidKeyError(AccessError):
    """The key that was sent is none of this service's."""

    code = "invalid_api_key"


class AdminKeyRequiredError(AccessError):
    """The key that was sent is a user's, and what was asked for needs an admin's."""

    code = "admin_key_required"


class AdminDisabledError(AccessError):
    """What was asked for needs an admin key, and the service has none."""

    code = "admin_disabled"


class UnavailableError(GatehouseError):
    """The service cannot take the request now."""


class QueueFullError(UnavailableError):
    """The queue of waiting requests has no room for this one.

    Args:
        retry_after_seconds: when to try again.
    """

    code = "queue_full"

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TooManyConnectionsError(UnavailableError):
    """The service has as many connections as it takes."""

    code = "too_many_connections"


class RateLimitError(UnavailableError):
    """A key has had what it may ask for, for now.

    Args:
        retry_after_seconds: when to try again.
    """

    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotReadyError(UnavailableError):
    """Models are still being loaded, or the engine does not answer."""

    code = "not_ready"


class DrainingError(UnavailableError):
    """The service is shutting down."""

    code = "draining"


class EngineFailedError(UnavailableError):
    """The engine failed while it worked on the request."""

    code = "engine_failed"


class ReloadError(GatehouseError):
    """A model's folder does not hold what could take its place; the old model goes on."""

    code = "reload_failed"


class DeadlineError(GatehouseError):
    """The request took longer than its deadline."""

    code = "deadline_exceeded"


class StartupError(GatehouseError):
    """The service cannot start; the message is one clear sentence for a person."""

    code = "startup_failed"
