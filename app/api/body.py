"""Reads bodies strictly: JSON in UTF-8 and nothing else, and no field twice."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, get_args, get_type_hints
from urllib.parse import parse_qs

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from app.api.admission import admission_of
from app.api.disconnect import ClientGoneError
from app.api.scope import ERROR_SHAPE_SCOPE_KEY
from app.exceptions import InvalidRequestError

_MAX_FIELD_CHARACTERS = 100
_URL_ENCODED = "application/x-www-form-urlencoded"
_FORMS = (_URL_ENCODED, "multipart/form-data")
_MAX_FIELDS = 1_000
"""Of one object or form: no body here has a tenth of it, and an error for each takes its time."""
_KEY_FIELD = "api_key"
_NO_FORM = "cannot be read as a form of texts in UTF-8"

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
"""Answers a request, or raises one of the exceptions that :mod:`app.api.errors` knows."""


class StrictBody(BaseModel):
    """Base of all bodies: nothing is converted, and nothing unknown is let through.

    Attributes:
        selected_by: the field that tells this body from the others that its endpoint takes;
            None for the one that is taken when no other is.
        is_form_too: whether it may also come as a form, whose values are texts.
        dialect_error: the shape of its dialect's errors; None for the native one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    selected_by: ClassVar[str | None] = None
    is_form_too: ClassVar[bool] = False
    dialect_error: ClassVar[Callable[[Any], Response] | None] = None


class StrictBodyRoute(APIRoute):
    """A route that reads its body as :func:`read_body` does.

    An endpoint with a body takes just the request and the body: nothing is left to do for what
    FastAPI does between reading a body and calling the endpoint, which takes longer than both.

    Attributes:
        handler: what answers a request, where the endpoint takes a body and its path is one.
    """

    handler: Handler | None = None

    def get_route_handler(self) -> Handler:
        """What answers a request."""
        if self.body_field is None:
            return super().get_route_handler()
        endpoint = self.endpoint
        hint = get_type_hints(endpoint)["body"]
        schemas: Sequence[type[StrictBody]] = get_args(hint) or (hint,)

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(request, await read_body(request, schemas))
            return response

        if not self.param_convertors:
            self.handler = handle
        return handle


async def read_body(request: Request, schemas: Sequence[type[StrictBody]]) -> StrictBody:
    """Read the body of a request and check it.

    Args:
        request: whose body it is.
        schemas: the bodies that the endpoint takes, of which a field's presence selects one;
            the first one otherwise.

    Raises:
        HTTPException: 400, it is not JSON; 415, it is not declared as something that is read.
        RequestValidationError: it does not fit the schema.
        InvalidRequestError: an object has a field twice, or very many fields, or it is no form.
        BodyTooLargeError: it is too large.
        SlowRequestError: it did not arrive in time.
        AccessError: it needs a key, which it does not hold.
        RateLimitError: its key has had what it may ask for.
        ClientGoneError: the client did not send it to its end.
    """
    try:
        content = await request.body()
    except ClientDisconnect:
        raise ClientGoneError from None
    forms = [schema for schema in schemas if schema.is_form_too]
    if forms and is_form(request.headers):
        fields = await _read_form(request, content)
        await _admit(request, forms[0], fields)
        return _checked(forms[0], fields, strict=False)
    try:
        data = _read_json(request, content)
    except (HTTPException, InvalidRequestError):
        _set_error_shape(request, looks_like(content, schemas))
        raise
    if not isinstance(data, dict):
        message = "the body must be a JSON object"
        raise RequestValidationError([{"type": "dict_type", "loc": ("body",), "msg": message}])
    schema = next((s for s in schemas if s.selected_by in data), schemas[0])
    _set_error_shape(request, schema)
    await _admit(request, schema, data)
    return _checked(schema, data, strict=True)


def _read_json(request: Request, content: bytes) -> Any:
    if not _is_json(request.headers.get("content-type", "")):
        raise HTTPException(415)
    try:
        return parse_json(content) if content else None
    except (ValueError, RecursionError):
        raise HTTPException(400) from None


def looks_like(content: bytes, schemas: Sequence[type[StrictBody]]) -> type[StrictBody]:
    """The schema whose field's name stands in a body that was not read; else the first one."""
    for schema in schemas:
        # Within a text its quotation marks would be escaped.
        name = rf'(?<!\\)"{schema.selected_by}"\s*:'
        if schema.selected_by is not None and re.search(name.encode(), content):
            return schema
    return schemas[0]


def _set_error_shape(request: Request, schema: type[StrictBody]) -> None:
    """Have errors told in the dialect of a body, where its path did not decide already."""
    if schema.dialect_error is not None:
        request.scope[ERROR_SHAPE_SCOPE_KEY] = schema.dialect_error


async def _admit(request: Request, schema: type[StrictBody], data: dict[str, Any]) -> None:
    """Let a request in by the key in its body, where its header had none."""
    admission = admission_of(request.scope)
    if not admission.is_granted:
        secret = data.get(_KEY_FIELD) if _KEY_FIELD in schema.model_fields else None
        await admission.decide(secret if isinstance(secret, str) and secret else None)


async def _read_form(request: Request, content: bytes) -> dict[str, Any]:
    """The fields of a form; one that comes several times is a list."""
    fields: Mapping[str, Sequence[object]]
    if _media_type(request.headers) == _URL_ENCODED:
        fields = _parse_form(content)
    else:
        fields = await _read_parts(request, content)
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


async def _read_parts(request: Request, content: bytes) -> dict[str, list[UploadFile | str]]:
    try:
        content.decode()  # Starlette would read what is not UTF-8 as Latin-1
        # How large a part may be is the limit of the whole body.
        async with request.form(
            max_files=0, max_fields=_MAX_FIELDS, max_part_size=sys.maxsize
        ) as form:
            return {name: form.getlist(name) for name in form}
    except (MultiPartException, HTTPException, UnicodeDecodeError):
        raise InvalidRequestError("body", _NO_FORM) from None


def _parse_form(content: bytes) -> dict[str, list[str]]:
    """Read a form in UTF-8, of which clients encode some bytes, or all, or none (curl -d)."""
    try:
        return parse_qs(
            content.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        raise InvalidRequestError("body", _NO_FORM) from None


def _checked(schema: type[StrictBody], data: dict[str, Any], *, strict: bool) -> StrictBody:
    try:
        return schema.model_validate(data, strict=strict)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**item, "loc": ("body", *item["loc"])} for item in errors]
        ) from None


def is_form(headers: Headers) -> bool:
    """Whether a body is declared as what a browser's form sends."""
    return _media_type(headers) in _FORMS


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


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
        InvalidRequestError: an object has a field twice, or very many fields.
    """
    # RFC 8259 lets readers ignore a byte order mark, which some programs write.
    return _DECODER.decode(content.decode("utf-8-sig"))


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidRequestError(shown_field(name), "is given more than once")
    if len(fields) > _MAX_FIELDS:
        raise InvalidRequestError("", f"no object may have more than {_MAX_FIELDS} fields")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_fields)


def shown_field(name: str) -> str:
    """A field's name as an error shows it: a client's own may be long, or no Unicode text."""
    name = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return name if len(name) <= _MAX_FIELD_CHARACTERS else name[:_MAX_FIELD_CHARACTERS] + "..."
