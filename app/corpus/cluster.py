"""Shards translated by Ray Data: on the cores of this machine, or of a cluster.

Which worker translates what, the restart of those that die, and their shards done again, are
Ray's. Imported where ``--ray`` asks for it alone.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from app.corpus.inputs import CorpusFile, Span, read_span
from app.corpus.results import ResultFolder, ShardResult
from app.corpus.translator import CorpusOptions, LineTranslator
from app.engine.loading import available_cores
from app.exceptions import GatehouseError, StartupError

_MOST_TRIES = 5
"""Of one shard. Ray does one again as often as it takes, and some may kill every worker."""
_MOST_BLOCKS = 10_000
"""Of Ray Data's input: a block has one shard, or several where there are more than this."""
_KNOCK_SECONDS = 5.0
_OBJECT_STORE_BYTES = 128 * 2**20
"""No text passes through it."""


class WorkersFailedError(GatehouseError):
    """The workers could not do it; what they have done stays."""


@contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[int]:
    """A Ray cluster; without an address one on this machine, for as long as this lasts.

    Args:
        address: of the cluster.
        workers: how many are wanted; None: one for each core.

    Yields:
        How many there can be.

    Raises:
        StartupError: it cannot be reached.
    """
    options: dict[str, Any] = {"address": address or "local"}
    if address is None:
        options |= {
            "num_cpus": workers or available_cores(),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    _prepare_environment()
    try:
        _knock(address)
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise StartupError(f"Ray cannot be started or reached: {_first_line(error)}") from error
    try:
        yield workers or max(int(ray.cluster_resources().get("CPU", 0)), 1)
    finally:
        ray.shutdown()


def translate_shards(
    files: Sequence[CorpusFile],
    shards: dict[int, tuple[Span, ...]],
    results: Path,
    options: CorpusOptions,
    workers: int,
) -> Iterator[tuple[int, int]]:
    """Translate shards, in any order.

    Args:
        files: of the corpus; every worker sees them under these paths.
        shards: by their numbers.
        results: the folder for :class:`ResultFolder`, which every worker sees, too.
        options: how to translate.
        workers: how many, with one core each.

    Yields:
        Lines and tokens of each shard when its result is written.

    Raises:
        WorkersFailedError: a worker failed at more than a line.
    """
    _silence_ray_data()
    rows = [{"shard": number, "spans": json.dumps(spans)} for number, spans in shards.items()]
    done = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map_batches(
        _ShardWorker,
        fn_constructor_args=(list(files), results, options),
        batch_size=1,
        batch_format="numpy",
        # One shard at a time: a worker that has none is not to wait for another's second.
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
    )
    try:
        for row in done.iter_rows():
            if row["error"]:
                raise WorkersFailedError(f"a worker failed: {row['error']}")
            yield int(row["lines"]), int(row["tokens"])
    except RayError as error:
        raise WorkersFailedError(f"a worker failed: {_first_line(error)}") from error


class _ShardWorker:
    """Holds the model on one core; Ray calls it with one shard at a time.

    What goes wrong comes back as a sentence. Ray would tell of an exception in several pages.
    """

    def __init__(self, files: Sequence[CorpusFile], results: Path, options: CorpusOptions) -> None:
        self._files = files
        self._results = ResultFolder(results)
        self._options = options
        self._translator: LineTranslator | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        spans = [Span(*fields) for fields in json.loads(batch["spans"][0])]
        try:
            result = self._translate(int(batch["shard"][0]), spans)
        except Exception as error:
            sentence = _first_line(error)
            if not isinstance(error, GatehouseError | OSError):
                sentence = f"{type(error).__name__}: {sentence}"
            return {"lines": [0], "tokens": [0], "error": [sentence]}
        return {"lines": [result.lines], "tokens": [result.tokens], "error": [""]}

    def _translate(self, shard: int, spans: Sequence[Span]) -> ShardResult:
        # Ray does a shard again whose worker died, be it after the result was written.
        if self._results.has(shard):
            return self._results.read(shard)
        if self._results.count_try(shard) > _MOST_TRIES:
            raise WorkersFailedError(
                f"{_MOST_TRIES} workers have died over {self._files[spans[0].file].path}, "
                f"from line {spans[0].first_line + 1}"
            )
        self._translator = self._translator or LineTranslator(self._options)
        lines = [line for span in spans for line in read_span(self._files[span.file], span)]
        return self._results.write(shard, self._translator.translate(lines))


def _prepare_environment() -> None:
    """Have a Ray that starts here report nothing to its makers, and the terminal be ours.

    At the level below, Ray's core warns of the way in which Ray Data starts every worker.
    Whoever sets these variables is heeded.
    """
    # They are read by the library, not by us.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # noqa: TID251
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # noqa: TID251


def _knock(address: str | None) -> None:
    """See whether somebody listens at HOST:PORT: Ray tries for minutes, and tells of each try.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


def _silence_ray_data() -> None:
    """Keep Ray Data's own progress and plans off the terminal, which shows ours."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
