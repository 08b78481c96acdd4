"""How log lines look, and what the line of a request says."""

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient
from structlog.contextvars import bound_contextvars

from app.logs import LogFormat, gathered_facts, log_handler, note, resolve_format

SECRET = "we lost"


@contextmanager
def _logging(log_format: LogFormat, level: int = logging.INFO) -> Iterator[io.StringIO]:
    """Have log lines written to a text."""
    stream, root = io.StringIO(), logging.getLogger()
    handler, before = log_handler(log_format, stream), root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The lines that were logged since the last call, as JSON objects."""
    with _logging("json") as stream:

        def read() -> list[dict[str, Any]]:
            text = stream.getvalue()
            stream.seek(0)
            stream.truncate()
            return [json.loads(line) for line in text.splitlines()]

        yield read


Lines = Callable[[], list[dict[str, Any]]]


def test_a_line_is_an_object_with_its_level_logger_time_and_more(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = logging.getLogRecordFactory()

    def mark(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = make(*arguments, **more)
        record.__dict__["_ray_timestamp_ns"] = 17  # Ray does this to every line
        return record

    monkeypatch.setattr(logging, "_logRecordFactory", mark)
    with bound_contextvars(request_id="abc"):
        logging.getLogger("app.some").warning("no %s", "room", extra={"waiting": 3})
        logging.getLogger("app.some").debug("not this")
    (line,) = lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "no room",
        "level": "warning",
        "logger": "app.some",
        "request_id": "abc",
        "waiting": 3,
    }


def test_an_exception_stays_on_its_line(lines: Lines) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("app").exception("it failed")
    (line,) = lines()
    assert "ValueError: broken" in line["exception"]


def test_text_is_for_people() -> None:
    with _logging("text") as stream:
        logging.getLogger("app").info("ready", extra={"models": 3})
    line = stream.getvalue()
    assert "ready" in line
    assert "models=3" in line
    assert "{" not in line


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_traceback_shows_no_variables(log_format: LogFormat) -> None:
    with _logging(log_format) as stream:
        hidden = "".join(reversed(SECRET))
        try:
            assert hidden
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("app").exception("it failed")
    assert "ValueError: broken" in stream.getvalue()
    assert hidden not in stream.getvalue()


@pytest.mark.parametrize(("is_terminal", "expected"), [(True, "text"), (False, "json")])
def test_auto_looks_where_the_log_goes(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, expected: LogFormat
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    assert resolve_format("auto") == expected
    assert resolve_format("json") == "json"
    assert resolve_format("text") == "text"


def test_facts_are_gathered_from_every_task_of_a_request_and_no_other() -> None:
    async def request(number: int) -> dict[str, Any]:
        with gathered_facts() as facts:
            note(first=number)
            await asyncio.create_task(later(number))
            return facts

    async def later(number: int) -> None:
        await asyncio.sleep(0)
        note(second=number)

    async def both() -> tuple[dict[str, Any], ...]:
        return tuple(await asyncio.gather(request(1), request(2)))

    assert asyncio.run(both()) == ({"first": 1, "second": 1}, {"first": 2, "second": 2})
    note(nobody=1)  # outside of a request: nothing happens


def _requests(lines: Lines) -> list[dict[str, Any]]:
    return [line for line in lines() if line["event"] == "request"]


def test_a_request_is_one_line_with_model_tokens_and_times(
    client: TestClient, lines: Lines
) -> None:
    body = {"text": SECRET, "beam_size": 1}
    answer = client.post("/translate", json=body, headers={"X-Request-ID": "mine"}).json()
    (line,) = _requests(lines)
    assert (line["endpoint"], line["model"], line["outcome"]) == ("translate", "en-fr", "ok")
    assert (line["status"], line["request_id"], line["texts"]) == (200, "mine", 1)
    assert line["input_tokens"] == answer["usage"]["input_tokens"]
    assert line["output_tokens"] == answer["usage"]["output_tokens"]
    assert line["queue_ms"] == answer["timings"]["queue_ms"]
    assert line["total_ms"] >= line["first_token_ms"] > 0


def test_a_streams_line_comes_at_its_end_and_says_the_same(
    client: TestClient, lines: Lines
) -> None:
    client.post("/generate", json={"prompt": "the", "seed": 1, "max_new_tokens": 4})
    (whole,) = _requests(lines)
    body = {"prompt": "the", "seed": 1, "max_new_tokens": 4, "stream": True}
    client.post("/generate", json=body)
    (streamed,) = _requests(lines)
    for name in ("endpoint", "model", "outcome", "status", "input_tokens", "output_tokens"):
        assert streamed[name] == whole[name]


def test_a_refused_request_is_told_with_its_code(client: TestClient, lines: Lines) -> None:
    client.post("/translate", json={"text": SECRET, "model": "none"})
    (line,) = _requests(lines)
    assert (line["outcome"], line["status"], line["model"]) == ("unknown_model", 404, "")
    assert "output_tokens" not in line


def test_the_text_is_never_logged(client: TestClient) -> None:
    with _logging("json", logging.DEBUG) as stream:
        answer = client.post("/translate", json={"text": SECRET}).json()
        client.post("/generate", json={"prompt": SECRET, "stream": True, "max_new_tokens": 3})
        client.post("/bleu", json={"hypotheses": [SECRET], "references": [SECRET]})
        client.post("/translate", json={"text": SECRET, "beam_size": 99})
        client.post("/v1/completions", json={"prompt": SECRET, "max_tokens": 3})
        client.post("/detect", json={"q": SECRET})
        client.post("/translate", json={"q": SECRET, "source": "en", "target": "fr"})
    logged = stream.getvalue()
    assert logged.count('"event":"request"') == 7
    assert SECRET not in logged
    assert answer["translations"][0]["text"] not in logged
