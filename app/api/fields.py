"""The kinds of fields that the bodies of requests consist of."""

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag

from app.engine.request import MAX_ROWS_PER_REQUEST
from app.service.protection import MAX_PROTECTED
from models.decoding.params import MIN_TEMPERATURE

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 200
MAX_REFERENCES_PER_TEXT = 16

_ONE, _MANY = "~one", "~many"
UNION_TAGS = frozenset({_ONE, _MANY})
"""Parts of an error's location that say which form of a field was tried; not for clients."""


def _one_or_many(value: Any) -> str:
    return _MANY if isinstance(value, list | tuple) else _ONE


def _limit(keyword: str, setting: str) -> dict[str, Any]:
    """A JSON-Schema keyword whose value is a limit, filled in by :mod:`app.api.openapi`."""
    return {"x-limit": {keyword: setting}}


def _list_limits(
    setting: str | None = None, min_length: int | None = None, max_length: int | None = None
) -> Any:
    """What every list has: it is refused at its first wrong item.

    A client can send a million of them, and an error for each takes half a minute to write.
    """
    return Field(
        fail_fast=True,
        min_length=min_length,
        max_length=max_length,
        json_schema_extra=None if setting is None else _limit("maxItems", setting),
    )


def _require_unicode(value: str) -> str:
    """Refuse a lone surrogate, which JSON can spell but no encoding of Unicode holds."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text, without lone surrogates") from None
    return value


def _not_almost_zero(value: float) -> float:
    if 0 < value < MIN_TEMPERATURE:
        raise ValueError(f"must be 0 (greedy) or at least {MIN_TEMPERATURE}")
    return value


NOT_ALMOST_ZERO = AfterValidator(_not_almost_zero)
"""For temperatures."""
Text = Annotated[
    str,
    AfterValidator(_require_unicode),
    Field(json_schema_extra=_limit("maxLength", "max_characters_per_text")),
]
Texts = Annotated[list[Text], _list_limits("max_texts_per_request", min_length=1)]
OneOrManyTexts = Annotated[
    Annotated[Text, Tag(_ONE)] | Annotated[Texts, Tag(_MANY)], Discriminator(_one_or_many)
]
Document = Annotated[
    str,
    AfterValidator(_require_unicode),
    Field(json_schema_extra=_limit("maxLength", "max_document_characters")),
]
"""A text that is taken apart, and so may be longer."""
_Documents = Annotated[list[Document], _list_limits("max_texts_per_request", min_length=1)]
OneOrManyDocuments = Annotated[
    Annotated[Document, Tag(_ONE)] | Annotated[_Documents, Tag(_MANY)],
    Discriminator(_one_or_many),
]
NOT_DOCUMENTS: dict[str, Any] = {
    **_limit("maxLength", "max_characters_per_text"),
    "items": _limit("maxLength", "max_characters_per_text"),
}
"""JSON schema of such a field where its texts are not taken apart."""
_Stop = Annotated[
    str,
    Field(min_length=1, max_length=MAX_STOP_CHARACTERS),
    AfterValidator(_require_unicode),
]
_Stops = Annotated[list[_Stop], _list_limits(max_length=MAX_STOP_STRINGS)]
OneOrManyStops = Annotated[
    Annotated[_Stop, Tag(_ONE)] | Annotated[_Stops, Tag(_MANY)], Discriminator(_one_or_many)
]
_States = Annotated[list[str], _list_limits("max_texts_per_request", min_length=1)]
OneOrManyStates = Annotated[
    Annotated[str, Tag(_ONE)] | Annotated[_States, Tag(_MANY)], Discriminator(_one_or_many)
]
_SeveralReferences = Annotated[
    list[Text], _list_limits(min_length=1, max_length=MAX_REFERENCES_PER_TEXT)
]
_OneOrManyReferences = Annotated[
    Annotated[Text, Tag(_ONE)] | Annotated[_SeveralReferences, Tag(_MANY)],
    Discriminator(_one_or_many),
]
References = Annotated[
    list[_OneOrManyReferences], _list_limits("max_segments_per_score", min_length=1)
]
Segments = Annotated[list[Text], _list_limits("max_segments_per_score", min_length=1)]
Protected = Annotated[list[_Stop], _list_limits(max_length=MAX_PROTECTED)]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]
Language = Annotated[str, Field(min_length=2, max_length=35)]
BeamSize = Annotated[int, Field(ge=1, le=MAX_ROWS_PER_REQUEST)]
LengthPenalty = Annotated[float, Field(ge=0, le=10)]
MaxNewTokens = Annotated[
    int, Field(ge=1, json_schema_extra=_limit("maximum", "max_new_tokens_limit"))
]
TimeoutSeconds = Annotated[
    float, Field(gt=0, json_schema_extra=_limit("maximum", "request_timeout_seconds"))
]
