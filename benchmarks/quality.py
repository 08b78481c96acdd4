"""A checkpoint's quality in each precision, measured anew and set beside the figures of its card.

Reads the preset from the checkpoint's ``training.json``, cuts the same data in the same way,
and measures the weights as they are stored.
"""

import argparse
import time
from pathlib import Path
from typing import get_args

import torch

from benchmarks.report import finish, markdown_table
from models.checkpoint import CheckpointInfo, read_checkpoint
from models.precision import Precision, set_precision
from training.cli import DEFAULT_CACHE
from training.preset import Preset
from training.run import make_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument("--data", help="the text it was trained on (default: the preset's URL)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=get_args(Precision),
        default=["float32"],
        help="what to compute in; the card's figures are those of float32 (default)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and print.

    Returns:
        1 if a figure in float32 differs from the card's, else 0.
    """
    info = read_checkpoint(arguments.checkpoint)
    measured = {name: _measure(info, name, arguments.data) for name in arguments.precisions}
    card = info.training.metrics
    figures = list(dict.fromkeys(name for values in measured.values() for name in values))
    rows = [
        [
            name,
            f"{card[name]:g}" if name in card else "not there",
            *(f"{values[name]:g}" for values in measured.values()),
        ]
        for name in figures
    ]
    print(markdown_table(["figure", "card", *measured], rows), end="\n\n")
    finish("quality", {"checkpoint": info.name, "fingerprint": info.fingerprint, **measured})
    exact = measured.get("float32", {})
    return int(any(card.get(name) != value for name, value in exact.items() if name != "seconds"))


def _measure(info: CheckpointInfo, precision: Precision, data: str | None) -> dict[str, float]:
    preset = Preset.model_validate(info.training.preset)
    device = torch.device("cpu")
    task = make_task(preset, data, DEFAULT_CACHE.expanduser(), device, initial=info)
    task.model.eval()
    set_precision(task.model, precision)
    began = time.perf_counter()
    figures = task.final_metrics()
    return {**figures, "seconds": round(time.perf_counter() - began, 1)}
