"""Gatehouse and its peers under load: one run, one checkpoint, one machine.

Each server is started in turn, asked for some translations to compare, warmed up, and then sent
requests for ``/translate`` that come at random moments, whether or not it has answered the
others. The peers decode the same model with PyTorch: plain FastAPI one request at a time,
LitServe and mosec in dynamic batches, each in the better of two arrangements: one process with
a thread on each core, or one process for each core. Needs Linux, and the extra ``bench``.
"""

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contestants import GATEHOUSE, PATH, Contestant, Setup, all_contestants, gatehouse
from benchmarks.offline import OfflineFigures
from benchmarks.processes import ROOT, ServerProcess, free_port, running_server
from benchmarks.report import finish, markdown_table
from benchmarks.saturation import saturation
from benchmarks.sentences import add_sentence_options, read_sentences
from benchmarks.trial import DISTURBED_CORES, SHARES, Figures, Options, Trial
from models.checkpoint import read_checkpoint

DEFAULT_SERVERS = (
    GATEHOUSE,
    *(
        f"{system}-{p}"
        for system in ("plain", "litserve", "mosec")
        for p in ("float32", "bfloat16")
    ),
)
LIMIT_MS = 250.0
"""Of the 97th percentile: what MLPerf Inference asks of translation servers."""
COMPARED_SENTENCES = 50
COMPARED_BATCH = 10
"""Sentences that are asked for at once, so that peers answer them in batches."""

_STATUS_TERMINATED = 143


@dataclass
class Result:
    """A server and its figures.

    Attributes:
        contestant: which server.
        precision: what it says that it computes in.
        texts: its answers to the sentences that are compared.
        figures: its measurements.
    """

    contestant: Contestant
    precision: str
    texts: list[str]
    figures: Figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints" / "en-fr")
    parser.add_argument(
        "--servers",
        nargs="+",
        default=DEFAULT_SERVERS,
        metavar="NAME",
        help=f"of {', '.join(all_contestants(Setup(Path(), 1, 1)))} (default: all but two)",
    )
    parser.add_argument("--beam", type=int, default=1, help="beam size; 1 (the default) is greedy")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--quick", action="store_true", help="a rough look, in a third of the time")
    parser.add_argument("--cores", type=int, default=2, help="of servers and load generator")
    parser.add_argument(
        "--workers",
        type=int,
        help="model processes of the peers that batch (default: the better of one and one a core)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the sentences and the load")
    add_sentence_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print.

    Returns:
        The exit status.
    """
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores]
    # Servers are stopped on the way out, however it comes to that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_STATUS_TERMINATED))
    # Inherited by every server and by the load generator.
    os.sched_setaffinity(0, cores)
    setup = Setup(arguments.checkpoint.resolve(), arguments.beam, len(cores), arguments.workers)
    chosen = _choose(all_contestants(setup), arguments.servers)
    info = read_checkpoint(setup.checkpoint)
    sentences = read_sentences(arguments, info)
    options = Options(
        seconds=1.5 if arguments.quick else arguments.seconds,
        limit_ms=LIMIT_MS,
        steps=1 if arguments.quick else 3,
        cores=cores,
        seed=arguments.seed,
        patience_seconds=0.0 if arguments.quick else 30.0,
    )
    results = []
    for arrangements in chosen:
        print(f"measuring {arrangements[0].name} ...", file=sys.stderr, flush=True)
        contestant = _better(arrangements, sentences, options)
        results.append(_measure(contestant, sentences, options))
    figures: dict[str, Any] = {
        "checkpoint": info.name,
        "fingerprint": info.fingerprint,
        "beam": arguments.beam,
        "cores": len(cores),
        "sentences": len(sentences),
        "seconds": options.seconds,
    }
    print(results_table(results), end="\n\n")
    _warn(results)
    figures["servers"] = {
        result.contestant.name: {
            "precision": result.precision,
            "workers": result.contestant.workers,
            "same_text": same_text_share(results[0].texts, result.texts),
            **as_json(asdict(result.figures)),
        }
        for result in results
    }
    figures["ratios"] = ratios(results)
    if any(result.contestant.name == GATEHOUSE for result in results) and len(cores) > 1:
        print("measuring served against offline throughput ...", file=sys.stderr, flush=True)
        figures["served_and_offline"] = _compare_with_offline(setup, sentences, options)
    for name, value in figures["ratios"].items():
        print(f"{name}: {value:.2f}")
    finish("serving", figures)
    return 0


def _choose(every: dict[str, list[Contestant]], names: Sequence[str]) -> list[list[Contestant]]:
    unknown = [name for name in names if name not in every]
    if unknown:
        raise SystemExit(f"unknown server {unknown[0]!r}: there are {', '.join(every)}")
    return [arrangements for name, arrangements in every.items() if name in names]


@contextlib.contextmanager
def _serving(contestant: Contestant, sentence: str) -> Iterator[ServerProcess]:
    """The server, once it has answered."""
    port = free_port()
    command = [*contestant.command, "--port", str(port)]
    with running_server(command, contestant.environment, port) as server:
        server.wait_until_it_answers(PATH, contestant.body(sentence))
        yield server


def _better(
    arrangements: Sequence[Contestant], sentences: Sequence[str], options: Options
) -> Contestant:
    """The arrangement that answers the most, so that no peer is measured in its worse one."""
    if len(arrangements) == 1:
        return arrangements[0]
    found = []
    for contestant in arrangements:
        with _serving(contestant, sentences[0]) as server:
            found.append(Trial(server, contestant, sentences, options).probe())
        print(f"  {found[-1]:.0f} requests/s, workers: {contestant.workers}", file=sys.stderr)
    return arrangements[found.index(max(found))]


def _measure(contestant: Contestant, sentences: Sequence[str], options: Options) -> Result:
    with _serving(contestant, sentences[0]) as server:
        texts = _translations(server, contestant, sentences[:COMPARED_SENTENCES])
        precision = contestant.precision
        if contestant.system == GATEHOUSE:
            (model,) = server.ask("/models")["models"]
            precision = model["precision"]
        figures = Trial(server, contestant, sentences, options).run()
    return Result(contestant, precision, texts, figures)


def _translations(
    server: ServerProcess, contestant: Contestant, sentences: Sequence[str]
) -> list[str]:
    def translate(sentence: str) -> str:
        return contestant.translation(server.ask(PATH, contestant.body(sentence)))

    with ThreadPoolExecutor(COMPARED_BATCH) as pool:
        return list(pool.map(translate, sentences))


def _compare_with_offline(
    setup: Setup, sentences: Sequence[str], options: Options
) -> dict[str, Any]:
    """Served throughput with the engine on a core of its own, and offline on that core.

    HTTP and the load generator have the other cores. Offline is measured before and after, since
    the speed of a core whose neighbours others use changes from minute to minute.
    """
    engine_core, *other_cores = options.cores
    contestant = gatehouse(setup, "auto", num_threads=1)
    before = _run_offline(setup, sentences, options.seconds, engine_core)
    with _serving(contestant, sentences[0]) as server:
        is_apart = server.pin(other_cores, [engine_core])
        served = Trial(server, contestant, sentences, options, other_cores).run_limit_only()
    after = _run_offline(setup, sentences, options.seconds, engine_core)
    within = served.within_limit
    rate = within.rate if within is not None else 0.0
    offline = (before.requests_per_second + after.requests_per_second) / 2
    ratio, tokens = rate / offline, before.tokens_per_request
    most = max(served.saturation, saturation(served.measurements))
    print(
        f"served with p97 <= {LIMIT_MS:.0f} ms: {rate:.0f} requests/s, "
        f"{rate * tokens:,.0f} tokens/s; at most {most:.0f} requests/s; "
        f"offline on one core, before and after: {before.requests_per_second:.0f} and "
        f"{after.requests_per_second:.0f} requests/s; ratio {ratio:.2f}"
        + ("" if is_apart else " (the server is a single process: it shared the engine's core)")
    )
    return {
        "engine_is_apart": is_apart,
        "served": as_json(asdict(served)),
        "offline": [asdict(before), asdict(after)],
        "ratio": ratio,
    }


def _run_offline(
    setup: Setup, sentences: Sequence[str], seconds: float, core: int
) -> OfflineFigures:
    answer = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.offline"),
            *("--checkpoint", str(setup.checkpoint), "--beam", str(setup.beam_size)),
            *("--seconds", str(seconds), "--core", str(core)),
        ],
        cwd=ROOT,
        input="\n".join(sentences),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return OfflineFigures(**json.loads(answer.stdout))


def same_text_share(expected: Sequence[str], texts: Sequence[str]) -> float:
    """How many of the answers are the same, character by character."""
    return sum(a == b for a, b in zip(expected, texts, strict=True)) / len(expected)


def ratios(results: Sequence[Result]) -> dict[str, float]:
    """Gatehouse in its own precision against the others, as far as they were measured."""
    by_name = {result.contestant.name: result.figures for result in results}
    own = by_name.get(GATEHOUSE)
    if own is None:
        return {}
    found = {
        f"requests/s against {name}": own.saturation / by_name[name].saturation
        for name in ("plain-float32", "litserve-float32")
        if name in by_name
    }
    peers = [r.figures.saturation for r in results if r.contestant.system != GATEHOUSE]
    if peers:
        found["requests/s against the best peer"] = own.saturation / max(peers)
    if "plain-float32" in by_name:
        plain = by_name["plain-float32"].one_connection_p50_ms
        found["latency with one connection against plain-float32"] = (
            own.one_connection_p50_ms / plain
        )
    return found


def results_table(results: Sequence[Result]) -> str:
    """The Markdown table for the documents."""
    header = [
        "server",
        "precision",
        "requests/s",
        *(f"p50 / p97 / p99 at {share:.0%}, ms" for share in SHARES),
        f"requests/s, p97 <= {LIMIT_MS:.0f} ms",
        "one connection, ms",
        "CPU ms a request",
        "memory, MB",
        "same texts",
    ]
    return markdown_table(header, [_row(result, results[0].texts) for result in results])


def _row(result: Result, expected: Sequence[str]) -> list[str]:
    figures = result.figures
    within = figures.within_limit
    latencies = [
        " / ".join(_milliseconds(value) for value in (m.p50_ms, m.p97_ms, m.p99_ms))
        for m in figures.at_shares.values()
    ]
    return [
        result.contestant.system,
        result.precision,
        f"{figures.saturation:.0f}",
        *latencies,
        "none" if within is None else f"{within.rate:.0f}",
        f"{figures.one_connection_p50_ms:.1f}",
        f"{figures.server_ms_per_request:.2f}",
        f"{figures.peak_memory_bytes / 1e6:.0f}",
        f"{same_text_share(expected, result.texts):.0%}",
    ]


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "failed"


def _warn(results: Sequence[Result]) -> None:
    for result in results:
        used = result.figures.elsewhere_cores
        if used > DISTURBED_CORES:
            print(
                f"{result.contestant.name}: up to {used:.1f} cores were busy with something else",
                file=sys.stderr,
            )


def as_json(value: Any) -> Any:
    """What JSON can hold: no infinite numbers, names for keys."""
    if isinstance(value, dict):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [as_json(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
