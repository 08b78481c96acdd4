"""The files of a corpus: which there are, how many lines each has, and where shards begin.

Shards have the same number of lines, counted through all files in their order, so that many
small files make no more of them than one large file. A shard is one or more spans: stretches of
lines of one file.

Ray Data's own ``read_text`` has each file whole in memory, knows no line's number, and fails for
a whole file where one byte is wrong. So a span is read by whoever translates it, from its place.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.corpus import parquet
from app.exceptions import StartupError

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z")
_CHUNK_BYTES = 1 << 22
_NEWLINE = 10


@dataclass(frozen=True)
class CorpusFile:
    """A file to translate.

    Attributes:
        path: where it is.
        output: where its translation goes, below the output folder.
        column: of the texts in a Parquet file; None for a file of lines.
    """

    path: Path
    output: Path
    column: str | None = None


class Span(NamedTuple):
    """A stretch of lines of one file; rows of a Parquet file are its lines.

    Attributes:
        file: index of the file.
        first_line: its first one, from 0.
        lines: how many.
        offset: where it begins in a file of lines, in bytes.
        size_bytes: how far it goes there.
    """

    file: int
    first_line: int
    lines: int
    offset: int = 0
    size_bytes: int = 0


@dataclass(frozen=True)
class ScannedFile:
    """What a file turned out to hold.

    Attributes:
        lines: how many.
        size_bytes: its size.
        sha256: of its content.
    """

    lines: int
    size_bytes: int
    sha256: str


def find_files(inputs: Sequence[Path], out: Path, column: str) -> list[CorpusFile]:
    """The files of the corpus, folders searched through, in the order of their names.

    Args:
        inputs: files and folders.
        out: the output folder.
        column: of the texts in Parquet files.

    Raises:
        StartupError: there is none, one cannot be translated, or two have one output.
    """
    files: list[CorpusFile] = []
    for path in inputs:
        if path.is_dir():
            if out.resolve().is_relative_to(path.resolve()):
                raise StartupError(f"--out {out} lies in {path}, which is to be translated")
            found = sorted(file for file in path.rglob("*") if _is_visible_file(file, path))
            files += [_corpus_file(file, file.relative_to(path), column) for file in found]
        elif path.is_file():
            files.append(_corpus_file(path, Path(path.name), column))
        else:
            raise StartupError(f"{path}: there is no such file or folder")
    if not files:
        raise StartupError("there is no file to translate")
    by_output: dict[Path, CorpusFile] = {}
    for file in files:
        other = by_output.setdefault(file.output, file)
        if other is not file:
            raise StartupError(
                f"{other.path} and {file.path} would both be written to {out / file.output}"
            )
        if (out / file.output).resolve() == file.path.resolve():
            raise StartupError(f"{file.path} would be overwritten: give another --out")
    return files


def _is_visible_file(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not hidden and file.is_file()


def _corpus_file(path: Path, output: Path, column: str) -> CorpusFile:
    if path.suffix.lower() in PACKED:
        raise StartupError(f"{path} is packed: unpack it first, its lines cannot be told apart")
    return CorpusFile(path, output, column if path.suffix.lower() == ".parquet" else None)


def scan(files: Sequence[CorpusFile], shard_lines: int) -> Iterator[tuple[ScannedFile, list[Span]]]:
    """Read through the files once: what each holds, and its spans.

    Args:
        files: of the corpus.
        shard_lines: lines of each shard but the last.

    Raises:
        StartupError: a file cannot be read, or has no such column.
    """
    lines_before = 0
    for index, file in enumerate(files):
        room = shard_lines - lines_before % shard_lines
        try:
            if file.column is None:
                scanned, starts = _scan_lines(file.path, room, shard_lines)
            else:
                scanned, starts = _scan_rows(file, room, shard_lines)
        except OSError as error:
            raise StartupError(f"{file.path}: {error.strerror or error}") from error
        ends = [*starts[1:], (scanned.lines, scanned.size_bytes)]
        spans = [
            Span(index, line, next_line - line, offset, next_offset - offset)
            for (line, offset), (next_line, next_offset) in zip(starts, ends, strict=True)
            if next_line > line
        ]
        lines_before += scanned.lines
        yield scanned, spans


def make_shards(spans: Sequence[Span], shard_lines: int) -> list[tuple[Span, ...]]:
    """Put spans together to shards, in order."""
    shards: list[list[Span]] = []
    room = 0
    for span in spans:
        if not room:
            shards.append([])
            room = shard_lines
        shards[-1].append(span)
        room -= span.lines
    return [tuple(shard) for shard in shards]


def _scan_lines(
    path: Path, room: int, shard_lines: int
) -> tuple[ScannedFile, list[tuple[int, int]]]:
    """The file, and the number and the place of each line that begins a span."""
    digest = hashlib.sha256()
    starts = [(0, 0)]
    lines = size_bytes = 0
    last = b""
    boundaries = itertools.count(room, shard_lines)
    boundary = next(boundaries)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == _NEWLINE)
            while boundary <= lines + len(ends):
                starts.append((boundary, size_bytes + int(ends[boundary - lines - 1]) + 1))
                boundary = next(boundaries)
            lines += len(ends)
            size_bytes += len(chunk)
            last = chunk[-1:]
    if last not in (b"", b"\n"):
        lines += 1
    return ScannedFile(lines, size_bytes, digest.hexdigest()), starts


def _scan_rows(
    file: CorpusFile, room: int, shard_lines: int
) -> tuple[ScannedFile, list[tuple[int, int]]]:
    assert file.column is not None
    lines = parquet.count_rows(file.path, file.column)
    with file.path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        size_bytes = os.fstat(stream.fileno()).st_size
    starts = [(0, 0), *((line, 0) for line in range(room, lines, shard_lines))]
    return ScannedFile(lines, size_bytes, sha256), starts


def read_span(file: CorpusFile, span: Span) -> list[bytes | None]:
    """The lines of a span without their ends; None where a row of a Parquet file has no text.

    Raises:
        OSError: the file cannot be read, or has become shorter.
    """
    if file.column is not None:
        return parquet.read_rows(file.path, file.column, span.first_line, span.lines)
    with file.path.open("rb") as stream:
        stream.seek(span.offset)
        content = stream.read(span.size_bytes)
    lines = content.removesuffix(b"\n").split(b"\n")
    if len(lines) != span.lines:
        raise OSError(f"{file.path} has changed while it was being translated")
    return [line.rstrip(b"\r\n") for line in lines]
