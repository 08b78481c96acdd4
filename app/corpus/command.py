"""``gatehouse translate --ray``: whole corpora, on every core of one machine or of a cluster."""

import importlib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.catalog import Catalog, ServedModel, read_checkpoints
from app.corpus import parquet
from app.corpus.inputs import CorpusFile, ScannedFile, Span, find_files, make_shards, scan
from app.corpus.joining import join
from app.corpus.record import CorpusRecord
from app.corpus.report import CorpusReport, failed_lines
from app.corpus.results import ResultFolder
from app.corpus.translator import CorpusOptions
from app.engine.device import resolve_precision
from app.exceptions import StartupError
from app.service.service import limits_of
from app.service.translation import TranslationRequest
from app.settings import Settings

STATE_FOLDER = ".gatehouse"
"""Below the output folder: the record, the results of shards, the report."""


@dataclass(frozen=True)
class CorpusRequest:
    """What the command line asks for.

    Attributes:
        inputs: files and folders.
        out: the output folder.
        column: of the texts in Parquet files.
        translation_column: that Parquet files get.
        shard_lines: lines that a worker does at a time.
        address: of a Ray cluster, or None for this machine.
        workers: how many; None: one for each core.
    """

    inputs: tuple[Path, ...]
    out: Path
    column: str
    translation_column: str
    shard_lines: int
    address: str | None
    workers: int | None


@dataclass(frozen=True)
class _Corpus:
    """The files and their shards; the names of the files are those that were given."""

    names: Sequence[str]
    files: Sequence[CorpusFile]
    scanned: list[ScannedFile] = field(default_factory=list)
    shards: list[tuple[Span, ...]] = field(default_factory=list)

    @property
    def lines(self) -> int:
        return sum(content.lines for content in self.scanned)


def translate_corpus(
    settings: Settings, request: CorpusRequest, translation: TranslationRequest
) -> CorpusReport:
    """Translate a corpus, or what an earlier start has left of it; report on standard output.

    Args:
        settings: of the service, whose limits and precision hold.
        request: the files.
        translation: the model and how to decode; its texts do not matter.

    Raises:
        StartupError: Ray is not installed or not to be reached, or this cannot be translated.
        WorkersFailedError: the workers could not do it.
    """
    _require_ray()
    options = _options(settings, translation)
    files = find_files(request.inputs, request.out, request.column)
    state = request.out / STATE_FOLDER
    try:
        with _locked(state):
            corpus = _read(files, request)
            record = CorpusRecord.of(
                files, corpus.scanned, options, request.shard_lines, request.translation_column
            )
            _claim(state / "record.json", record, request.out)
            return _translate(request, options, corpus, state)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise StartupError(f"{where}{error.strerror or error}") from error


def _require_ray() -> None:
    try:
        importlib.import_module("ray.data")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise StartupError(
            f"--ray needs Ray Data, of which {package} is not installed: "
            "in a checkout run pip install -c constraints.txt -e '.[ray]'"
        ) from None


def _options(settings: Settings, translation: TranslationRequest) -> CorpusOptions:
    """The model that fits, and how it is to decode."""
    import torch

    if settings.device.startswith("cuda"):
        raise StartupError("--ray translates on processors: leave --device away")
    precision = resolve_precision(settings.precision, torch.device("cpu"))
    found = read_checkpoints(settings.checkpoints_dir, settings.models)
    catalog = Catalog(
        [ServedModel(info, "cpu", precision, 0.0) for info in found],
        default_translate=settings.default_translate_model,
    )
    model = catalog.for_translation(translation.model, translation.source, translation.target)
    return CorpusOptions(
        checkpoint=model.info.path.resolve(),
        fingerprint=model.info.fingerprint,
        precision=precision,
        beam_size=translation.beam_size,
        length_penalty=translation.length_penalty,
        limits=limits_of(settings),
        row_budget=settings.row_budget,
    )


def _locked(state: Path) -> Any:
    """Hold the output folder; the lock goes with the process, however that ends."""
    from filelock import FileLock, Timeout

    state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state / "lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        raise StartupError(f"another process is translating into {state.parent}") from None


def _read(files: Sequence[CorpusFile], request: CorpusRequest) -> _Corpus:
    names = [str(file.path) for file in files]
    # Workers need not share the working folder.
    files = [replace(file, path=file.path.resolve()) for file in files]
    corpus = _Corpus(names, files)
    spans: list[Span] = []
    for content, own in scan(files, request.shard_lines):
        corpus.scanned.append(content)
        spans += own
    for file in files:
        if file.column is not None:
            parquet.refuse_column(file.path, request.translation_column)
    corpus.shards.extend(make_shards(spans, request.shard_lines))
    return corpus


def _claim(file: Path, record: CorpusRecord, out: Path) -> None:
    """See to it that what lies in the output folder belongs to this.

    Raises:
        StartupError: it does not.
    """
    if file.exists():
        difference = record.difference(CorpusRecord.load(file))
        if difference is not None:
            raise StartupError(f"{out} was translated {difference}: give another --out")
        return
    for output in record.files:
        if (out / output).exists():
            raise StartupError(f"{out / output} is there already: give another --out")
    record.save(file)


def _translate(
    request: CorpusRequest, options: CorpusOptions, corpus: _Corpus, state: Path
) -> CorpusReport:
    report_file = state / "report.json"
    outputs = [request.out / file.output for file in corpus.files]
    if report_file.exists() and all(output.exists() for output in outputs):
        report = CorpusReport.load(report_file)
        print(report.text(request.out, report_file))
        return report
    results = ResultFolder(state / "shards")
    results.path.mkdir(exist_ok=True)
    lines_before, tokens, seconds, workers = _translate_missing(request, options, corpus, results)
    numbers = range(len(corpus.shards))
    report = CorpusReport(
        files=len(corpus.files),
        lines=corpus.lines,
        lines_before=lines_before,
        tokens=tokens,
        seconds=seconds,
        workers=workers,
        failures=failed_lines(corpus.names, corpus.shards, map(results.read, numbers)),
    )
    join(
        corpus.files,
        corpus.scanned,
        results.translations(len(corpus.shards)),
        request.out,
        request.translation_column,
    )
    report.save(report_file)
    shutil.rmtree(results.path)
    print(report.text(request.out, report_file))
    return report


def _translate_missing(
    request: CorpusRequest, options: CorpusOptions, corpus: _Corpus, results: ResultFolder
) -> tuple[int, int, float, int]:
    """Translate the shards that have no result yet.

    Returns:
        Lines that had been done before; tokens, seconds and workers of the rest.
    """
    from tqdm import tqdm

    missing = {n: spans for n, spans in enumerate(corpus.shards) if not results.has(n)}
    lines_missing = sum(span.lines for spans in missing.values() for span in spans)
    lines_before = corpus.lines - lines_missing
    if lines_before:
        print(
            f"going on: {lines_before:,} of {corpus.lines:,} lines are translated",
            file=sys.stderr,
        )
    if not missing:
        return lines_before, 0, 0.0, 0
    from app.corpus.cluster import connected, translate_shards

    tokens = 0
    results.forget_tries()
    with connected(request.address, request.workers) as most_workers:
        workers = min(most_workers, len(missing))
        started_at = time.monotonic()
        with tqdm(
            total=corpus.lines,
            initial=lines_before,
            unit="line",
            unit_scale=True,
            disable=None,  # where stderr is no terminal
        ) as bar:
            for lines, written in translate_shards(
                corpus.files, missing, results.path.resolve(), options, workers
            ):
                tokens += written
                bar.update(lines)
        return lines_before, tokens, time.monotonic() - started_at, workers
