"""Lines through a translator: order, how many at once, what happens when something fails."""

import asyncio
import io
import os
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from app.exceptions import InvalidRequestError
from app.lines import LineError, translate_lines


def _run(
    content: bytes, translate: Callable[[str], Awaitable[str]], window: int = 8
) -> tuple[list[str], list[int]]:
    target, sizes = io.BytesIO(), list[int]()

    async def run() -> int:
        return await translate_lines(
            io.BytesIO(content), target, translate, window=window, advance=sizes.append
        )

    count = asyncio.run(run())
    lines = target.getvalue().decode().split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(sizes) == count
    return lines, sizes


def test_lines_keep_their_order_whatever_comes_first() -> None:
    chooser = random.Random(1)

    async def translate(line: str) -> str:
        for _ in range(chooser.randrange(5)):
            await asyncio.sleep(0)
        return line.upper()

    content = "".join(f"line {number}\n" for number in range(300)).encode()
    lines, sizes = _run(content, translate)
    assert lines == [f"LINE {number}" for number in range(300)]
    assert sum(sizes) == len(content)


def test_as_many_are_under_way_as_the_window_allows_and_no_more() -> None:
    running, most = 0, 0
    is_full = asyncio.Event()

    async def translate(line: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if most >= 16:
            is_full.set()
        await is_full.wait()  # for ever, if the window is not used
        await asyncio.sleep(0)
        running -= 1
        return line

    _run(b"a\n" * 200, translate, window=16)
    assert 16 <= most <= 17  # the one that is written is under way, too


def test_line_ends_in_a_translation_and_at_the_end_of_the_input() -> None:
    async def translate(line: str) -> str:
        return f"[{line}]\nmore\u2028still"

    lines, _ = _run("a\r\n\n  é \nlast".encode(), translate)
    assert lines == [f"[{text}] more still" for text in ("a", "", "  é ", "last")]


def test_a_failure_names_its_line_and_what_came_before_is_written() -> None:
    async def translate(line: str) -> str:
        if line == "bad":
            raise InvalidRequestError("text", "too long")
        await asyncio.sleep(0.01)
        return line

    target = io.BytesIO()
    source = io.BytesIO(b"one\ntwo\nbad\n" + b"more\n" * 100)
    with pytest.raises(LineError, match=r"line 3: .*too long"):
        asyncio.run(translate_lines(source, target, translate, window=4))
    assert target.getvalue() == b"one\ntwo\n"


def test_a_source_may_be_closed_once_a_line_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Source(io.BytesIO):
        """Gives a line, and the next one only when it has been closed."""

        def readline(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                is_closed.wait()
            return super().readline(size)

    async def translate(line: str) -> str:
        raise InvalidRequestError("text", "too long")

    is_closed, died = threading.Event(), list[threading.ExceptHookArgs]()
    others = set(threading.enumerate())  # those of other tests may still be at their end
    monkeypatch.setattr(threading, "excepthook", died.append)
    source = Source(b"one\ntwo\n")
    with pytest.raises(LineError, match="line 1"):
        asyncio.run(translate_lines(source, io.BytesIO(), translate, window=4))
    (reader,) = set(threading.enumerate()) - others
    source.close()
    is_closed.set()
    reader.join()
    assert not died


def test_a_source_that_is_closed_too_early_is_an_error() -> None:
    async def translate(line: str) -> str:
        return line

    source = io.BytesIO(b"one\n")
    source.close()
    with pytest.raises(OSError, match="closed file"):
        asyncio.run(translate_lines(source, io.BytesIO(), translate, window=4))


def test_a_person_who_types_sees_each_translation_at_once() -> None:
    async def translate(line: str) -> str:
        return line.upper()

    source, typed = os.pipe()
    seen, target = os.pipe()

    def run() -> None:
        with os.fdopen(source, "rb") as lines, os.fdopen(target, "wb") as output:
            asyncio.run(translate_lines(lines, output, translate, window=4))

    thread = threading.Thread(target=run)
    thread.start()
    for word in (b"one", b"two"):
        os.write(typed, word + b"\n")
        assert os.read(seen, 100) == word.upper() + b"\n"
    os.close(typed)
    thread.join()
    os.close(seen)


def test_a_translation_that_is_ended_before_it_begins_is_not_half_begun() -> None:
    """A coroutine that is made and never awaited is a warning in a person's terminal."""
    begun, ended = 0, 0

    def translate(line: str) -> Awaitable[str]:
        nonlocal begun
        begun += 1

        async def translation() -> str:
            nonlocal ended
            ended += 1
            return line

        return translation()

    class Target(io.BytesIO):
        def __init__(self, lines: int) -> None:
            super().__init__()
            self._left = lines

        def write(self, content: Any, /) -> int:
            if not self._left:
                raise BrokenPipeError
            self._left -= 1
            return len(content)

    for lines in [*range(40)] * 10:  # where the reader stands when it fails is left to chance
        source = io.BytesIO(b"a\n" * 1000)
        with pytest.raises(BrokenPipeError):
            asyncio.run(translate_lines(source, Target(lines), translate, window=4))
    assert begun == ended


def test_a_reader_that_has_enough_ends_it() -> None:
    async def translate(line: str) -> str:
        return line * 1000

    seen, target = os.pipe()
    os.close(seen)
    with pytest.raises(BrokenPipeError), os.fdopen(target, "wb", 0) as output:
        asyncio.run(translate_lines(io.BytesIO(b"a\n" * 1000), output, translate, window=4))
