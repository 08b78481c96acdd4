"""``gatehouse diversify``: sentence pairs that models make of those that they were trained on."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import torch
from tqdm import tqdm

from models.checkpoint import CheckpointInfo, read_checkpoint
from models.checkpoint_model import load_model
from models.checkpoint_schema import Languages
from models.precision import (
    Precision,
    choose_precision,
    keep_float32_exact,
    set_precision,
    use_threads,
)
from models.seq2seq import Seq2Seq
from training.cli import DEFAULT_CACHE, MISHAPS, choose_device
from training.command_line import exit_status, positive
from training.decoding import translate_texts
from training.diversification import Translate, diversify
from training.evaluation_data import EvaluationError, read_training_cut
from training.parallel import Pair
from training.sources import expand_home


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Translate the training pairs of a translation model: their sources by the "
        "model itself, their targets by one of the other direction. What was not among the pairs "
        "is written, one SOURCE tab TARGET a line, for gatehouse train --synthetic. Held-out "
        "sentences are neither translated nor written. See docs/training.md.",
    )
    parser.add_argument("forward", type=Path, metavar="CHECKPOINT", help="whose pairs they are")
    parser.add_argument(
        "backward", type=Path, metavar="REVERSE", nargs="?", help="a model of the other direction"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("synthetic.tsv"), metavar="FILE", help="(synthetic.tsv)"
    )
    parser.add_argument("--data", metavar="PATH", help="a copy of the training data (path or URL)")
    parser.add_argument(
        "--beam-size", type=positive, default=4, metavar="N", help="1 is greedy (default: 4)"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", *get_args(Precision)),
        default="auto",
        help="what to compute in (default: auto, as the service)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=positive, metavar="N", help="processor threads")
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
        pairs = _make_pairs(arguments)
        content = "".join(f"{pair.source}\t{pair.target}\n" for pair in pairs)
        partial = _partial(arguments.out)
        partial.write_text(content, encoding="utf-8", newline="\n")
        partial.replace(arguments.out)
        print(f"wrote {len(pairs):,} pairs to {arguments.out}")
        return 0

    return exit_status(parser.prog, work, (*MISHAPS, EvaluationError, ArithmeticError))


def _make_pairs(arguments: argparse.Namespace) -> list[Pair]:
    """Read what is needed, check that it fits together, and translate."""
    forward = read_checkpoint(arguments.forward)
    backward = read_checkpoint(arguments.backward) if arguments.backward else None
    if forward.languages is None:
        raise EvaluationError(f"{forward.path} is no translation model")
    wanted = Languages(source=forward.languages.target, target=forward.languages.source)
    if backward and backward.languages != wanted:
        raise EvaluationError(
            f"{backward.path} does not translate from {wanted.source} to {wanted.target}"
        )
    if not arguments.out.parent.is_dir():
        raise EvaluationError(f"{arguments.out}: there is no folder {arguments.out.parent}")
    if arguments.out.is_dir():
        raise EvaluationError(f"{arguments.out} is a folder: name a file in it")
    # Translating takes hours: whether this can be written is found out before.
    partial = _partial(arguments.out)
    partial.touch()
    partial.unlink()
    cut = read_training_cut(forward, arguments.data, expand_home(arguments.cache))
    device = choose_device(arguments.device)
    keep_float32_exact()
    precision = choose_precision(arguments.precision, device)
    use_threads(torch.get_num_threads(), precision)

    def translator(info: CheckpointInfo) -> Translate:
        model = set_precision(load_model(info, device), precision)
        assert isinstance(model, Seq2Seq)
        return _translator(info, model, arguments.beam_size)

    return diversify(cut, translator(forward), translator(backward) if backward else None)


def _partial(file: Path) -> Path:
    """Where a file is written until it is whole."""
    return file.with_name(f"{file.name}.partial")


def _translator(info: CheckpointInfo, model: Seq2Seq, beam_size: int) -> Translate:
    def translate(texts: Sequence[str]) -> list[str]:
        with tqdm(
            total=len(texts), desc=info.name, unit=" sentences", disable=None, dynamic_ncols=True
        ) as bar:
            report: Callable[[], object] = bar.update
            return translate_texts(
                model, info.tokenizers, texts, beam_size=beam_size, on_translation=report
            )

    return translate
