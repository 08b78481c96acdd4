"""What Ray's proxies answer themselves, in the form that Gatehouse's clients know.

Ray calls :func:`middlewares` in each of its proxies, where their environment says so::

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray.proxy.middlewares
"""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dialects import error_shape
from app.api.errors import ProblemResponse, problem_of
from app.api.openai.errors import openai_error, openai_error_body
from app.exceptions import EngineFailedError, NotReadyError, QueueFullError

_REFUSED = 429
_LOST = "the replica that worked on the request died"


def middlewares() -> list[Middleware]:
    """What Ray's HTTP proxy is wrapped in."""
    return [Middleware(ProblemsMiddleware)]


class ProblemsMiddleware:
    """Gives requests that no replica answered a problem that says what to do.

    Ray's proxy says nothing at all when a replica dies over a request, which makes a bare status
    500, or a stream that breaks off; and it refuses in plain text.

    Args:
        app: Ray's proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Ray's own pages
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        await self._app(scope, receive, answer.send)
        if (problem := answer.problem()) is None:
            return
        if not answer.is_begun:
            shape = error_shape(scope)
            await (problem if shape is None else shape(problem))(scope, receive, send)
        elif answer.is_event_stream:
            last = _last_event(scope, problem)
            await send({"type": "http.response.body", "body": last, "more_body": False})
        # Of any other answer half is there: the server closes the connection, which tells it.


class _Answer:
    """Passes an answer on, but for a refusal in plain text, and sees whether it is whole."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._refusal: int | None = None
        self._retry_after_seconds = 1
        self._is_whole = False
        self.is_begun = False
        self.is_event_stream = False

    async def send(self, message: Message) -> None:
        """Take the next message of Ray's proxy."""
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            media_type = headers.get("content-type", "").partition(";")[0]
            if message["status"] in (_REFUSED, 503) and media_type == "text/plain":
                self._refusal = message["status"]
                self._retry_after_seconds = int(headers.get("retry-after", 1))
                return
            self.is_begun = True
            self.is_event_stream = media_type == "text/event-stream"
        elif self._refusal is not None:
            return
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._is_whole = True
        await self._send(message)

    def problem(self) -> ProblemResponse | None:
        """What to tell the client in the end; None where it has its answer."""
        if self._refusal == _REFUSED:
            error = "every replica has as many requests as it takes"
            return problem_of(QueueFullError(error, self._retry_after_seconds))
        if self._refusal is not None:
            return problem_of(NotReadyError("no replica can take the request now"))
        return None if self._is_whole else problem_of(EngineFailedError(_LOST))


def _last_event(scope: Scope, problem: ProblemResponse) -> bytes:
    """How a stream that broke off ends: see :mod:`app.api.events`."""
    if error_shape(scope) is openai_error:
        return b"data: " + openai_error_body(problem).model_dump_json().encode() + b"\n\n"
    text = problem.problem.model_dump_json(exclude_none=True)
    return b"event: error\ndata: " + text.encode() + b"\n\n"
