"""What is found to need protection, and how fast."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.service.protection import Protection, SpanKind

FOUND = [
    ("Visit https://example.org/a?b=1, please.", ["https://example.org/a?b=1"]),
    ("(see www.example.org)", ["www.example.org"]),
    ("Write to me.too+x@mail.example.org.", ["me.too+x@mail.example.org"]),
    ("Hello {{ name }} and {0} and ${x}", ["{{ name }}", "{0}", "${x}"]),
    ("%s of %(total)d, %1$s, 5.5% sure", ["%s", "%(total)d", "%1$s", "5.5"]),
    ("At 10:30 on 1/2/2026 for 3,50.", ["10:30", "1/2/2026", "3,50"]),
    ("a <b class='x'>b</b> <br/> 1 < 2", ["<b class='x'>", "</b>", "<br/>", "1", "2"]),
    ("Good 👍🏽 👨‍👩‍👧 🇫🇷 ☀️ 1️⃣!", ["👍🏽", "👨‍👩‍👧", "🇫🇷", "☀️", "1️⃣"]),
    ("the 3rd B2B in the 1990s", []),
    ("100% sure, 50% off", ["100", "50"]),
    ("I'm fine; you? No: she's not.", []),
]


@pytest.mark.parametrize(("text", "spans"), FOUND)
def test_what_must_not_change_is_found(text: str, spans: list[str]) -> None:
    assert Protection().found(text) == spans


def test_kinds() -> None:
    text = "{x} <b> 3"
    assert [span.kind for span in Protection().spans(text)] == [
        SpanKind.NAME,
        SpanKind.MARKUP,
        SpanKind.NUMBER,
    ]


def test_own_spans_win_and_the_longest_comes_first() -> None:
    protection = Protection(["Gate", "Gatehouse 2", "a.c"])
    assert protection.found("Gatehouse 2 is no Gate, abc a.c") == ["Gatehouse 2", "Gate", "a.c"]


@given(st.text(), st.lists(st.text(min_size=1), max_size=3))
def test_spans_are_in_order_and_do_not_overlap(text: str, own: list[str]) -> None:
    spans = Protection(own).spans(text)
    places = [place for span in spans for place in (span.begin, span.end)]
    assert places == sorted(places)
    assert all(span.begin < span.end for span in spans)
    assert any(each in text for each in own) <= bool(spans)


@pytest.mark.parametrize(
    "part",
    ["a", "a@", "{", "{{", "<a", "%(", "%1", "http://", "www.", "1.", "a-1.", "$", ".", "😀", "0"],
)
@pytest.mark.parametrize("start", ["", "%"])
def test_no_text_takes_long(part: str, start: str) -> None:
    protection = Protection()
    started_at = time.process_time()
    protection.spans(start + part * (100_000 // len(part)) + "!")
    # Quadratic expressions take minutes; ours take hundredths of a second.
    assert time.process_time() - started_at < 5
