"""The source sentences that are translated under load."""

import argparse
import random
from pathlib import Path

from models.checkpoint import CheckpointInfo
from training.cli import DEFAULT_CACHE
from training.corpora import read_cut
from training.preset import Preset

DEFAULT_SENTENCES = Path(__file__).parent / "data" / "sentences.txt"
"""Some 230 English sentences of one to forty words, written for this purpose."""
MAX_SENTENCES = 512


def add_sentence_options(parser: argparse.ArgumentParser) -> None:
    """Declare where sentences come from."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--sentences", type=Path, default=DEFAULT_SENTENCES, help="a text, one sentence a line"
    )
    source.add_argument(
        "--pairs", help="path or URL of the checkpoint's training data: take its test sentences"
    )


def read_sentences(arguments: argparse.Namespace, info: CheckpointInfo) -> list[str]:
    """The sentences to translate, at most :data:`MAX_SENTENCES`, in an order that the seed decides.

    Raises:
        SystemExit: the checkpoint was not trained on sentence pairs.
    """
    if arguments.pairs is None:
        lines = arguments.sentences.read_text(encoding="utf-8").splitlines()
        sentences = [line for line in lines if line.strip()]
    else:
        sentences = _test_sentences(info, arguments.pairs)
    random.Random(arguments.seed).shuffle(sentences)
    return sentences[:MAX_SENTENCES]


def _test_sentences(info: CheckpointInfo, location: str) -> list[str]:
    """The test sentences of a checkpoint's preset, which it was not trained on."""
    data = Preset.model_validate(info.training.preset).data
    if data.kind != "parallel":
        raise SystemExit(f"{info.name} was not trained on sentence pairs")
    cut, _ = read_cut(data, location, DEFAULT_CACHE.expanduser())
    return [sentence.source for sentence in cut.test]
