"""Translating a stream of lines: in order, many at once, in constant memory."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import BinaryIO

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
    translation: asyncio.Task[str]


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
        self._lines: asyncio.Queue[_Line | Exception | None] = asyncio.Queue()
        self._places = threading.Semaphore(window)
        self._tasks: set[asyncio.Task[str]] = set()
        self._has_ended = False
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
        self._places.release()
        return line

    async def stop(self) -> None:
        """End what is under way."""
        self._has_ended = True
        self._places.release()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _read(self) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            end = self._read_lines()
            self._loop.call_soon_threadsafe(self._lines.put_nowait, end)

    def _read_lines(self) -> Exception | None:
        """Read to the end; return what went wrong."""
        number = 0
        try:
            while content := self._source.readline():
                number += 1
                text = content.decode("utf-8").rstrip("\r\n")
                self._places.acquire()
                if self._has_ended:
                    break
                self._loop.call_soon_threadsafe(self._begin, number, len(content), text)
        except UnicodeDecodeError as error:
            return LineError(number, f"not UTF-8: {error.reason}")
        except OSError as error:
            return error
        except ValueError as error:  # the source was closed, perhaps because a line failed
            return OSError(str(error))
        return None

    def _begin(self, number: int, size_bytes: int, text: str) -> None:
        if self._has_ended:
            return
        task = asyncio.create_task(_translated(self._translate, text))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._lines.put_nowait(_Line(number, size_bytes, task))


async def _translated(translate: Translate, text: str) -> str:
    # Asked for in here: a task that is ended before its first step leaves nothing half begun.
    return await translate(text)
