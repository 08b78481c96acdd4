"""What is told at the end."""

from dataclasses import replace
from pathlib import Path

from app.corpus.inputs import Span
from app.corpus.report import CorpusReport, FailedLine, failed_lines
from app.corpus.results import ShardResult
from app.corpus.translator import LineFailure

REPORT = CorpusReport(2, 3_000, 1_000, 16_000, 8.0, 2, [FailedLine("a.txt", 7, "not UTF-8")])


def test_failures_have_the_numbers_of_their_lines() -> None:
    shards = [(Span(0, 0, 3),), (Span(0, 3, 1), Span(1, 0, 2))]
    results = [
        ShardResult(3, 0, [LineFailure(0, "x"), LineFailure(2, "y")]),
        ShardResult(3, 0, [LineFailure(0, "z"), LineFailure(1, "u"), LineFailure(2, "v")]),
    ]
    assert failed_lines(["a", "b"], shards, results) == [
        FailedLine("a", 1, "x"),
        FailedLine("a", 3, "y"),
        FailedLine("a", 4, "z"),
        FailedLine("b", 1, "u"),
        FailedLine("b", 2, "v"),
    ]


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    REPORT.save(tmp_path / "report.json")
    assert CorpusReport.load(tmp_path / "report.json") == REPORT


def test_the_words_of_a_report() -> None:
    assert REPORT.text(Path("out"), Path("report.json")).splitlines() == [
        "3,000 lines of 2 files are translated in out",
        "1,000 of them were there from an earlier start",
        "8.0 seconds, 2 workers: 250.0 lines/s, 2,000.0 tokens/s",
        "1 line could not be translated, left empty:",
        "  a.txt: line 7: not UTF-8",
    ]
    many = replace(REPORT, failures=REPORT.failures * 30)
    assert many.text(Path("out"), Path("r")).endswith("\n  and 10 more: all are in r")
