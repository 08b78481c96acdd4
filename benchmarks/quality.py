"""A checkpoint's quality figures, measured anew and set beside those of its card.

Reads the preset from the checkpoint's ``training.json``, cuts the same data in the same way,
and measures the weights as they are stored.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.report import finish, markdown_table
from models.checkpoint import load_model, read_checkpoint
from training.cli import DEFAULT_CACHE
from training.preset import Preset
from training.run import make_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument("--data", help="the text it was trained on (default: the preset's URL)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print.

    Returns:
        1 if a figure differs from the card's, else 0.
    """
    info = read_checkpoint(arguments.checkpoint)
    preset = Preset.model_validate(info.training.preset)
    device = torch.device("cpu")
    task = make_task(preset, arguments.data, DEFAULT_CACHE.expanduser(), device)
    task.model.load_state_dict(load_model(info, device).state_dict())
    task.model.eval()
    measured = task.final_metrics()
    card = info.training.metrics
    rows = [
        [name, f"{value:g}", f"{card[name]:g}" if name in card else "not there"]
        for name, value in measured.items()
    ]
    print(markdown_table(["figure", "measured now", "on the card"], rows), end="\n\n")
    finish("quality", {"checkpoint": info.name, "fingerprint": info.fingerprint, **measured})
    return int(any(card.get(name) != value for name, value in measured.items()))
