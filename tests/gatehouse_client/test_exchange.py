"""Bytes to types: answers, errors and events."""

import json
from collections.abc import Collection
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api import events, model_answers, responses
from gatehouse_client import answers, exchange
from gatehouse_client.answers import DoneEvent, FinishEvent, Models, StreamEvent, TextEvent, Usage
from gatehouse_client.errors import AnswerError, StreamBrokenError
from gatehouse_client.exchange import EventReader, body_of, read_answer, read_error

PROBLEM = {
    "type": "urn:gatehouse:error:invalid_request",
    "title": "The request breaks a rule",
    "status": 422,
    "detail": "n: too many",
    "code": "invalid_request",
    "errors": [{"field": "n", "message": "too many"}],
}
DONE = (
    '{"model":"m","usage":{"input_tokens":1,"output_tokens":2},'
    '"timings":{"queue_ms":0,"first_token_ms":1,"total_ms":2},"new":true}'
)


def _read(text: str, cuts: Collection[int] = ()) -> list[StreamEvent]:
    """The events of a stream that comes in pieces, cut at these bytes."""
    body = text.encode()
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    reader = EventReader()
    events = [event for begin, end in pairwise(places) for event in reader.feed(body[begin:end])]
    reader.close()
    return events


def test_an_error_keeps_its_code_its_fields_and_when_to_come_back() -> None:
    error = read_error(422, {"retry-after": "3"}, json.dumps(PROBLEM).encode())
    assert (error.status, error.code, error.detail) == (422, "invalid_request", "n: too many")
    assert [(field.field, field.message) for field in error.fields] == [("n", "too many")]
    assert error.retry_after_seconds == 3.0
    assert str(error) == "invalid_request (422): n: too many"


@pytest.mark.parametrize("content", [b"", b"<html>Bad gateway</html>", b'{"a": 1}', b"\xff\xfe"])
def test_an_error_that_is_not_gatehouses_has_no_code(content: bytes) -> None:
    headers = {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}
    error = read_error(502, headers, content)
    assert (error.status, error.code, error.retry_after_seconds) == (502, None, None)
    assert error.detail


def test_a_good_status_with_something_else_is_an_error_too() -> None:
    with pytest.raises(AnswerError, match="not an answer of Gatehouse"):
        read_answer(Models, 200, {}, b"<html>login</html>")


def test_events_are_read_and_what_is_unknown_is_skipped() -> None:
    text = (
        ': ping\n\nevent: token\ndata: {"prompt_index":1,"index":2,"text":"a"}\n\n'
        "event: weather\ndata: {}\n\n"
        'event: finish\ndata: {"prompt_index":1,"index":2,"finish_reason":"end","tokens":1,'
        f'"logprob":-0.5,"seed":7}}\n\nevent: done\ndata: {DONE}\n\n'
    )
    first, second, last = _read(text)
    assert first == TextEvent("a", prompt_index=1, index=2)
    assert second == FinishEvent("end", 1, prompt_index=1, index=2, logprob=-0.5, seed=7)
    assert isinstance(last, DoneEvent)
    assert last.usage == Usage(1, 2)


def test_an_error_within_a_stream_is_raised() -> None:
    with pytest.raises(AnswerError, match="engine_failed") as caught:
        _read('event: error\ndata: {"status":503,"code":"engine_failed","detail":"it died"}\n\n')
    assert caught.value.status == 503


def test_a_stream_that_ends_early_or_makes_no_sense_is_broken() -> None:
    with pytest.raises(StreamBrokenError, match="before its last event"):
        _read('event: token\ndata: {"text":"a"}\n\n')
    with pytest.raises(StreamBrokenError, match="token cannot be read"):
        _read('event: token\ndata: {"text":5}\n\n')


@given(
    st.text(st.characters(codec="utf-8")),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 1000)),
)
def test_any_text_comes_through_however_it_is_cut(
    text: str, index: int, is_ascii: bool, line_end: str, cuts: list[int]
) -> None:
    data = json.dumps({"text": text, "index": index}, ensure_ascii=is_ascii)
    stream = f"event: token\ndata: {data}\n\nevent: done\ndata: {DONE}\n\n"
    events = _read(stream.replace("\n", line_end), cuts)
    assert events[0] == TextEvent(text, index=index)
    assert len(events) == 2


def test_a_return_ends_its_line_before_more_comes() -> None:
    reader = EventReader()
    assert [*reader.feed(b'event: token\rdata: {"text":"a"}\r\r')] == [TextEvent("a")]
    assert [*reader.feed(b"")] == []
    assert [*reader.feed(b'\nevent: token\r\ndata: {"text":"b"}\r')] == []
    assert [*reader.feed(b"\n\r")] == [TextEvent("b")]


def test_what_comes_before_an_error_in_one_piece_is_not_lost() -> None:
    events = EventReader().feed(b'event: token\ndata: {"text":"a"}\n\nevent: error\ndata: {}\n\n')
    assert next(events) == TextEvent("a")
    with pytest.raises(AnswerError):
        next(events)


def test_a_body_has_its_options_and_stream_only_where_asked() -> None:
    assert json.loads(body_of("text", ["é"], {"beam_size": 2})) == {"text": ["é"], "beam_size": 2}
    assert json.loads(body_of("text", "a", {}, stream=True)) == {"text": "a", "stream": True}


def test_no_byte_of_a_long_line_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = 0

    class Counting:
        def split(self, content: bytes) -> list[bytes]:
            nonlocal searched
            searched += len(content)
            return line_end.split(content)

    line_end = exchange._LINE_END
    monkeypatch.setattr(exchange, "_LINE_END", Counting())
    text = json.dumps({"text": "x" * 100_000})
    body = f"event: token\ndata: {text}\n\nevent: done\ndata: {DONE}\n\n"
    first, _ = _read(body, cuts=range(0, len(body), 1_000))
    assert first == TextEvent("x" * 100_000)
    assert searched == len(body)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (answers.Usage, responses.UsageAnswer),
        (answers.Timings, responses.TimingsAnswer),
        (answers.TokenLogprob, responses.TokenLogprob),
        (answers.Output, responses.OutputAnswer),
        (answers.GenerateAnswer, responses.GenerateAnswer),
        (answers.Alignment, responses.AlignmentAnswer),
        (answers.Hypothesis, responses.HypothesisAnswer),
        (answers.Candidate, responses.CandidateAnswer),
        (answers.Translation, responses.TranslationAnswer),
        (answers.TranslateAnswer, responses.TranslateAnswer),
        (answers.Score, responses.ScoreAnswer),
        (answers.BleuAnswer, responses.BleuAnswer),
        (answers.Languages, model_answers.LanguagesAnswer),
        (answers.Quality, model_answers.QualityAnswer),
        (answers.Data, model_answers.DataAnswer),
        (answers.Model, model_answers.ModelAnswer),
        (answers.Models, model_answers.ModelsAnswer),
        (TextEvent, events.GenerateTokenEvent | events.TranslateTokenEvent),
        (FinishEvent, events.GenerateFinishEvent | events.TranslateFinishEvent),
        (DoneEvent, events.GenerateDoneEvent | events.TranslateDoneEvent),
    ],
)
def test_every_field_that_the_server_sends_has_its_place(ours: Any, theirs: Any) -> None:
    sent = {name for kind in get_args(theirs) or (theirs,) for name in kind.model_fields}
    assert set(ours.__struct_fields__) == sent
