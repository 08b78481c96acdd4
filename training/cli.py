"""``python -m training`` and ``gatehouse train``."""

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.checkpoint import CheckpointError, read_checkpoint
from models.checkpoint_schema import TrainingRecord
from training.command_line import positive, require_folder_name, sentence_of
from training.distributed import LostProcessError, global_rank, join_processes
from training.interruption import InterruptedRunError
from training.memory import keep_compiled_products, keep_freed_memory
from training.own_text import add_own_text_options, is_own_text, read_own_text, synthetic_changes
from training.preset import Preset, PresetError, available_presets, build_preset, load_preset
from training.record import (
    arguments_that_matter,
    is_record,
    prepare_repetition,
    read_record,
    recorded_location,
    recorded_preset,
)
from training.resuming import RunError
from training.run import has_run, train
from training.sources import DataError, expand_home

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
        "step (metrics.jsonl, TensorBoard), pictures, samples, and what resuming needs.",
    )
    parser.add_argument(
        "preset",
        metavar="PRESET",
        nargs="?",
        help="a preset's name, a TOML file, or a "
        "checkpoint's training.json: to train the same model again",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="text to train on, instead of the preset's (path or URL), or a folder with its files",
    )
    parser.add_argument(
        "--synthetic",
        metavar="FILE",
        help="pairs that models made (gatehouse diversify), to train on beside the others",
    )
    add_own_text_options(parser)
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
        "--threads", type=positive, metavar="N", help="processor threads (default: torch's choice)"
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
    rank = global_rank()
    prog = f"{parser.prog} (process {rank})" if rank else parser.prog
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    keep_freed_memory()
    keep_compiled_products()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        folder, example = _train(arguments)
    except MISHAPS as error:
        print(f"{prog}: {sentence_of(error)}", file=sys.stderr)
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
        print(f"then ask it:   {example_request(folder, example)}")
    return 0


def _train(arguments: argparse.Namespace) -> tuple[Path, str | None]:
    """Train; the folder, and a text to try the model with, if the data gave one."""
    if arguments.name is not None:
        require_folder_name(arguments.name)
    run = _plan(arguments)
    name = arguments.name or run.name
    with join_processes(choose_device(arguments.device)) as processes:
        if processes.is_first:
            if run.summary:
                print(run.summary, file=sys.stderr)
            if has_run(arguments.out / name):
                print(f"going on with the run in {arguments.out / name}", file=sys.stderr)
        if run.record:
            prepare_repetition(run.record, arguments.threads, processes.count)
        folder = train(
            name,
            run.preset,
            arguments.out,
            cache_dir=expand_home(arguments.cache),
            device=processes.device,
            data_location=run.location,
            initial_dir=arguments.initial,
            processes=processes,
            arguments=arguments_that_matter(arguments),
            repeats=run.record,
        )
    return folder, run.example


@dataclass(frozen=True)
class _Plan:
    """What the command line asks for.

    Attributes:
        name: of the model, if its user gives none.
        preset: what to train.
        location: a text to read instead of the preset's, or None.
        record: of the run that is to be done again, or None.
        summary: what to tell before the run.
        example: a text to try the model with.
    """

    name: str
    preset: Preset
    location: str | None = None
    record: TrainingRecord | None = None
    summary: str | None = None
    example: str | None = None


def _plan(arguments: argparse.Namespace) -> _Plan:
    """A preset by its name, by a person's own text, or by the record of an earlier run."""
    if is_own_text(arguments):
        own = read_own_text(arguments, expand_home(arguments.cache))
        return _Plan(own.name, own.preset, summary=own.summary, example=own.example)
    if not arguments.preset:
        raise ValueError("give a preset, or your own text by --pairs, --source, --target or --text")
    changes = synthetic_changes(arguments)
    if not is_record(arguments.preset):
        return _Plan(
            *load_preset(arguments.preset, arguments.set, changes), location=arguments.data
        )
    file = Path(arguments.preset)
    record = read_record(file)
    if (arguments.out / (arguments.name or record.name)).resolve() == file.resolve().parent:
        raise PresetError(
            f"{file} lies in the folder that the run would write: choose another --out or --name"
        )
    preset = build_preset(recorded_preset(record), arguments.set, str(file), changes)
    location = arguments.data or recorded_location(record, preset.data)
    return _Plan(record.name, preset, location, record)


def example_request(folder: Path, text: str | None = None) -> str:
    """A curl command that asks a service on its default port for a model.

    Args:
        folder: the model's checkpoint.
        text: to translate or to continue, or None for one that suits any model.
    """
    info = read_checkpoint(folder)
    body: dict[str, str | int] = {"model": info.name}
    if info.languages:
        path = "translate"
        body["text"] = text or "Hello."
    else:
        path = "generate"
        # Every model can begin from nothing; a character model refuses what it has never seen.
        known = text and not info.tokenizers["text"].unknown(text)
        body |= {"prompt": text if known and text else "", "max_new_tokens": 200}
    content = json.dumps(body, ensure_ascii=False)
    header = "-H 'Content-Type: application/json'"
    return f"curl -s localhost:8000/{path} {header} -d {shlex.quote(content)}"


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
