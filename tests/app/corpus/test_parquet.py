"""Parquet files; PyArrow comes with the extra ``ray``."""

from pathlib import Path
from typing import Any

import pytest

from app.corpus.inputs import CorpusFile, make_shards, read_span, scan
from app.corpus.joining import join
from app.corpus.parquet import refuse_column
from app.exceptions import StartupError

pa: Any = pytest.importorskip("pyarrow", reason="the extra ray, which has it, is not installed")
pq: Any = pytest.importorskip("pyarrow.parquet")

TEXTS = ["one", None, "", "two\nlines", "é", "six", "seven"]


@pytest.fixture
def file(tmp_path: Path) -> CorpusFile:
    path = tmp_path / "in.parquet"
    table = pa.table({"id": list(range(7)), "text": pa.array(TEXTS), "more": [[1]] * 7})
    pq.write_table(table, path, row_group_size=3, compression="zstd")
    return CorpusFile(path, Path("in.parquet"), "text")


@pytest.mark.parametrize("shard_lines", [1, 2, 3, 4, 7, 50])
def test_shards_are_all_rows_in_order(file: CorpusFile, shard_lines: int) -> None:
    ((found, spans),) = scan([file], shard_lines)
    assert found.lines == len(TEXTS)
    shards = make_shards(spans, shard_lines)
    assert len(shards) == -(-len(TEXTS) // shard_lines)
    rows = [row for shard in shards for span in shard for row in read_span(file, span)]
    assert rows == [None if text is None else text.encode() for text in TEXTS]


def test_the_output_is_the_input_with_a_column(file: CorpusFile, tmp_path: Path) -> None:
    ((found, _),) = scan([file], 2)
    translations = iter(["un", "", "", "deux", "", "six", "sept", "of the next file"])
    join([file], [found], translations, tmp_path / "out", "fr")
    assert list(translations) == ["of the next file"]
    before, after = pq.read_table(file.path), pq.read_table(tmp_path / "out" / "in.parquet")
    assert after.drop_columns("fr").equals(before)
    assert after["fr"].to_pylist() == ["un", None, "", "deux", "", "six", "sept"]
    metadata = pq.ParquetFile(tmp_path / "out" / "in.parquet").metadata
    assert [metadata.row_group(group).num_rows for group in range(3)] == [3, 3, 1]
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in.parquet"]


def test_a_file_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    file = CorpusFile(path, Path("in.parquet"), "text")
    ((found, spans),) = scan([file], 2)
    assert spans == []
    join([file], [found], iter([]), tmp_path / "out", "fr")
    assert pq.read_table(tmp_path / "out" / "in.parquet").column_names == ["text", "fr"]


def test_what_does_not_fit_is_told(file: CorpusFile, tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_text("no Parquet")
    for path, column, complaint in (
        (file.path, "nope", "has no column 'nope': name one with --column; there is: id, text"),
        (file.path, "id", "the column 'id' holds int64, not texts"),
        (tmp_path / "no.parquet", "text", "not a readable Parquet file"),
    ):
        with pytest.raises(StartupError, match=complaint):
            list(scan([CorpusFile(path, Path("x"), column)], 2))
    with pytest.raises(StartupError, match="has a column 'id' already"):
        refuse_column(file.path, "id")
