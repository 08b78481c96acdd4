"""The words and options of the command line; what the commands do is in :mod:`app.cli`."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from app import VERSION

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

Run = Callable[[argparse.Namespace], int]
"""A command: its arguments to the exit status."""


def make_parser(commands: Mapping[str, Run]) -> argparse.ArgumentParser:
    """The parser of all commands; what it parses has the command's function as ``run``.

    Args:
        commands: what runs each, by name.
    """
    parser = argparse.ArgumentParser(
        prog="gatehouse", description="Train gated recurrent models and serve them over HTTP."
    )
    parser.add_argument("--version", action="version", version=f"gatehouse {VERSION}")
    added = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, add in _COMMANDS.items():
        add(added).set_defaults(run=commands[name])
    added.add_parser("train", help="train a model: see 'gatehouse train --help'")
    added.add_parser("evaluate", help="measure a checkpoint: see 'gatehouse evaluate --help'")
    added.add_parser("average", help="average checkpoints: see 'gatehouse average --help'")
    added.add_parser("diversify", help="pairs that models make: see 'gatehouse diversify --help'")
    added.add_parser("import", help="import other weights: see 'gatehouse import --help'")
    added.add_parser("bench", help="measure speed: see 'gatehouse bench --help'")
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="folder of checkpoints")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")


def _add_serve(commands: "_Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "serve",
        help="serve the models over HTTP",
        description="Serve the models over HTTP. Every setting can also be given as an "
        "environment variable GATEHOUSE_... or in a file .env: see docs/settings.md.",
    )
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default 8000)")
    _add_model_options(parser)
    return parser


def _add_models(commands: "_Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser("models", help="list the checkpoints")
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="folder of checkpoints")
    return parser


def _add_generate(commands: "_Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser("generate", help="continue a text")
    parser.add_argument("prompt", help="text to continue")
    parser.add_argument("--model", help="language model (default: the first by name)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N")
    parser.add_argument("--temperature", type=float, help="0 is greedy (default 1)")
    parser.add_argument("--top-k", type=int, metavar="K")
    parser.add_argument("--top-p", type=float, metavar="P")
    parser.add_argument("--seed", type=int)
    _add_model_options(parser)
    return parser


def _add_translate(commands: "_Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "translate",
        help="translate lines",
        description="Translate standard input line by line, in order, to standard output; files "
        "of any size, in constant memory. A line that cannot be translated ends it with the "
        "line's number; what came before is written. With --ray, translate files and folders "
        "into a folder on every core: see docs/corpora.md.",
    )
    parser.add_argument("--from", dest="source", metavar="LANGUAGE")
    parser.add_argument("--to", dest="target", metavar="LANGUAGE")
    parser.add_argument("--model", help="translation model (default: one that fits)")
    parser.add_argument(
        "--beam-size", type=int, metavar="N", help="width of the beam search; 1 is greedy"
    )
    parser.add_argument(
        "--length-penalty", type=float, metavar="ALPHA", help="of the beam's scores (default 0.75)"
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="ask this running server instead of loading models, with the API key in "
        "GATEHOUSE_API_KEY where it needs one",
    )
    _add_model_options(parser)
    _add_corpus_options(parser)
    return parser


def _add_corpus_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "whole corpora, with Ray Data (the extra ray)",
        "A run that was killed goes on when the same command is given again. Lines that cannot "
        "be translated are empty, and are told at the end with their numbers.",
    )
    group.add_argument(
        "inputs",
        type=Path,
        nargs="*",
        metavar="INPUT",
        help="files of lines, Parquet files, or folders of them",
    )
    group.add_argument("--ray", action="store_true", help="translate INPUT with Ray Data")
    group.add_argument("--out", type=Path, metavar="DIR", help="folder for the translations")
    group.add_argument(
        "--column", default="text", metavar="NAME", help="of the texts in Parquet files (text)"
    )
    group.add_argument(
        "--translation-column",
        default="translation",
        metavar="NAME",
        help="that Parquet files get (translation)",
    )
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of a Ray cluster that runs, or auto; without it Ray is started on this machine",
    )
    group.add_argument(
        "--workers", type=_positive, metavar="N", help="with one core each (default: every core)"
    )
    group.add_argument(
        "--shard-lines",
        type=_positive,
        default=2_000,
        metavar="N",
        help="lines that a worker does at a time (default 2000)",
    )


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _add_bleu(commands: "_Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "bleu", help="score translations", description="Score a file of hypotheses, one a line."
    )
    parser.add_argument("hypotheses", type=Path)
    parser.add_argument("references", type=Path, nargs="+", help="files with one reference a line")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["bleu"],
        choices=["bleu", "chrf", "ter", "textbook_bleu"],
    )
    return parser


def _add_keys(commands: "_Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "keys",
        help="make an API key",
        description="Make an API key. It is shown this once; the server stores its SHA-256 alone, "
        "in the entry that is shown with it: for GATEHOUSE_API_KEYS, or appended to a file for "
        "GATEHOUSE_API_KEYS_FILE. A server that runs must be started again. See docs/security.md.",
    )
    parser.add_argument("name", help="of whoever gets it: lower-case letters, digits, . _ -")
    parser.add_argument("--admin", action="store_true", help="it opens what is below /admin, too")
    parser.add_argument("--file", type=Path, metavar="FILE", help="append its entry to this file")
    return parser


_COMMANDS: "dict[str, Callable[[_Commands], argparse.ArgumentParser]]" = {
    "serve": _add_serve,
    "models": _add_models,
    "generate": _add_generate,
    "translate": _add_translate,
    "bleu": _add_bleu,
    "keys": _add_keys,
}
