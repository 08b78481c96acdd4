"""``gatehouse import``: other people's weights to a checkpoint folder."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from models.checkpoint import CheckpointError
from models.checkpoint_schema import Languages
from models.preparation import PREPARATIONS
from training.command_line import sentence_of
from training.importing.folder import checkpoint_folder, write_checkpoint
from training.importing.joeynmt import build_from_joeynmt, read_joeynmt
from training.importing.opennmt import build_from_opennmt, read_opennmt, require_plain_text
from training.importing.state_dict import build_language_model, read_state_dict
from training.importing.vocabulary import (
    ROLES,
    Role,
    make_table_tokenizer,
    read_vocabulary,
    reconcile,
)
from training.importing.weights import ImportingError

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

MISHAPS = (ImportingError, CheckpointError, OSError, ValueError)
"""What a person can mend: told in one sentence, without a traceback."""


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Turn weights that were trained elsewhere into a checkpoint folder that "
        "`gatehouse serve` loads. No code in their file is ever run. See docs/import.md.",
    )
    commands = parser.add_subparsers(required=True, metavar="FORMAT")
    _add_state_dict(commands)
    _add_opennmt(commands)
    _add_joeynmt(commands)
    return parser


def _add_state_dict(commands: "_Commands") -> None:
    parser = commands.add_parser(
        "state-dict",
        help="a language model: nn.GRU, nn.LSTM or nn.RNN with an output layer",
        description="Import the state_dict of a language model: an embedding (or one-hot "
        "vectors), nn.GRU, nn.LSTM or nn.RNN, and an output layer.",
    )
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help=".pt or .safetensors")
    parser.add_argument(
        "--vocabulary",
        type=Path,
        required=True,
        metavar="FILE",
        help="the tokens in the order of their ids: a JSON list (or an object of ids), or text "
        "with one token a line",
    )
    parser.add_argument("--tokenizer", required=True, choices=["character", "word"])
    parser.add_argument(
        "--preparation",
        choices=list(PREPARATIONS),
        default="none",
        help="what is done to every text before it is cut into tokens (default: none)",
    )
    parser.add_argument(
        "--map",
        metavar="THEIRS=OURS",
        action="append",
        default=[],
        help="where a tensor, or all that begin with THEIRS, belong: embedding, rnn or output; "
        "nothing behind the = leaves them out (may be repeated)",
    )
    parser.add_argument(
        "--special",
        metavar="ROLE=TOKEN",
        action="append",
        default=[],
        help="what they call pad, bos, eos or unk, where it is not guessed (may be repeated)",
    )
    parser.add_argument(
        "--begin-with",
        metavar="TOKEN",
        help="a token of theirs that texts begin behind, for a vocabulary without <bos>: <eos>, "
        "say, or a line break (default: the first token meets a state of zeros)",
    )
    add_output_options(parser)
    parser.set_defaults(run=_import_state_dict)


def _add_opennmt(commands: "_Commands") -> None:
    parser = commands.add_parser(
        "opennmt",
        help="a recurrent translation model of OpenNMT-py 3",
        description="Import a recurrent translation model of OpenNMT-py 3, with its vocabularies.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="..._step_N.pt")
    parser.add_argument("--from", dest="source", required=True, metavar="LANGUAGE", help="en, say")
    parser.add_argument("--to", dest="target", required=True, metavar="LANGUAGE")
    parser.add_argument(
        "--pretokenized",
        action="store_true",
        help="import a model of subwords (or other transforms of the text), whose clients will "
        "send and receive its tokens with spaces between them",
    )
    add_output_options(parser)
    parser.set_defaults(run=_import_opennmt)


def _add_joeynmt(commands: "_Commands") -> None:
    parser = commands.add_parser(
        "joeynmt",
        help="a recurrent translation model of JoeyNMT",
        description="Import a recurrent translation model of words or characters from the folder "
        "that JoeyNMT wrote: config.yaml, src_vocab.txt, trg_vocab.txt and a checkpoint.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="JoeyNMT's model_dir")
    parser.add_argument(
        "--checkpoint", default="best.ckpt", metavar="FILE", help="in it (default: best.ckpt)"
    )
    add_output_options(parser)
    parser.set_defaults(run=_import_joeynmt)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """What every format's command asks for."""
    parser.add_argument("--name", required=True, help="of the model: its folder's name")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where the checkpoint folder goes (default: runs)",
    )
    parser.add_argument(
        "--licence", default="unknown", metavar="TEXT", help="of the model, for its card"
    )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 1 after one clear sentence on stderr.
    """
    parser = build_parser(prog)
    arguments = parser.parse_args(argv)
    run = cast(Callable[[argparse.Namespace, Path], Sequence[str]], arguments.run)
    try:
        folder = checkpoint_folder(arguments.out, arguments.name)
        notes = run(arguments, folder)
    except MISHAPS as error:
        print(f"{parser.prog}: {sentence_of(error)}", file=sys.stderr)
        return 1
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"wrote {folder}\nserve it with: gatehouse serve --checkpoints {arguments.out}")
    return 0


def _import_state_dict(arguments: argparse.Namespace, folder: Path) -> Sequence[str]:
    """Write the folder; return what should be said about the model."""
    theirs = read_vocabulary(arguments.vocabulary)
    vocabulary = reconcile(arguments.vocabulary, theirs, _specials(arguments.special))
    tokenizer = make_table_tokenizer(arguments.tokenizer, vocabulary, arguments.preparation)
    begin_with = None
    if arguments.begin_with is not None:
        if arguments.begin_with not in theirs:
            raise ImportingError(f"{arguments.vocabulary}: has no token {arguments.begin_with!r}")
        begin_with = theirs.index(arguments.begin_with)
    weights, notes = read_state_dict(arguments.weights)
    weights.rename(_pairs("--map", arguments.map))
    imported = build_language_model(weights, vocabulary, begin_with)
    notes = [*notes, *imported.notes]
    write_checkpoint(
        folder,
        imported.model,
        tokenizers={"text": tokenizer},
        languages=None,
        weights_format="state_dict",
        file=arguments.weights,
        licence=arguments.licence,
        notes=notes,
    )
    return notes


def _import_opennmt(arguments: argparse.Namespace, folder: Path) -> Sequence[str]:
    """Write the folder; return what should be said about the model."""
    checkpoint = read_opennmt(arguments.checkpoint)
    if not arguments.pretokenized:
        require_plain_text(arguments.checkpoint, checkpoint.options)
    model = build_from_opennmt(checkpoint)
    tokenizers = {"source": make_table_tokenizer("word", checkpoint.source)}
    is_shared = checkpoint.source == checkpoint.target
    tokenizers["target"] = (
        tokenizers["source"] if is_shared else make_table_tokenizer("word", checkpoint.target)
    )
    write_checkpoint(
        folder,
        model,
        tokenizers=tokenizers,
        languages=Languages(source=arguments.source, target=arguments.target),
        weights_format="OpenNMT-py",
        file=arguments.checkpoint,
        licence=arguments.licence,
    )
    return []


def _import_joeynmt(arguments: argparse.Namespace, folder: Path) -> Sequence[str]:
    """Write the folder; return what should be said about the model."""
    file = arguments.folder / arguments.checkpoint
    joeynmt = read_joeynmt(arguments.folder, file)
    source, target = joeynmt.source, joeynmt.target
    write_checkpoint(
        folder,
        build_from_joeynmt(joeynmt),
        tokenizers={"source": source.tokenizer, "target": target.tokenizer},
        languages=Languages(source=source.language, target=target.language),
        weights_format="JoeyNMT",
        file=file,
        licence=arguments.licence,
    )
    return []


def _specials(options: Sequence[str]) -> dict[Role, str]:
    given = _pairs("--special", options)
    for role in given:
        if role not in ROLES:
            raise ImportingError(f"--special {role}: a role is one of {', '.join(ROLES)}")
    return {role: given[role] for role in ROLES if role in given}


def _pairs(option: str, values: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        left, equals, right = value.partition("=")
        if not equals or not left:
            raise ImportingError(f"{option} {value}: write it as {option} LEFT=RIGHT")
        pairs[left] = right
    return pairs
