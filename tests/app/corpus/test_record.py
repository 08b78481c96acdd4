"""A run goes on with the same inputs, model and options, and otherwise says what is different."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.corpus.record import CorpusRecord
from app.exceptions import StartupError

RECORD = CorpusRecord(
    model={"name": "en-fr", "fingerprint": "a" * 64},
    options={"beam size": 4, "precision": "int8"},
    shard_lines=100,
    files={
        "a.txt": {"lines": 3, "size_bytes": 6, "sha256": "b" * 64, "column": None},
        "b.txt": {"lines": 1, "size_bytes": 2, "sha256": "c" * 64, "column": None},
    },
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    RECORD.save(tmp_path / "record.json")
    assert RECORD.difference(CorpusRecord.load(tmp_path / "record.json")) is None


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (
            replace(RECORD, model={"name": "en-fr", "fingerprint": "d" * 64}),
            "by the model en-fr (aaaaaaaaaaaa), not en-fr (dddddddddddd)",
        ),
        (
            replace(RECORD, options={"beam size": 1, "precision": "int8"}),
            "with another beam size: 4, not 1",
        ),
        (replace(RECORD, shard_lines=7), "in shards of 100 lines, not 7"),
        (replace(RECORD, files={**RECORD.files, "c.txt": {}}), "without c.txt"),
        (
            replace(RECORD, files={"a.txt": RECORD.files["a.txt"]}),
            "with b.txt, which is not among the inputs now",
        ),
        (
            replace(RECORD, files={**RECORD.files, "b.txt": {}}),
            "from another b.txt: its content has changed",
        ),
        (
            replace(RECORD, files=dict(reversed(RECORD.files.items()))),
            "from the same files in another order",
        ),
    ],
)
def test_a_difference_is_named(now: CorpusRecord, difference: str) -> None:
    assert now.difference(RECORD) == difference


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format_version": 1}'])
def test_a_damaged_record_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(StartupError, match="cannot be read"):
        CorpusRecord.load(tmp_path / "record.json")


def test_a_record_of_another_version_is_told(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"format_version": 2}')
    with pytest.raises(StartupError, match="of another version of Gatehouse"):
        CorpusRecord.load(tmp_path / "record.json")
