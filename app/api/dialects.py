"""Which dialect of the API a path belongs to, so that its errors have the shape of its own.

Decided before anything else looks at the request: a body that is too large, a path that does not
exist and a bug are answered in the dialect, too. Only a body in JSON for ``/translate``, which two
dialects share, must have come before it shows its dialect: see :func:`app.api.body.read_body`.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.body import is_form
from app.api.errors import ErrorShape
from app.api.libretranslate.errors import libretranslate_error
from app.api.openai.errors import openai_error
from app.api.scope import ERROR_SHAPE_SCOPE_KEY, route_path

_SHAPES: dict[str, ErrorShape] = {
    "v1": openai_error,
    "detect": libretranslate_error,
    "languages": libretranslate_error,
    "frontend": libretranslate_error,
}
"""The shape of the errors of a path and of everything below it, by its first part."""


class DialectMiddleware:
    """Has errors answered in the shape of the dialect that a path belongs to.

    Args:
        app: the application behind.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and (shape := error_shape(scope)) is not None:
            scope[ERROR_SHAPE_SCOPE_KEY] = shape
        await self._app(scope, receive, send)


def error_shape(scope: Scope) -> ErrorShape | None:
    """The shape of the errors of a request's dialect, as far as its head tells; None: our own."""
    path = route_path(scope)
    if path == "/translate":
        return libretranslate_error if is_form(Headers(scope=scope)) else None
    _, _, rest = path.partition("/")
    return _SHAPES.get(rest.partition("/")[0])
