"""Parquet files: a column of texts read by rows, and the same file with their translations.

PyArrow comes with Ray Data; nothing else needs it, so it is imported here alone, where used.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from app.exceptions import StartupError

_BATCH_ROWS = 4_096


def count_rows(path: Path, column: str) -> int:
    """How many rows a file has.

    Raises:
        StartupError: it is no Parquet file, or has no such column of texts.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except pa.ArrowException as error:
        raise StartupError(f"{path}: not a readable Parquet file: {_first_line(error)}") from None
    if column not in schema.names:
        raise StartupError(
            f"{path} has no column {column!r}: name one with --column; "
            f"there is: {', '.join(schema.names)}"
        )
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise StartupError(f"{path}: the column {column!r} holds {kind}, not texts (string)")
    return int(rows)


def refuse_column(path: Path, column: str) -> None:
    """See to it that a file has no column of a name yet.

    Raises:
        StartupError: it has one.
    """
    import pyarrow.parquet as pq

    if column in pq.read_schema(path).names:
        raise StartupError(
            f"{path} has a column {column!r} already: "
            "name the translations' with --translation-column"
        )


def read_rows(path: Path, column: str, first: int, count: int) -> list[bytes | None]:
    """The texts of some rows as bytes, which need not be UTF-8.

    Only the row groups that hold them are read, and of these one column.

    Raises:
        OSError: the file cannot be read, or has become shorter.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        groups, skipped, before = [], 0, 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if before + rows <= first:
                skipped += rows
            elif before < first + count:
                groups.append(group)
            before += rows
        texts: list[bytes | None] = []
        position = skipped
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=[column]):
            begin, end = max(first - position, 0), first + count - position
            if begin < batch.num_rows and end > 0:
                part = batch.column(0).slice(begin, end - begin)
                texts += part.cast(pa.large_binary()).to_pylist()
            position += batch.num_rows
            if position >= first + count:
                break
    if len(texts) != count:
        raise OSError(f"{path} has changed while it was being translated")
    return texts


def write_with_column(
    source: Path, target: Path, column: str, translations: Iterator[str], name: str
) -> None:
    """Write a file again with the translations of one of its columns, row group by row group.

    Args:
        source: the file.
        target: the new one.
        column: of the texts; where there is none in a row, it has no translation either.
        translations: one for each row.
        name: of the new column.

    Raises:
        OSError: the disk refuses.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow.append(pa.field(name, pa.string()))
        with pq.ParquetWriter(target, schema, compression=_compression(file)) as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                new = pa.array(list(islice(translations, table.num_rows)), pa.string())
                is_missing = pc.is_null(table.column(column)).combine_chunks()
                new = pc.if_else(is_missing, pa.scalar(None, pa.string()), new)
                table = table.append_column(schema.field(name), new)
                writer.write_table(table, row_group_size=max(table.num_rows, 1))


def _compression(file: Any) -> str:
    if not file.num_row_groups:
        return "snappy"
    codec = file.metadata.row_group(0).column(0).compression
    return "none" if codec == "UNCOMPRESSED" else str(codec).lower()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
