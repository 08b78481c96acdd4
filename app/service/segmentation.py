"""Texts into sentences: translation models were trained on one sentence at a time.

A line break always ends a sentence, so that paragraphs, lists and subtitles keep their lines.
Within a line sentencex (Wikimedia's segmenter, rules for some 250 languages) decides.
"""

import logging
import re
from collections.abc import Iterator, Sequence

import sentencex  # type: ignore[import-untyped]  # it has no types

from app.service.protection import Span

logger = logging.getLogger(__name__)

_WHITE_SPACE = re.compile(r"\s")
_LINE_BREAKS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
_WINDOW_CHARACTERS = 4_000
"""What sentencex is given at once: its time grows with the square of it in some scripts."""
_CONTEXT_CHARACTERS = 100
"""How far it looks back when a window held no end of a sentence."""


def sentence_starts(text: str, language: str, whole: Sequence[Span] = ()) -> Iterator[int]:
    """Where the sentences of a text begin, the first one at 0; found as they are asked for.

    A sentence reaches to the beginning of the next, white space and line breaks included.

    Args:
        text: not empty.
        language: of the text, as ISO 639-1 has it.
        whole: spans in which no sentence begins, in order.
    """
    inside = iter(whole)
    span = next(inside, None)
    for start in _starts(text, language):
        while span is not None and span.end <= start:
            span = next(inside, None)
        if span is None or not span.begin < start:
            yield start


def _starts(text: str, language: str) -> Iterator[int]:
    begin = 0
    for line_break in _LINE_BREAKS.finditer(text):
        if line_break.start() > begin:
            yield from _starts_in_line(text, language, begin, line_break.start())
        elif begin == 0:
            yield 0  # a text that begins with line breaks
        begin = line_break.end()
    if begin < len(text):
        yield from _starts_in_line(text, language, begin, len(text))


def _starts_in_line(text: str, language: str, begin: int, end: int) -> Iterator[int]:
    """A window at a time: where a window's last sentence ends shows in the next one."""
    yield begin
    while begin < end:
        window_end = min(end, begin + _WINDOW_CHARACTERS)
        lengths = _sentence_lengths(text[begin:window_end], language)
        for length in lengths[:-1]:
            begin += length
            yield begin
        if window_end == end:
            return
        if len(lengths) == 1:  # a long sentence goes on
            begin = window_end - _CONTEXT_CHARACTERS


def _sentence_lengths(line: str, language: str) -> list[int]:
    # Its English rules panic at white space of several bytes, such as a no-break space.
    plain = _WHITE_SPACE.sub(" ", line)
    try:
        lengths = [len(sentence) for sentence in sentencex.segment(language, plain)]
    except BaseException as error:
        # A panic in Rust is no Exception. One sentence too long beats a request that fails.
        if type(error).__name__ != "PanicException":
            raise
        logger.warning("sentencex panicked at a line of %d characters", len(line))
        return [len(line)]
    return lengths if sum(lengths) == len(line) else [len(line)]
