"""Whether a request may be served: decided once, before anything is done for it."""

from starlette.types import Scope

from app.exceptions import (
    AdminDisabledError,
    AdminKeyRequiredError,
    InvalidKeyError,
    MissingKeyError,
)
from app.key_limits import KeyLimits
from app.keys import ApiKey, KeyRing

_SCOPE_KEY = "gatehouse.admission"
_ANONYMOUS = "(anonymous)"
"""Whom requests without a key count for; no key can have this name."""


class Admission:
    """What is decided of one request.

    Args:
        keys: of the service.
        limits: of each key.
        is_open: whether anyone may ask for this, as often as they like.
        is_limited: whether it counts for the key's limits.
        needs_admin: whether it takes an admin key.

    Attributes:
        is_granted: whether the request may be served. Where a body may hold the key, that is
            not known until it has been read.
        key: the key that it came with, if that is one of the service's.
    """

    def __init__(
        self,
        keys: KeyRing,
        limits: KeyLimits,
        *,
        is_open: bool = False,
        is_limited: bool = True,
        needs_admin: bool = False,
    ) -> None:
        self.is_granted = is_open
        self.key: ApiKey | None = None
        self._keys = keys
        self._limits = limits
        self._is_limited = is_limited and not is_open
        self._needs_admin = needs_admin

    async def decide(self, secret: str | None) -> None:
        """Let the request in, or not.

        Args:
            secret: the key that it came with.

        Raises:
            AccessError: it may not be served with this key, or without one.
            RateLimitError: the key has had what it may ask for.
        """
        if self._needs_admin and not self._keys.has_admin:
            raise AdminDisabledError("no admin key is configured, so that nobody may do this")
        self.key = None if secret is None else self._keys.find(secret)
        if self._needs_admin or not self._keys.allows_anonymous:
            self._check(secret)
        if self._is_limited:
            await self._limits.admit(self._name)
        self.is_granted = True

    async def charge(self, tokens: int) -> None:
        """Count the tokens of the request, once it is over."""
        if self._is_limited and self.is_granted:
            await self._limits.charge(self._name, tokens)

    def _check(self, secret: str | None) -> None:
        if secret is None:
            raise MissingKeyError("send an API key in the header Authorization: Bearer KEY")
        if self.key is None:
            raise InvalidKeyError("the API key is none of this service's")
        if self._needs_admin and self.key.kind != "admin":
            raise AdminKeyRequiredError("the API key is a user's; this needs an admin's")

    @property
    def _name(self) -> str:
        return _ANONYMOUS if self.key is None else self.key.name


def admission_of(scope: Scope) -> Admission:
    """What is decided of a request."""
    admission = scope[_SCOPE_KEY]
    assert isinstance(admission, Admission)
    return admission


def set_admission(scope: Scope, admission: Admission) -> None:
    """Leave with a request what is decided of it."""
    scope[_SCOPE_KEY] = admission


def key_name(scope: Scope) -> str | None:
    """Name of the key that a request came with, for the log; None without one."""
    admission = scope.get(_SCOPE_KEY)
    return admission.key.name if isinstance(admission, Admission) and admission.key else None
