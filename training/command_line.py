"""What the command lines of training, evaluation and import share."""

import argparse


def positive(text: str) -> int:
    """An option's value of 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def sentence_of(error: Exception) -> str:
    """What went wrong, in one sentence."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
