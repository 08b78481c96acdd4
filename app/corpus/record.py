"""What a corpus is translated from, with and how: a run goes on only with the same."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.corpus.inputs import CorpusFile, ScannedFile
from app.corpus.results import write_whole
from app.corpus.translator import CorpusOptions
from app.exceptions import StartupError
from models.checkpoint import checkpoint_name

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class CorpusRecord:
    """All that decides what the output is.

    Attributes:
        model: name and fingerprint of the checkpoint.
        options: of decoding and writing, by the name that a message gives them.
        shard_lines: lines of a shard.
        files: by output, the size and SHA-256 of each input, and its column.
    """

    model: dict[str, str]
    options: dict[str, Any]
    shard_lines: int
    files: dict[str, dict[str, Any]]

    @classmethod
    def of(
        cls,
        files: Sequence[CorpusFile],
        scanned: Sequence[ScannedFile],
        options: CorpusOptions,
        shard_lines: int,
        translation_column: str,
    ) -> "CorpusRecord":
        """The record of a run."""
        return cls(
            model={"name": checkpoint_name(options.checkpoint), "fingerprint": options.fingerprint},
            options={
                "beam size": options.beam_size,
                "length penalty": options.length_penalty,
                "precision": options.precision,
                "most characters of a line": options.limits.max_characters,
                "most tokens of a translation": options.limits.max_new_tokens,
                "translation column": translation_column,
            },
            shard_lines=shard_lines,
            files={
                file.output.as_posix(): {**asdict(content), "column": file.column}
                for file, content in zip(files, scanned, strict=True)
            },
        )

    def save(self, file: Path) -> None:
        """Write it.

        Raises:
            OSError: the disk refuses.
        """
        fields = {"format_version": _FORMAT_VERSION, **asdict(self)}
        write_whole(file, json.dumps(fields, indent=1).encode())

    @classmethod
    def load(cls, file: Path) -> "CorpusRecord":
        """Read what :meth:`save` wrote.

        Raises:
            StartupError: it is damaged, or of another version.
        """
        try:
            fields = json.loads(file.read_bytes())
            if fields.pop("format_version") == _FORMAT_VERSION:
                return cls(**fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StartupError(f"{file} cannot be read: {error}; give another --out") from None
        raise StartupError(f"{file} is of another version of Gatehouse: give another --out")

    def difference(self, before: "CorpusRecord") -> str | None:
        """What is different from an earlier run, in words; None where nothing is."""
        if self.model != before.model:
            return f"by the model {_model(before)}, not {_model(self)}"
        for name, value in self.options.items():
            if before.options.get(name) != value:
                return f"with another {name}: {before.options.get(name)}, not {value}"
        if self.shard_lines != before.shard_lines:
            return f"in shards of {before.shard_lines} lines, not {self.shard_lines}"
        for output in sorted(self.files.keys() | before.files.keys()):
            if output not in before.files:
                return f"without {output}"
            if output not in self.files:
                return f"with {output}, which is not among the inputs now"
            if self.files[output] != before.files[output]:
                return f"from another {output}: its content has changed"
        if list(self.files) != list(before.files):
            return "from the same files in another order"
        return None


def _model(record: CorpusRecord) -> str:
    return f"{record.model['name']} ({record.model['fingerprint'][:12]})"
