"""Translating a stream of lines: in order, many at once, in constant memory."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, BinaryIO

from app.exceptions import GatehouseError

Translate = Callable[[str], Awaitable[str]]
Advance = Callable[[int], object]
"""Told how many bytes of the input are done since the last call."""


class LineError(GatehouseError):
    """A line cannot be translated; everything before it has been written."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number}: {reason}")


@dataclass(frozen=True)
class _Line:
    """A line on its way.

    Attributes:
        number: from 1.
        size_bytes: as it stood in the input.
        translation: what comes of it.
    """

    number: int
    size_bytes: int
    translation: "asyncio.Task[str]"


async def translate_lines(
    source: BinaryIO,
    target: BinaryIO,
    translate: Translate,
    *,
    window: int,
    advance: Advance = lambda size_bytes: None,
) -> int:
    r"""Translate every line of one stream to a line of another.

    Lines are read ahead, so that as many are translated at once as the window allows, and
    written in their order. Whenever the next translation is not there yet, what is written is
    flushed: a person who types a line sees its translation.

    Args:
        source: UTF-8, lines ended by ``\n`` or ``\r\n``.
        target: for UTF-8.
        translate: one line without its end. Line ends in what it gives become spaces.
        window: lines that are read ahead of the one that is written, at most.
        advance: hears of the progress.

    Returns:
        Lines translated.

    Raises:
        LineError: a line is not UTF-8, or its translation failed.
        OSError: the streams fail; BrokenPipeError where nobody reads any more.
    """
    reading = _Reading(source, translate, window)
    count = 0
    try:
        while (line := await reading.next()) is not None:
            if not line.translation.done():
                target.flush()
            text = await _translation_of(line)
            target.write(one_line(text).encode() + b"\n")
            advance(line.size_bytes)
            count += 1
            if reading.is_behind:
                target.flush()
    finally:
        await reading.stop()
        with contextlib.suppress(BrokenPipeError):
            target.flush()
    return count


def one_line(text: str) -> str:
    """A translation without the line ends that a model may write."""
    return " ".join(text.splitlines())


async def _translation_of(line: _Line) -> str:
    try:
        return await line.translation
    except (GatehouseError, ValueError) as error:
        raise LineError(line.number, str(error)) from error


class _Reading:
    """Lines that are read ahead, each with its translation under way.

    They are read on a thread of its own, which may wait for a person to type for as long as it
    likes: it ends with the process.

    Args:
        source: as for :func:`translate_lines`, like the others.
        translate: one line.
        window: lines ahead, at most.
    """

    def __init__(self, source: BinaryIO, translate: Translate, window: int) -> None:
        self._source = source
        self._translate = translate
        self._lines: asyncio.Queue[_Line | Exception | None] = asyncio.Queue(window)
        self._tasks: set[asyncio.Task[str]] = set()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, name="lines", daemon=True).start()

    @property
    def is_behind(self) -> bool:
        """Whether there is nothing to take yet."""
        return self._lines.empty()

    async def next(self) -> _Line | None:
        """The next line, or None behind the last.

        Raises:
            LineError: it cannot be read.
            OSError: the source fails.
        """
        line = await self._lines.get()
        if isinstance(line, Exception):
            raise line
        return line

    async def stop(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _read(self) -> None:
        # Where the event loop has ended, nobody wants more lines.
        with contextlib.suppress(RuntimeError, concurrent.futures.CancelledError):
            self._hand_over(self._put(self._read_lines()))

    def _read_lines(self) -> Exception | None:
        """Read to the end; return what went wrong."""
        number = 0
        try:
            while content := self._source.readline():
                number += 1
                text = content.decode("utf-8").rstrip("\r\n")
                self._hand_over(self._begin(number, len(content), text))
        except UnicodeDecodeError as error:
            return LineError(number, f"not UTF-8: {error.reason}")
        except OSError as error:
            return error
        except ValueError as error:  # the source was closed, perhaps because a line failed
            return OSError(str(error))
        return None

    def _hand_over(self, step: Coroutine[Any, Any, None]) -> None:
        """Do something on the event loop; a full window holds the reading back."""
        try:
            future = asyncio.run_coroutine_threadsafe(step, self._loop)
        except RuntimeError:
            step.close()
            raise
        future.result()

    async def _begin(self, number: int, size_bytes: int, text: str) -> None:
        task = asyncio.ensure_future(_awaited(self._translate(text)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._put(_Line(number, size_bytes, task))

    async def _put(self, line: _Line | Exception | None) -> None:
        await self._lines.put(line)


async def _awaited(translation: Awaitable[str]) -> str:
    return await translation
