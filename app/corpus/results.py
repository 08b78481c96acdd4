"""What workers leave of each shard: one file, whole or not at all, which a restart finds."""

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from app.corpus.translator import LineFailure, TranslatedLines

_TRIES = ".tries"


@dataclass(frozen=True)
class ShardResult:
    """A shard's result but for the translations.

    Attributes:
        lines: how many.
        tokens: that were written for them.
        failures: by the line's place in the shard, from 0.
    """

    lines: int
    tokens: int
    failures: list[LineFailure]


class ResultFolder:
    """The results of all shards, one file for each.

    The file's first line is JSON and describes it; the translations follow, one a line.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, shard: int) -> bool:
        """Whether a shard is done."""
        return self._file(shard).exists()

    def write(self, shard: int, translated: TranslatedLines) -> ShardResult:
        """Write a shard's result; a worker that is killed here leaves none.

        Raises:
            OSError: the disk refuses.
        """
        result = ShardResult(len(translated.translations), translated.tokens, translated.failures)
        lines = [json.dumps(asdict(result)), *translated.translations]
        write_whole(self._file(shard), "".join(f"{line}\n" for line in lines).encode())
        return result

    def count_try(self, shard: int) -> int:
        """Note that a worker begins with a shard; the number of such notes.

        Raises:
            OSError: the disk refuses.
        """
        with self._file(shard).with_suffix(_TRIES).open("ab") as stream:
            stream.write(b".")
            return stream.tell()

    def forget_tries(self) -> None:
        """Begin to count anew."""
        for file in self.path.glob(f"*{_TRIES}"):
            file.unlink()

    def read(self, shard: int) -> ShardResult:
        """Describe a shard that is done.

        Raises:
            OSError: it cannot be read.
        """
        with self._file(shard).open("rb") as stream:
            fields = json.loads(stream.readline())
        failures = [LineFailure(**failure) for failure in fields["failures"]]
        return ShardResult(fields["lines"], fields["tokens"], failures)

    def translations(self, shards: int) -> Iterator[str]:
        """The translations of so many shards, in order.

        Raises:
            OSError: one cannot be read, or has been cut.
        """
        for shard in range(shards):
            header, *lines = self._file(shard).read_bytes().removesuffix(b"\n").split(b"\n")
            if len(lines) != json.loads(header)["lines"]:
                raise OSError(f"{self._file(shard)} was damaged: remove it, and start again")
            for line in lines:
                yield line.decode("utf-8")

    def _file(self, shard: int) -> Path:
        return self.path / f"{shard:08d}"


def write_whole(file: Path, content: bytes) -> None:
    """Write a file that is never seen half written, whoever is killed.

    Raises:
        OSError: the disk refuses.
    """
    # Two workers may be at one shard, where a lost one turns out to live.
    partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
