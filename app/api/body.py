"""Reads bodies strictly: JSON in UTF-8 and nothing else, and no field twice."""

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from app.api.disconnect import ClientGoneError
from app.exceptions import InvalidRequestError

_MAX_FIELD_CHARACTERS = 100


class StrictBodyRoute(APIRoute):
    """A route that reads its body as :func:`read_body` does.

    An endpoint with a body takes just the request and the body: nothing is left to do for what
    FastAPI does between reading a body and calling the endpoint, which takes longer than both.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        if self.body_field is None:
            return super().get_route_handler()
        endpoint = self.endpoint
        schema: type[BaseModel] = get_type_hints(endpoint)["body"]

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(request, await read_body(request, schema))
            return response

        return handle


async def read_body(request: Request, schema: type[BaseModel]) -> BaseModel:
    """Read the body of a request and check it.

    Raises:
        HTTPException: 400, it is not JSON; 415, it is not declared as JSON.
        RequestValidationError: it does not fit the schema.
        InvalidRequestError: an object has a field twice.
        BodyTooLargeError: it is too large.
        ClientGoneError: the client did not send it to its end.
    """
    try:
        content = await request.body()
    except ClientDisconnect:
        raise ClientGoneError from None
    if not _is_json(request.headers.get("content-type", "")):
        raise HTTPException(415)
    try:
        data = parse_json(content) if content else None
    except (ValueError, RecursionError):
        raise HTTPException(400) from None
    if not isinstance(data, dict):
        message = "the body must be a JSON object"
        raise RequestValidationError([{"type": "dict_type", "loc": ("body",), "msg": message}])
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**item, "loc": ("body", *item["loc"])} for item in errors]
        ) from None


def _is_json(content_type: str) -> bool:
    kind, _, form = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (form == "json" or form.endswith("+json"))


def parse_json(content: bytes) -> Any:
    """Read JSON in UTF-8.

    The standard library's reader would take UTF-16 and UTF-32, too, and of a field that comes
    twice the last value, where other readers take the first.

    Raises:
        ValueError: it is not UTF-8, or not JSON.
        RecursionError: it is nested too deeply.
        InvalidRequestError: an object has a field twice.
    """
    # RFC 8259 lets readers ignore a byte order mark, which some programs write.
    return _DECODER.decode(content.decode("utf-8-sig"))


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidRequestError(shown_field(name), "is given more than once")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_fields)


def shown_field(name: str) -> str:
    """A field's name as an error shows it: a client's own may be long, or no Unicode text."""
    name = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return name if len(name) <= _MAX_FIELD_CHARACTERS else name[:_MAX_FIELD_CHARACTERS] + "..."
