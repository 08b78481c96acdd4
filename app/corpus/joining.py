"""From the results of shards to one output for each input."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.corpus import parquet
from app.corpus.inputs import CorpusFile, ScannedFile


def join(
    files: Sequence[CorpusFile],
    scanned: Sequence[ScannedFile],
    translations: Iterator[str],
    out: Path,
    translation_column: str,
) -> None:
    """Write every output, each whole or not at all.

    Args:
        files: of the corpus.
        scanned: what they hold.
        translations: of all lines of all files, in order.
        out: the output folder.
        translation_column: name of the column that Parquet files get.

    Raises:
        OSError: the disk refuses, or a file has changed.
    """
    for file, content in zip(files, scanned, strict=True):
        own = itertools.islice(translations, content.lines)
        target = out / file.output
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            if file.column is None:
                with partial.open("wb") as stream:
                    stream.writelines(f"{line}\n".encode() for line in own)
            else:
                parquet.write_with_column(file.path, partial, file.column, own, translation_column)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
