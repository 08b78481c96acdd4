"""Training speed of a translation preset, beside Marian's on the same pairs, sizes and threads.

Marian trains recurrent models on processors, too. It is no requirement of Gatehouse: install
``pymarian`` anywhere and name its command by ``--marian``. Both take batches of as many target
tokens, of pairs sorted by length, split by the same SentencePiece model; both use Adam, dropout
and label smoothing, and float32 where bfloat16 is not native. A word here is a target token, as
in Marian's own log. The programs take turns, so that a noisy machine disturbs both.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.report import finish, markdown_table
from training.cli import DEFAULT_CACHE
from training.corpora import read_cut
from training.preset import ParallelData, Preset, load_preset
from training.run import make_task, train

SPEED = re.compile(r"([\d.]+) words/s")
WARM_UP_SHARE = 0.3
"""Of a run's steps; their speed does not count."""


@dataclass(frozen=True)
class Plan:
    """What both programs train.

    Attributes:
        preset: whose sizes and batches.
        pairs: of the preset.
        data: a path or URL of the pairs, or None for the preset's.
        cache_dir: where downloads are kept.
        steps: updates of a run.
        threads: of each program.
    """

    preset: Preset
    pairs: ParallelData
    data: str | None
    cache_dir: Path
    steps: int
    threads: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmark's options."""
    parser.add_argument("--preset", default="en-fr", help="of a translation model")
    parser.add_argument("--data", metavar="PATH", help="the preset's pairs, if they are here")
    parser.add_argument("--marian", metavar="COMMAND", help="Marian's command, pymarian")
    parser.add_argument("--steps", type=int, default=60, help="updates of a run (60)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program (3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def run(arguments: argparse.Namespace) -> int:
    """Train by turns and print both speeds.

    Returns:
        The exit status.
    """
    _, preset = load_preset(
        arguments.preset,
        [f"training.log_every_steps={max(arguments.steps // 10, 1)}"],
    )
    if not isinstance(preset.data, ParallelData):
        raise SystemExit(f"{arguments.preset} trains no translation model")
    if arguments.marian and not shutil.which(arguments.marian):
        raise SystemExit(f"{arguments.marian}: no such command (pip install pymarian)")
    cache_dir = DEFAULT_CACHE.expanduser()
    plan = Plan(preset, preset.data, arguments.data, cache_dir, arguments.steps, arguments.threads)
    torch.set_num_threads(plan.threads)
    speeds: dict[str, list[float]] = {"gatehouse": []}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if arguments.marian:
            speeds["marian"] = []
            write_marian_inputs(plan, place)
        for number in range(arguments.repeats):
            speeds["gatehouse"].append(time_gatehouse(plan, place / f"run{number}"))
            if arguments.marian:
                speeds["marian"].append(time_marian(plan, arguments.marian, place))
    report(speeds, plan)
    return 0


def report(speeds: dict[str, list[float]], plan: Plan) -> None:
    """Print a table of words/s and the line of JSON."""
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    rows = [
        [name, f"{medians[name]:,.0f}", ", ".join(f"{speed:,.0f}" for speed in found)]
        for name, found in speeds.items()
    ]
    print(markdown_table(["program", "words/s, median", "each run"], rows))
    figures: dict[str, object] = {"words_per_second": medians, "threads": plan.threads}
    if "marian" in medians:
        figures["ratio"] = round(medians["gatehouse"] / medians["marian"], 2)
    finish("training", figures)


def time_gatehouse(plan: Plan, folder: Path) -> float:
    """Words/s of Gatehouse's own training, in this process."""
    train(
        "speed",
        plan.preset,
        folder,
        cache_dir=plan.cache_dir,
        device=torch.device("cpu"),
        data_location=plan.data,
        show_progress=False,
        stop_after_steps=plan.steps,
    )
    lines = (folder / "speed" / "run" / "metrics.jsonl").read_text().splitlines()
    return steady_speed([json.loads(line)["tokens_per_second"] for line in lines])


def time_marian(plan: Plan, command: str, folder: Path) -> float:
    """Words/s of Marian's training of the same model.

    Raises:
        RuntimeError: Marian fails, or says no speed.
    """
    shutil.rmtree(folder / "marian", ignore_errors=True)
    (folder / "marian").mkdir()
    done = subprocess.run(
        [command, *marian_options(plan, folder)], capture_output=True, text=True, check=False
    )
    found = [float(text) for text in SPEED.findall(done.stderr + done.stdout)]
    if done.returncode or not found:
        raise RuntimeError(f"{command} failed:\n{done.stderr[-2000:]}")
    return steady_speed(found)


def steady_speed(speeds: Sequence[float]) -> float:
    """The median speed of a run, but for its beginning."""
    return statistics.median(speeds[int(len(speeds) * WARM_UP_SHARE) :])


def write_marian_inputs(plan: Plan, folder: Path) -> None:
    """Write the training pairs as two files, and the tokenizers, as Marian reads them."""
    task = make_task(plan.preset, plan.data, plan.cache_dir, torch.device("cpu"))
    for role, tokenizer in task.tokenizers.items():
        # The suffix tells Marian that this is a SentencePiece model.
        tokenizer.save(folder / f"{role}.spm")
    cut, _ = read_cut(plan.pairs, plan.data, plan.cache_dir)
    for role in ("source", "target"):
        lines = (getattr(pair, role) + "\n" for pair in cut.train)
        (folder / f"{role}.txt").write_text("".join(lines), encoding="utf-8")


def marian_options(plan: Plan, folder: Path) -> list[str]:
    """Marian's options for the preset's model and batches, as near as it has them."""
    model, settings = plan.preset.model, plan.preset.training
    display = max(plan.steps // 10, 1)
    options: dict[str, object] = {
        "type": "s2s",
        "model": folder / "marian" / "model.npz",
        "train-sets": f"{folder / 'source.txt'} {folder / 'target.txt'}",
        "vocabs": f"{folder / 'source.spm'} {folder / 'target.spm'}",
        "dim-emb": model["embedding_size"],
        "dim-rnn": model["hidden_size"],
        "enc-type": "bidirectional",
        "enc-cell": model.get("cell", "gru"),
        "dec-cell": model.get("cell", "gru"),
        "enc-depth": model.get("encoder_layers", 1),
        "dec-depth": model.get("decoder_layers", 1),
        "dropout-rnn": model.get("dropout", 0),
        "label-smoothing": settings.label_smoothing,
        "mini-batch": 1000,
        "mini-batch-words": settings.batch_tokens,
        "maxi-batch": 50,
        "maxi-batch-sort": "trg",
        "max-length": plan.pairs.max_tokens,
        "optimizer": "adam",
        "learn-rate": settings.learning_rate,
        "clip-norm": settings.clip_norm,
        "cpu-threads": plan.threads,
        "workspace": 2048,
        "after-batches": plan.steps,
        "disp-freq": display,
        "save-freq": plan.steps * 10,
    }
    if model.get("tie_embeddings"):
        options["tied-embeddings-all"] = ""
    return [part for name, value in options.items() for part in (f"--{name}", *str(value).split())]
