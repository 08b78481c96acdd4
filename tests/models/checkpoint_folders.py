"""Checkpoint folders of tiny models, and what tests do to them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from models.checkpoint_model import Model, build_model, save_checkpoint
from models.checkpoint_schema import DataSource, Languages, TrainingRecord
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.tokenizers import CharacterTokenizer, Tokenizer, WordTokenizer

RECORD = TrainingRecord(
    name="a-model",
    created="2026-01-02T03:04:05+00:00",
    data=[DataSource(name="Un texte déjà vu", origin="https://example.org", sha256="ab" * 32)],
    licence="CC BY 2.0",
    seed=1,
    steps=2,
    metrics={"held_out_perplexity": 3.25},
)
LETTERS = CharacterTokenizer.train("abcdefg é\u202f")
WORDS = WordTokenizer.train(["i see a cat", "je vois un chat"])


def make_language_model() -> Model:
    torch.manual_seed(1)
    return build_model(
        LanguageModelConfig(
            vocabulary_size=LETTERS.vocabulary_size, hidden_size=7, embedding_size=5, num_layers=2
        )
    )


def make_translator(*, tied: bool = False) -> Model:
    torch.manual_seed(2)
    return build_model(
        Seq2SeqConfig(
            source_vocabulary_size=WORDS.vocabulary_size,
            target_vocabulary_size=WORDS.vocabulary_size,
            embedding_size=6,
            hidden_size=8,
            tie_embeddings=tied,
        )
    )


def save(path: Path, model: Model, tokenizers: dict[str, Tokenizer], **changes: Any) -> None:
    languages = Languages(source="en", target="fr") if "source" in tokenizers else None
    options: dict[str, Any] = {"training": RECORD, "card": "# Card é\n", "languages": languages}
    save_checkpoint(path, model, tokenizers=tokenizers, **(options | changes))


def change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def sign(folder: Path) -> None:
    """Make the checksums right, so that what lies behind them is what is tested."""
    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in config["sha256"]
    }
    (folder / "config.json").write_text(json.dumps(config))
