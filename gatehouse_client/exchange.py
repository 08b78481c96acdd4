"""Answers and streams as bytes to types: what both clients share, without any network."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import httpx2
import msgspec

from gatehouse_client.answers import DoneEvent, FinishEvent, StreamEvent, TextEvent
from gatehouse_client.errors import (
    AnswerError,
    AnswerTimeoutError,
    FieldError,
    ServerUnreachableError,
    StreamBrokenError,
)

T = TypeVar("T")
_EVENTS: dict[str, type[StreamEvent]] = {
    "token": TextEvent,
    "finish": FinishEvent,
    "done": DoneEvent,
}
_LONGEST_QUOTE = 200
_LINE_END = re.compile(rb"\r\n|\n|\r")


class _Problem(msgspec.Struct):
    status: int
    code: str
    detail: str
    errors: list[dict[str, str]] = []


def read_answer(kind: type[T], status: int, headers: Mapping[str, str], content: bytes) -> T:
    """An answer as its type.

    Args:
        kind: the type of a good answer.
        status: of HTTP.
        headers: by lower-case name.
        content: the body.

    Raises:
        AnswerError: it is an error, or none of Gatehouse's answers.
    """
    if status >= 400:
        raise read_error(status, headers, content)
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise AnswerError(status, None, f"not an answer of Gatehouse: {error}") from error


def read_error(status: int, headers: Mapping[str, str], content: bytes) -> AnswerError:
    """An answer with the status of an error, as an exception."""
    wait = _seconds(headers.get("retry-after"))
    try:
        problem = msgspec.json.decode(content, type=_Problem)
    except msgspec.MsgspecError:
        quote = content[:_LONGEST_QUOTE].decode("utf-8", "replace").strip()
        return AnswerError(status, None, quote or "an empty answer", (), wait)
    fields = tuple(
        FieldError(entry.get("field", ""), entry.get("message", "")) for entry in problem.errors
    )
    return AnswerError(problem.status, problem.code, problem.detail, fields, wait)


class EventReader:
    """Server-sent events from the bytes of a stream.

    The format is that of the HTML standard, section 9.2, of which Gatehouse uses ``event``,
    ``data`` and comments. Lines end with CR LF, LF or CR, and with nothing else: a text may hold
    U+2028 and whatever other formats take for the end of a line.
    """

    def __init__(self) -> None:
        self._begun: list[bytes] = []  # of a line whose end has not come
        self._is_after_return = False
        self._name = ""
        self._data: list[str] = []
        self._is_done = False

    def feed(self, chunk: bytes) -> Iterator[StreamEvent]:
        """Take what came next, cut anywhere; the events that it completes.

        Raises:
            AnswerError: an event is an error.
            StreamBrokenError: its data are not what they should be.
        """
        if not chunk:
            return
        if self._is_after_return:  # which has ended its line already
            chunk = chunk.removeprefix(b"\n")
        self._is_after_return = chunk.endswith(b"\r")
        *lines, rest = _LINE_END.split(chunk)
        if lines:
            lines[0] = b"".join((*self._begun, lines[0]))
            self._begun.clear()
        self._begun.append(rest)
        for line in lines:
            event = self._take(line.decode("utf-8", "replace"))
            if event is not None:
                yield event

    def _take(self, line: str) -> StreamEvent | None:
        if line:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                self._name = value
            elif field == "data":
                self._data.append(value)
            return None
        name, data, self._name, self._data = self._name, "\n".join(self._data), "", []
        if not data:
            return None
        return self._decode(name, data.encode())

    def close(self) -> None:
        """The connection has ended.

        Raises:
            StreamBrokenError: before the last event.
        """
        if not self._is_done:
            raise StreamBrokenError("the stream ended before its last event")

    def _decode(self, name: str, data: bytes) -> StreamEvent | None:
        if name == "error":
            self._is_done = True
            raise read_error(500, {}, data)
        if name not in _EVENTS:  # of a newer server
            return None
        try:
            event = msgspec.json.decode(data, type=_EVENTS[name])
        except msgspec.MsgspecError as error:
            raise StreamBrokenError(f"the event {name} cannot be read: {error}") from error
        self._is_done = self._is_done or isinstance(event, DoneEvent)
        return event


def body_of(main: str, value: object, options: Mapping[str, Any], *, stream: bool = False) -> bytes:
    """A request's body.

    Args:
        main: name of the field that every request has.
        value: of it.
        options: the other fields.
        stream: whether to answer with events.
    """
    return msgspec.json.encode({main: value, **options, **({"stream": True} if stream else {})})


def authorization(api_key: str | None) -> dict[str, str]:
    """The headers that an API key needs (RFC 6750, section 2.1); none without one.

    Raises:
        ValueError: it cannot be one: a header holds visible ASCII characters alone.
    """
    if api_key is None:
        return {}
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key or not api_key:
        # Not shown: nearly the right key must not end up in a log.
        raise ValueError("an API key has visible ASCII characters and no spaces")
    return {"authorization": f"Bearer {api_key}"}


def lost(address: str, error: Exception) -> ServerUnreachableError | AnswerTimeoutError:
    """What to say of an exchange that failed on its way."""
    is_slow = isinstance(error, httpx2.ReadTimeout | httpx2.WriteTimeout)
    kind = AnswerTimeoutError if is_slow else ServerUnreachableError
    return kind(f"{address}: {str(error) or type(error).__name__}")


def _seconds(header: str | None) -> float | None:
    """``Retry-After`` in seconds; its other form, a date, is not used by Gatehouse."""
    try:
        return None if header is None else max(float(header), 0.0)
    except ValueError:
        return None
