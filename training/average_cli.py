"""``gatehouse average``: several checkpoints to one with the average of their weights.

A run that began with another's weights often ends beside them in the same valley of the loss,
on another side of it: between the two it is lower than on either (Izmailov et al. 2018; Wortsman
et al. 2022). The average costs nothing to serve, where an ensemble costs every one of its models.
"""

import argparse
import datetime
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from models.checkpoint import CheckpointError, CheckpointInfo, read_checkpoint
from models.checkpoint_model import load_model
from models.tokenizers import Tokenizer
from training.cli import DEFAULT_CACHE
from training.command_line import exit_status, positive, require_folder_name
from training.evaluation_data import EvaluationError, cut_of
from training.preset import Preset, without_synthetic
from training.run import (
    architecture_difference,
    card_of,
    checkpoint_record,
    make_task,
    measure_stored,
    note_on_metrics,
    versions_of,
    write_model,
)
from training.sources import DataError, expand_home

MISHAPS = (CheckpointError, DataError, EvaluationError, OSError, ValueError)
"""What a person can mend: told in one sentence, without a traceback."""


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Average the weights of checkpoints that have the same architecture and "
        "tokenizers (one began with the other's weights, by gatehouse train --initial), and "
        "measure what comes of it. The data are those of the first. See docs/training.md.",
    )
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="a folder")
    parser.add_argument("--data", metavar="PATH", help="a copy of the training data (path or URL)")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="(runs)")
    parser.add_argument("--name", help="of the new checkpoint (that of the first)")
    parser.add_argument("--threads", type=positive, metavar="N", help="of the measurements")
    parser.add_argument(
        "--cache", metavar="DIR", type=Path, default=DEFAULT_CACHE, help="where downloads are kept"
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 after one clear sentence on stderr, or 130 after Ctrl-C.
    """
    parser = build_parser(prog)
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("training").setLevel(logging.INFO)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    def work() -> int:
        if arguments.name is not None:
            require_folder_name(arguments.name)
        folder = average(
            [read_checkpoint(path) for path in arguments.checkpoints],
            arguments.out,
            name=arguments.name,
            data_location=arguments.data,
            cache_dir=expand_home(arguments.cache),
        )
        print(f"wrote {folder}")
        return 0

    return exit_status(parser.prog, work, MISHAPS)


def average(
    infos: Sequence[CheckpointInfo],
    out_dir: Path,
    *,
    name: str | None,
    data_location: str | None,
    cache_dir: Path,
) -> Path:
    """Write the average of checkpoints, with the figures that it has.

    Args:
        infos: two or more.
        out_dir: where the folder goes.
        name: of the folder, or None for that of the first.
        data_location: a copy of the first's data, or None for where its preset has them from.
        cache_dir: where downloads are kept.

    Returns:
        The new folder.

    Raises:
        CheckpointError: they do not fit together, or the folder is there already.
        EvaluationError: one has a preset that cannot be read.
        DataError: the data cannot be read.
    """
    first = infos[0]
    _require_alike(infos)
    folder = out_dir / (name or first.name)
    if folder.exists():
        raise CheckpointError(f"{folder} is there already: remove it, or give another --name")
    preset = without_synthetic(_preset_of(first))
    device = torch.device("cpu")
    task = make_task(preset, data_location, cache_dir, device, first)
    recorded = first.training.data[: len(task.sources)]
    if [source.sha256 for source in task.sources] != [source.sha256 for source in recorded]:
        raise CheckpointError(f"{first.name} was trained on other data: give a copy by --data")
    task.model.load_state_dict(_mean([load_model(i, device).state_dict() for i in infos]))
    record = first.training.model_copy(
        update={
            "name": folder.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "initial": None,
            "initial_may_know_held_out": any(
                info.training.initial_may_know_held_out for info in infos
            ),
            "averaged": [checkpoint_record(info) for info in infos],
            "best_step": None,
            "arguments": [],
            "metrics": {},
            "versions": versions_of(device),
        }
    )
    card = card_of(folder.name, preset, task)
    write_model(folder, task, card, record)
    metrics = measure_stored(task, folder, device)
    note = note_on_metrics(task, record.initial_may_know_held_out)
    record = record.model_copy(update={"metrics": metrics, "metrics_note": note})
    write_model(folder, task, card, record)
    return folder


def _require_alike(infos: Sequence[CheckpointInfo]) -> None:
    if len(infos) < 2:
        raise CheckpointError("an average takes two checkpoints at least")
    first, *others = infos
    for other in others:
        if other.fingerprint == first.fingerprint:
            raise CheckpointError(f"{other.path} holds the same model as {first.path}")
        key = architecture_difference(first.config, other.config)
        if key is not None:
            raise CheckpointError(
                f"{other.path} is of another architecture than {first.path}: model.{key} differs"
            )
        for role, tokenizer in first.tokenizers.items():
            if _pieces(other.tokenizers[role]) != _pieces(tokenizer):
                raise CheckpointError(f"{other.path} has another tokenizer than {first.path}")
    _require_one_cut(infos)


def _require_one_cut(infos: Sequence[CheckpointInfo]) -> None:
    """What the average is measured on must be held out from the training of all."""
    cuts = [cut_of(info) for info in infos]
    for info, cut in zip(infos, cuts, strict=True):
        if cut is None:
            raise CheckpointError(
                f"{info.path}: its training.json does not say what it was trained on, so nothing "
                "is known to be held out from its training"
            )
        if cut != cuts[0]:
            raise CheckpointError(
                f"{info.path} was trained on other data than {infos[0].path}, or with another "
                "cut: it may have seen what the average would be measured on"
            )


def _pieces(tokenizer: Tokenizer) -> tuple[str, ...]:
    return (tokenizer.kind, *map(tokenizer.token, range(tokenizer.vocabulary_size)))


def _preset_of(info: CheckpointInfo) -> Preset:
    try:
        return Preset.model_validate(info.training.preset)
    except ValidationError as error:
        raise CheckpointError(
            f"{info.path}: its training.json holds no preset that says what to measure on"
        ) from error


def _mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([s[name].float() for s in states]).mean(0) for name in states[0]}
