"""Log lines: JSON where a machine reads them, plain where a person does, the same everywhere.

Every line within a request carries its ``request_id``. What a request turns out to be (its
model, its tokens, its times) is noted by whoever knows it, and told in one line at its end. The
text of a request or an answer is never logged.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TextIO

import msgspec
import structlog

LogFormat = Literal["json", "text"]

_FACTS: ContextVar[dict[str, Any] | None] = ContextVar("facts", default=None)


def resolve_format(log_format: Literal["auto", "json", "text"]) -> LogFormat:
    """``auto`` is text where standard error is a terminal, else JSON."""
    if log_format != "auto":
        return log_format
    return "text" if sys.stderr.isatty() else "json"


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Write log lines to standard error.

    Args:
        level: least severe level that is written: debug, info, warning or error.
        log_format: ``json``, an object on each line, or ``text``.
    """
    logging.basicConfig(level=level.upper(), handlers=[log_handler(log_format, sys.stderr)])


def log_handler(log_format: LogFormat, stream: TextIO) -> logging.Handler:
    """What writes log lines to a stream; see :func:`configure_logging`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                _drop_what_others_left,
                structlog.processors.TimeStamper("iso", utc=True),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(log_format, stream),
            ],
        )
    )
    return handler


def _drop_what_others_left(_: object, __: str, line: Any) -> Any:
    """Others leave their own wording or time of an event on the record, as if it were more."""
    for name in ("message", "color_message", "_ray_timestamp_ns"):
        line.pop(name, None)
    return line


def _rendering(log_format: LogFormat, stream: TextIO) -> list[Any]:
    if log_format == "text":
        # The prettier tracebacks show variables, and with them the text of requests; and they
        # take so long that the engine's next death comes before the first is told.
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_encode)]


def _encode(line: object, **_: object) -> str:
    return msgspec.json.encode(line, enc_hook=str).decode()


@contextmanager
def gathered_facts() -> Iterator[dict[str, Any]]:
    """Gather what :func:`note` is told within, by whichever task."""
    facts: dict[str, Any] = {}
    token = _FACTS.set(facts)
    try:
        yield facts
    finally:
        _FACTS.reset(token)


def note(**facts: float) -> None:
    """Tell something of the present request, for its line in the log; nothing without one.

    Args:
        facts: numbers only, with the unit in the name: no text may come this way.
    """
    present = _FACTS.get()
    if present is not None:
        present.update(facts)


def noted(fact: str) -> float:
    """What :func:`note` was told of the present request; 0 where it was told nothing."""
    value = (_FACTS.get() or {}).get(fact, 0)
    assert isinstance(value, int | float)
    return value
