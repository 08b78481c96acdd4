"""Asks every request for its API key, but for the few pages that are open.

What is not named here needs a key: a path that is added later is closed until somebody opens it.
"""

import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.admission import Admission, set_admission
from app.api.errors import problem_of, told
from app.api.scope import route_path
from app.exceptions import AccessError, RateLimitError
from app.key_limits import KeyLimits
from app.keys import KeyRing
from app.logs import noted

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset(
    {
        "/",  # the page asks for a key itself
        "/docs",
        "/openapi.json",
        "/health/live",
        "/health/ready",
        # LibreTranslate's clients ask for these before they have a key.
        "/languages",
        "/frontend/settings",
    }
)
OPEN_FOLDERS = ("/static/", "/static-offline-docs/")
ADMIN_PATH = "/admin"
"""This and everything below it takes an admin key."""
UNLIMITED_PATHS = frozenset({"/metrics"})
"""A monitor that is turned away would see nothing just when there is most to see."""
BODY_KEY_PATHS = frozenset({"/translate", "/detect"})
"""Where the body may hold the key, as LibreTranslate's clients send it."""


class AuthorizationMiddleware:
    """Answers 401, 403 or 429 for a request that may not be served.

    Args:
        app: the application behind.
        keys: of the service.
        limits: of each key.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, limits: KeyLimits) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = route_path(scope)
        admission = self._admission(path)
        set_admission(scope, admission)
        secret = _bearer(Headers(scope=scope))
        may_be_in_body = path in BODY_KEY_PATHS and secret is None
        if not admission.is_granted and not may_be_in_body:
            try:
                await admission.decide(secret)
            except (AccessError, RateLimitError) as error:
                if is_admin(path):
                    logger.warning("an admin request was refused: %s", error.code)
                await told(scope, problem_of(error))(scope, receive, send)
                return
        try:
            await self._app(scope, receive, send)
        finally:
            await admission.charge(int(noted("input_tokens") + noted("output_tokens")))

    def _admission(self, path: str) -> Admission:
        admin = is_admin(path)
        return Admission(
            self._keys,
            self._limits,
            is_open=is_open(path),
            is_limited=not admin and path not in UNLIMITED_PATHS,
            needs_admin=admin,
        )


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def is_admin(path: str) -> bool:
    """Whether a path needs an admin key."""
    return path == ADMIN_PATH or path.startswith(f"{ADMIN_PATH}/")


def _bearer(headers: Headers) -> str | None:
    """The key in ``Authorization: Bearer`` (RFC 6750, section 2.1); None where there is none."""
    scheme, _, secret = headers.get("authorization", "").strip().partition(" ")
    return secret.strip() or None if scheme.lower() == "bearer" else None
