"""What became of a corpus, for people and as JSON."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from app.corpus.inputs import Span
from app.corpus.results import ShardResult, write_whole

MOST_FAILURES_SHOWN = 20


@dataclass(frozen=True)
class FailedLine:
    """A line that could not be translated.

    Attributes:
        file: as it was given.
        line: its number, from 1; of a row in a Parquet file likewise.
        reason: what is wrong with it.
    """

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class CorpusReport:
    """What became of a corpus.

    Attributes:
        files: how many.
        lines: in all of them.
        lines_before: those that were there from an earlier start.
        tokens: written since this start, ``<eos>`` included.
        seconds: that this took, the start of the workers included.
        workers: processes with one core each.
        failures: lines that could not be translated, of this start or an earlier one.
    """

    files: int
    lines: int
    lines_before: int
    tokens: int
    seconds: float
    workers: int
    failures: list[FailedLine]

    @property
    def tokens_per_second(self) -> float:
        """Tokens written in a second since this start."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def lines_per_second(self) -> float:
        """Lines translated in a second since this start."""
        return (self.lines - self.lines_before) / self.seconds if self.seconds else 0.0

    def text(self, out: Path, file: Path) -> str:
        """For people.

        Args:
            out: where the translations are.
            file: where :meth:`save` has put all failures.
        """
        lines = [f"{self.lines:,} lines of {self.files:,} files are translated in {out}"]
        if self.lines_before:
            lines.append(f"{self.lines_before:,} of them were there from an earlier start")
        if self.lines > self.lines_before:
            workers = _counted(self.workers, "worker")
            lines.append(
                f"{self.seconds:,.1f} seconds, {workers}: "
                f"{self.lines_per_second:,.1f} lines/s, {self.tokens_per_second:,.1f} tokens/s"
            )
        if self.failures:
            failed = _counted(len(self.failures), "line")
            lines.append(f"{failed} could not be translated, left empty:")
            shown = self.failures[:MOST_FAILURES_SHOWN]
            lines += [f"  {one.file}: line {one.line}: {one.reason}" for one in shown]
            if len(self.failures) > len(shown):
                lines.append(f"  and {len(self.failures) - len(shown):,} more: all are in {file}")
        return "\n".join(lines)

    def save(self, file: Path) -> None:
        """Write it as JSON.

        Raises:
            OSError: the disk refuses.
        """
        write_whole(file, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, file: Path) -> "CorpusReport":
        """Read what :meth:`save` wrote.

        Raises:
            OSError: it cannot be read.
        """
        fields = json.loads(file.read_bytes())
        failures = [FailedLine(**failure) for failure in fields.pop("failures")]
        return cls(**fields, failures=failures)


def failed_lines(
    names: Sequence[str],
    shards: Sequence[Sequence[Span]],
    results: Iterable[ShardResult],
) -> list[FailedLine]:
    """The lines that failed, by file and number.

    Args:
        names: of the files.
        shards: all of them.
        results: of each of them, in order.
    """
    failed = []
    for spans, result in zip(shards, results, strict=True):
        for failure in result.failures:
            index = failure.index
            for span in spans:
                if index < span.lines:
                    line = span.first_line + index + 1
                    failed.append(FailedLine(names[span.file], line, failure.reason))
                    break
                index -= span.lines
    return failed


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
