"""The page at ``/``, on which a person tries the service: static files, and the rules for them."""

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PAGE_DIR = Path(__file__).parents[1] / "static"
PAGE_FILE = "index.html"

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Nothing from other hosts, nothing inline: a text that a model writes can never become code."""

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    # Asked for again each time, which costs a 304, so that no page mixes two versions.
    "Cache-Control": "no-cache",
}


class PageFiles(StaticFiles):
    """The files of the page, as an application to be mounted.

    Its errors are :class:`~starlette.exceptions.HTTPException`, which become problems like all
    others: 404 for a file that is not there, 405 for a method other than GET.
    """

    def __init__(self) -> None:
        super().__init__(directory=PAGE_DIR)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """See :meth:`starlette.staticfiles.StaticFiles.get_response`."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET"})
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response
