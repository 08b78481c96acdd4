"""What can go wrong between a client and a server."""

from dataclasses import dataclass


class ClientError(Exception):
    """A request has no answer; the message says why."""


class ServerUnreachableError(ClientError):
    """There is no connection, or it broke, or what came over it cannot be unpacked."""


class AnswerTimeoutError(ClientError):
    """The server is there, and did not answer in time: perhaps it works on the request still."""


class StreamBrokenError(ClientError):
    """A stream ended before its last event: what came is not all."""


@dataclass(frozen=True)
class FieldError:
    """A field at fault.

    Attributes:
        field: its name, dotted, with positions in lists; empty for the whole body.
        message: what is wrong with it.
    """

    field: str
    message: str


class AnswerError(ClientError):
    """The server refused a request, or failed at it.

    Attributes:
        status: of HTTP; of an error within a stream the one that it would have had.
        code: the server's stable code (its ``docs/errors.md``), or None for an answer that is
            not Gatehouse's: a proxy's, say.
        detail: what is wrong this time.
        fields: the fields at fault.
        retry_after_seconds: when to try again, where the server says so.
    """

    def __init__(
        self,
        status: int,
        code: str | None,
        detail: str,
        fields: tuple[FieldError, ...] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{code or 'unknown answer'} ({status}): {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.fields = fields
        self.retry_after_seconds = retry_after_seconds
