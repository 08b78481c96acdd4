"""What a worker leaves: whole or not at all."""

import os
from pathlib import Path

import pytest

from app.corpus.results import ResultFolder, ShardResult
from app.corpus.translator import LineFailure, TranslatedLines

TRANSLATED = TranslatedLines(["un", "", "deux \N{SNOWMAN}"], [LineFailure(1, "too long")], 7)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    results = ResultFolder(tmp_path)
    assert not results.has(1)
    written = results.write(1, TRANSLATED)
    results.write(0, TranslatedLines(["zéro"], [], 2))
    assert results.has(1)
    assert results.read(1) == written == ShardResult(3, 7, [LineFailure(1, "too long")])
    assert list(results.translations(2)) == ["zéro", *TRANSLATED.translations]


def test_a_result_that_cannot_be_written_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ResultFolder(tmp_path).write(0, TRANSLATED)
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_was_cut_is_told(tmp_path: Path) -> None:
    results = ResultFolder(tmp_path)
    results.write(0, TRANSLATED)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes().rpartition(b"deux")[0])
    with pytest.raises(OSError, match="was damaged: remove it"):
        list(results.translations(1))


def test_tries_are_counted_until_they_are_forgotten(tmp_path: Path) -> None:
    results = ResultFolder(tmp_path)
    assert [results.count_try(3) for _ in range(3)] == [1, 2, 3]
    assert not results.has(3)
    results.forget_tries()
    assert results.count_try(3) == 1
