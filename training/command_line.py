"""What the command lines of training, evaluation and import share."""

import argparse
import re
import sys
from collections.abc import Callable

import torch

_STATUS_INTERRUPTED = 130


def positive(text: str) -> int:
    """An option's value of 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def require_folder_name(name: str) -> None:
    """Refuse a model's name that could not be its folder's, or leads elsewhere.

    Raises:
        ValueError: it is no such name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(f"--name {name!r}: letters, digits, dots, dashes and underscores only")


def sentence_of(error: Exception) -> str:
    """What went wrong, in one sentence."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def exit_status(prog: str, work: Callable[[], int], mishaps: tuple[type[Exception], ...]) -> int:
    """Do some work; what a person can mend is told on stderr in one sentence, without a traceback.

    Args:
        prog: the program's name, for what is told.
        work: returns the exit status where all went well.
        mishaps: what a person can mend.

    Returns:
        That of the work, 1 after a sentence, or 130 after Ctrl-C.
    """
    try:
        return work()
    except mishaps as error:
        print(f"{prog}: {sentence_of(error)}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:
        print(f"{prog}: the GPU has no memory left: use --device cpu", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _STATUS_INTERRUPTED
