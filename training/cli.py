"""``python -m training`` and ``gatehouse train``."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from models.checkpoint import CheckpointError
from training.distributed import LostProcessError, join_processes, local_rank
from training.interruption import InterruptedRunError
from training.loop import RunError
from training.preset import PresetError, available_presets, load_preset
from training.record import (
    arguments_that_matter,
    is_record,
    prepare_repetition,
    read_record,
    recorded_location,
    recorded_preset,
)
from training.run import has_run, train
from training.sources import DataError

DEFAULT_CACHE = Path("~/.cache/gatehouse")


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line's grammar, with every preset described."""
    presets = "\n".join(
        f"  {name:24} {load_preset(name)[1].description}" for name in available_presets()
    )
    parser = argparse.ArgumentParser(
        prog=prog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a model and write a checkpoint folder that `gatehouse serve` loads.",
        epilog=f"presets:\n{presets}\n\n"
        "A run that was stopped or killed goes on when the same command is given again.\n"
        "Several processes train together by `torchrun --nproc-per-node N -m training PRESET`.\n"
        "DIR/NAME becomes the checkpoint; its run/ folder holds the log, the figures of each\n"
        "step (metrics.jsonl, TensorBoard), curves.png and what resuming needs.",
    )
    parser.add_argument(
        "preset",
        metavar="PRESET",
        help="a preset's name, a TOML file, or a "
        "checkpoint's training.json: to train the same model again",
    )
    parser.add_argument(
        "--data", metavar="PATH", help="text to train on, instead of the preset's (path or URL)"
    )
    parser.add_argument(
        "--initial",
        metavar="CHECKPOINT",
        type=Path,
        help="begin with the weights and tokenizers of this checkpoint folder",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change one value of the preset, e.g. training.steps=1000 (may be repeated)",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("runs"), help="default: runs"
    )
    parser.add_argument("--name", help="name of the model's folder (default: the preset's name)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--threads", type=_positive, metavar="N", help="processor threads (default: torch's choice)"
    )
    parser.add_argument(
        "--cache", metavar="DIR", type=Path, default=DEFAULT_CACHE, help="where downloads are kept"
    )
    return parser


# TokenizerError and pydantic's ValidationError are ValueErrors.
MISHAPS = (
    *(PresetError, DataError, RunError, LostProcessError, CheckpointError),
    *(OSError, ValueError),
)
"""What a person can mend: told in one sentence, without a traceback."""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 after one clear sentence on stderr, or 128 + N after signal N.
    """
    parser = build_parser(prog)
    arguments = parser.parse_args(argv)
    rank = local_rank()
    prog = f"{parser.prog} (process {rank})" if rank else parser.prog
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        folder = _train(arguments)
    except MISHAPS as error:
        print(f"{prog}: {_sentence(error)}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:
        print(
            f"{prog}: the GPU has no memory left: lower training.batch_rows, "
            "training.batch_tokens or the model's sizes",
            file=sys.stderr,
        )
        return 1
    except InterruptedRunError as stop:
        if not rank:
            print(stop, file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:
        print("stopped; give the same command to go on", file=sys.stderr)
        return 130
    if not rank:
        print(f"wrote {folder}\nserve it with: gatehouse serve --checkpoints {arguments.out}")
    return 0


def _train(arguments: argparse.Namespace) -> Path:
    record, location = None, arguments.data
    if is_record(arguments.preset):
        record = read_record(Path(arguments.preset))
        _, preset = load_preset(record.name, arguments.set, recorded_preset(record))
        preset_name = record.name
        location = location or recorded_location(record, preset.data.source.location)
    else:
        preset_name, preset = load_preset(arguments.preset, arguments.set)
    name = arguments.name or preset_name
    if record and (arguments.out / name).resolve() == Path(arguments.preset).resolve().parent:
        raise PresetError(
            f"{arguments.preset} lies in the folder that the run would write: choose another "
            "--out or --name"
        )
    with join_processes(choose_device(arguments.device)) as processes:
        if processes.is_first and has_run(arguments.out / name):
            print(f"going on with the run in {arguments.out / name}", file=sys.stderr)
        if record:
            prepare_repetition(record, arguments.threads, processes.count)
        return train(
            name,
            preset,
            arguments.out,
            cache_dir=arguments.cache.expanduser(),
            device=processes.device,
            data_location=location,
            initial_dir=arguments.initial,
            processes=processes,
            arguments=arguments_that_matter(arguments),
            repeats=record,
        )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def choose_device(name: str) -> torch.device:
    """The device to train on; ``auto`` takes the GPU where there is one.

    Raises:
        ValueError: a CUDA device was asked for that torch cannot see, or the name is unknown.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}: give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"torch {torch.__version__} sees no {name} here; use --device cpu")
    return device
