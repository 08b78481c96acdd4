"""The book's exercises, trained as the book does, beside the book's figures.

Trains every ``book-*`` preset (or goes on with a run that was stopped) and prints, for each,
the perplexity and speed that were measured and what *Dive into Deep Learning* reports.
"""

import argparse
import math
from pathlib import Path

import torch

from benchmarks.report import finish, markdown_table
from models.checkpoint import CheckpointInfo, read_checkpoint
from models.checkpoint_model import load_model
from models.decoding.corpus import decode_corpus
from models.decoding.params import DecodingParams
from models.evaluation import textbook_bleu
from models.tokenizers import source_prompt
from training.cli import DEFAULT_CACHE
from training.preset import load_preset
from training.run import train

CHARACTER_PRESETS = {
    "book-gru-scratch": "1.1 (GRU from scratch)",
    "book-lstm-scratch": "1.1 (LSTM from scratch)",
    "book-gru": "1.0 (GRU, high-level API)",
    "book-lstm": "1.0 (LSTM, high-level API)",
    "book-lstm-2-layers": "1.0 (two-layer LSTM)",
    "book-lstm-bidirectional": "not given",
}
# The four sentences of section 10.7.6 with the translations that the book compares with.
BOOK_SENTENCES = {
    "go .": "va !",
    "i lost .": "j'ai perdu .",
    "he's calm .": "il est calme .",
    "i'm home .": "je suis chez moi .",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--text", help="timemachine.txt (default: the preset's URL)")
    parser.add_argument("--pairs", help="fra-eng.zip (default: the preset's URL)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where the runs go")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, print."""
    torch.set_num_threads(arguments.threads)
    figures: dict[str, dict[str, float]] = {}
    rows = []
    for name, book in CHARACTER_PRESETS.items():
        metrics = _trained(name, arguments.text, arguments.out).training.metrics
        figures[name] = dict(metrics)
        rows.append(
            [
                name,
                f"{metrics['last_epoch_training_perplexity']:.3f}",
                f"{metrics['training_perplexity']:.3f}",
                book,
                f"{metrics['training_tokens_per_second']:,.0f}",
            ]
        )
    header = ["preset", "last epoch", "read as one row", "the book", "tokens/s"]
    print(markdown_table(header, rows), end="\n\n")
    info = _trained("book-seq2seq", arguments.pairs, arguments.out)
    loss = math.log(info.training.metrics["last_epoch_training_perplexity"])
    speed = info.training.metrics["training_tokens_per_second"]
    translations = _translate(info)
    print(markdown_table(["source", "translation", "BLEU (k = 2)"], translations), end="\n\n")
    print(f"training loss {loss:.3f} (the book: 0.02), {speed:,.0f} target tokens/s")
    scores = {source: float(score) for source, _, score in translations}
    figures["book-seq2seq"] = {"loss": loss, "tokens_per_second": speed, **scores}
    finish("book", figures)
    return 0


def _trained(name: str, data_location: str | None, out: Path) -> CheckpointInfo:
    _, preset = load_preset(name)
    folder = train(
        name,
        preset,
        out,
        cache_dir=DEFAULT_CACHE.expanduser(),
        device=torch.device("cpu"),
        data_location=data_location,
    )
    return read_checkpoint(folder)


def _translate(info: CheckpointInfo) -> list[list[str]]:
    model = load_model(info, torch.device("cpu"))
    source, target = info.tokenizers["source"], info.tokenizers["target"]
    prompts = [source_prompt(source, sentence) for sentence in BOOK_SENTENCES]
    outputs = dict(decode_corpus(model, prompts, DecodingParams(max_new_tokens=9)))
    rows = []
    for index, (sentence, label) in enumerate(BOOK_SENTENCES.items()):
        text = target.decode(outputs[index][0].token_ids)
        rows.append([sentence, text, f"{textbook_bleu(text.split(), label.split(), 2):.3f}"])
    return rows
