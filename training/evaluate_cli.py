"""``gatehouse evaluate``: how good a checkpoint is, in each precision."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from tqdm import tqdm

from models.checkpoint import CheckpointInfo, read_checkpoint
from models.config import LanguageModelConfig
from models.precision import Precision, choose_precision, keep_float32_exact
from training.cli import DEFAULT_CACHE, MISHAPS, choose_device
from training.command_line import exit_status, positive
from training.evaluation import (
    DecodingSettings,
    Measurement,
    amount_of_work,
    beam_name,
    compare,
    deviations,
    measure,
)
from training.evaluation_data import (
    EvaluationData,
    EvaluationError,
    SentenceData,
    may_have_seen,
    read_card_data,
    read_own_sentences,
    read_own_text,
    unknown_texts,
)
from training.evaluation_report import Comparison, Evaluation, as_json, as_table
from training.sources import expand_home

_SHOWN_UNKNOWN = 10


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure a checkpoint through the decoder and the precisions of the service: "
        "BLEU, chrF and TER by sacreBLEU of a translation model, perplexity a character of a "
        "language model. Without files of your own it measures on what the figures of the "
        "model's card were measured on.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a checkpoint folder")
    parser.add_argument(
        "--compare",
        metavar="CHECKPOINT",
        type=Path,
        help="measure another translation model too, and test the differences for significance",
    )
    what = parser.add_argument_group("what to measure on")
    what.add_argument(
        "--data", metavar="PATH", help="a copy of the training data (path or URL); default: theirs"
    )
    what.add_argument("--source", metavar="FILE", help="sentences to translate, one a line")
    what.add_argument(
        "--reference", metavar="FILE", nargs="+", help="their translations, in one file or several"
    )
    what.add_argument("--text", metavar="FILE", help="a whole text, for a language model")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--precisions",
        nargs="+",
        choices=("auto", *get_args(Precision)),
        help="what to compute in (default: auto, as the service; float32 with --check)",
    )
    how.add_argument(
        "--beam-size", type=positive, nargs="+", metavar="N", help="1 is greedy (default: 1 4)"
    )
    how.add_argument(
        "--length-penalty", type=_penalty, metavar="ALPHA", help="of the beam search (default 0.75)"
    )
    how.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    how.add_argument(
        "--threads", type=positive, metavar="N", help="processor threads (default: torch's choice)"
    )
    how.add_argument(
        "--cache", metavar="DIR", type=Path, default=DEFAULT_CACHE, help="where downloads are kept"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object, not tables")
    output.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="write the translations, one a line; where there are several of each sentence, "
        "FILE.PRECISION.BEAM",
    )
    output.add_argument(
        "--check",
        action="store_true",
        help="exit with status 1 unless the float32 figures are those of the model's card",
    )
    return parser


def _penalty(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 after one clear sentence on stderr, or 130 after Ctrl-C.
    """
    parser = build_parser(prog)
    arguments = parser.parse_args(argv)
    if complaint := _contradiction(arguments):
        parser.error(complaint)
    mishaps = (*MISHAPS, EvaluationError, ArithmeticError)
    return exit_status(parser.prog, lambda: _tell(parser.prog, arguments), mishaps)


def _tell(prog: str, arguments: argparse.Namespace) -> int:
    """Print what was measured; 1 where it is not what the card says."""
    evaluation = _evaluate(arguments)
    text = json.dumps(as_json(evaluation)) if arguments.json else as_table(evaluation)
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Whoever read the output (`head`, say) has enough.
        sys.stderr.close()
        return 0
    for note in evaluation.notes:
        print(f"note: {note}", file=sys.stderr)
    for deviation in evaluation.deviations or ():
        print(f"{prog}: {deviation}", file=sys.stderr)
    return int(bool(evaluation.deviations))


def _contradiction(arguments: argparse.Namespace) -> str | None:
    """What in the command line makes no sense together."""
    has_own = arguments.source is not None or arguments.text is not None
    if (arguments.source is None) != (arguments.reference is None):
        return "--source and --reference go together"
    if arguments.source is not None and arguments.text is not None:
        return "give either --source and --reference, or --text"
    if arguments.data is not None and has_own:
        return "--data names the training data: leave it out with files of your own"
    if arguments.check:
        if has_own or arguments.beam_size or arguments.length_penalty is not None:
            return (
                "--check measures as the card was measured: leave out --source, --text, "
                "--beam-size and --length-penalty"
            )
        if arguments.precisions and "float32" not in arguments.precisions:
            return "--check needs --precisions float32, which the card's figures are in"
    return None


def _evaluate(arguments: argparse.Namespace) -> Evaluation:
    """Read, measure, compare, and write the translations."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    if device.type == "cuda":
        keep_float32_exact()
    names = arguments.precisions or (["float32"] if arguments.check else ["auto"])
    precisions = list(dict.fromkeys(choose_precision(name, device) for name in names))
    info = read_checkpoint(arguments.checkpoint)
    _check_kind(info, arguments)
    other = read_checkpoint(arguments.compare) if arguments.compare else None
    if other:
        _check_comparable(info, other)
    if arguments.out and not arguments.out.parent.is_dir():
        raise EvaluationError(f"{arguments.out}: there is no folder {arguments.out.parent}")
    if arguments.out and arguments.out.is_dir():
        raise EvaluationError(f"{arguments.out}: is a folder, not a file")
    data = _read_data(info, arguments)
    if arguments.check and not data.is_cards:
        raise EvaluationError(
            f"{data.sources[0].name} is not what the card's figures were measured on: its SHA-256 "
            "differs from the one in training.json"
        )
    settings = _settings(arguments, data)
    found = _measure_all([info, *([other] if other else [])], data, precisions, settings, device)
    comparison = None
    if other and isinstance(data, SentenceData):
        pairs = zip(precisions, *found, strict=True)
        comparison = Comparison(other, {name: compare(a, b, data) for name, a, b in pairs})
    if arguments.out:
        _write_translations(arguments.out, found[0])
    exact = next((each for each in found[0] if each.precision == "float32"), None)
    return Evaluation(
        info=info,
        data=data,
        settings=settings,
        device=device,
        measurements=found[0],
        comparison=comparison,
        deviations=deviations(exact, info.training.metrics) if arguments.check and exact else None,
        notes=_notes(info, other, data, arguments),
    )


def _check_kind(info: CheckpointInfo, arguments: argparse.Namespace) -> None:
    is_text = isinstance(info.config, LanguageModelConfig)
    of_sentences = {
        "--source": arguments.source,
        "--compare": arguments.compare,
        "--beam-size": arguments.beam_size,
        "--length-penalty": arguments.length_penalty,
        "--out": arguments.out,
    }
    wrong = [name for name, value in of_sentences.items() if value is not None]
    if is_text and wrong:
        raise EvaluationError(
            f"{info.name} is a language model, and {wrong[0]} is for translation models"
        )
    if not is_text and arguments.text is not None:
        raise EvaluationError(f"{info.name} is a translation model, and --text for language models")


def _check_comparable(info: CheckpointInfo, other: CheckpointInfo) -> None:
    if info.languages != other.languages:
        directions = [
            f"{each.languages.source}-{each.languages.target}" if each.languages else "nothing"
            for each in (info, other)
        ]
        raise EvaluationError(
            f"cannot compare: {info.path} translates {directions[0]}, and {other.path} "
            f"{directions[1]}"
        )


def _read_data(info: CheckpointInfo, arguments: argparse.Namespace) -> EvaluationData:
    cache_dir = expand_home(arguments.cache)
    if arguments.source is not None:
        return read_own_sentences(arguments.source, arguments.reference, cache_dir)
    if arguments.text is not None:
        return read_own_text(info, arguments.text, cache_dir)
    return read_card_data(info, arguments.data, cache_dir)


def _settings(arguments: argparse.Namespace, data: EvaluationData) -> DecodingSettings:
    default = DecodingSettings()
    is_textbook = isinstance(data, SentenceData) and data.is_textbook
    beam_sizes = arguments.beam_size or ([1] if is_textbook else default.beam_sizes)
    penalty = arguments.length_penalty
    return DecodingSettings(
        beam_sizes=tuple(dict.fromkeys(beam_sizes)),
        length_penalty=default.length_penalty if penalty is None else penalty,
    )


def _measure_all(
    infos: Sequence[CheckpointInfo],
    data: EvaluationData,
    precisions: Sequence[Precision],
    settings: DecodingSettings,
    device: torch.device,
) -> list[list[Measurement]]:
    """Measurements of each checkpoint in each precision, with a progress bar."""
    work = sum(amount_of_work(info, data, settings) for info in infos) * len(precisions)
    unit = " sentences" if isinstance(data, SentenceData) else " tokens"
    with tqdm(total=work, unit=unit, disable=None, dynamic_ncols=True) as bar:

        def advance(what: str, count: int) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update(count)

        return [
            [measure(info, data, name, settings, device, advance) for name in precisions]
            for info in infos
        ]


def _notes(
    info: CheckpointInfo,
    other: CheckpointInfo | None,
    data: EvaluationData,
    arguments: argparse.Namespace,
) -> list[str]:
    notes = []
    has_own = arguments.source is not None or arguments.text is not None
    if not (has_own or data.is_cards):
        notes.append(
            f"{data.sources[0].name} is not the text that {info.name} was trained on, so the "
            "figures are not those of its card"
        )
    if unknown := unknown_texts(info, data):
        shown = ", ".join(map(repr, unknown[:_SHOWN_UNKNOWN]))
        notes.append(
            f"{len(unknown)} characters or words are unknown to {info.name}, which reads each as "
            f"<unk>: {shown}{', ...' if len(unknown) > _SHOWN_UNKNOWN else ''}"
        )
    if other and not has_own and may_have_seen(other, info):
        notes.append(
            f"{other.path} was trained on other data or with another cut: it may have seen some "
            "of the sentences"
        )
    return notes


def _write_translations(file: Path, measurements: Sequence[Measurement]) -> None:
    several = len(measurements) * len(measurements[0].translations) > 1
    for measurement in measurements:
        for beam_size, texts in measurement.translations.items():
            suffix = f".{measurement.precision}.{beam_name(beam_size)}" if several else ""
            content = "".join(f"{text}\n" for text in texts)
            Path(f"{file}{suffix}").write_text(content, encoding="utf-8", newline="\n")
