"""Reads bodies strictly: UTF-8 and nothing else, and no field twice."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from app.exceptions import InvalidRequestError, RequestError

_MAX_FIELD_CHARACTERS = 100


class BodyError(HTTPException):
    """Carries an error out of the reading of a body.

    Of all exceptions, FastAPI lets only its own through while it reads one.
    """

    def __init__(self, error: RequestError) -> None:
        super().__init__(400)
        self.error = error


class StrictBodyRoute(APIRoute):
    """A route whose body is read as :func:`parse_json` does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a request that reads its body strictly."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return handle


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parse_json(await self.body())


def parse_json(body: bytes) -> Any:
    """Read JSON in UTF-8.

    The standard library's reader would take UTF-16 and UTF-32, too, and of a field that comes
    twice the last value, where other readers take the first.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        json.JSONDecodeError: it is not JSON.
        BodyError: an object has a field twice.
    """
    # RFC 8259 lets readers ignore a byte order mark, which some programs write.
    return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_unique_fields)


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise BodyError(InvalidRequestError(shown_field(name), "is given more than once"))
        fields[name] = value
    return fields


def shown_field(name: str) -> str:
    """A field's name as an error shows it: a client's own may be long, or no Unicode text."""
    name = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return name if len(name) <= _MAX_FIELD_CHARACTERS else name[:_MAX_FIELD_CHARACTERS] + "..."
