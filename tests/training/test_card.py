"""The model card."""

import pytest

from models.checkpoint_model import build_model
from models.checkpoint_schema import DataSource, TrainingRecord
from models.config import LanguageModelConfig
from models.tokenizers import CharacterTokenizer
from training.card import write_card
from training.preset import Card

CARD = Card(title="A title", licence="CC BY 2.0", attribution="By those.", limits="Many.")
TOKENIZER = CharacterTokenizer.train("abcde")
CONFIG = LanguageModelConfig(vocabulary_size=TOKENIZER.vocabulary_size, hidden_size=6)


def _card(card: Card, **changes: object) -> str:
    record = TrainingRecord.model_validate(
        {
            "name": "a-model",
            "created": "2026-01-02T03:04:05+00:00",
            "data": [DataSource(name="A text", origin="https://example.org/t", sha256="ab" * 32)],
            "licence": card.licence,
            "attribution": card.attribution,
            "seed": 5,
            "steps": 120,
            "metrics": {"held_out_perplexity": 3.1416, "test_sentences": 1500.0},
            "metrics_note": "Measured with care.",
            **changes,
        }
    )
    return write_card(card, record, build_model(CONFIG), {"text": TOKENIZER})


@pytest.mark.parametrize(
    "said",
    [
        "# A title\n",
        "preset `a-model` on 2026-01-02: seed 5,\n120 steps",
        "- A text, from https://example.org/t, SHA-256 of the text `" + "ab" * 32 + "`",
        "Licence of the model: CC BY 2.0\n\nAttribution: By those.\n",
        "| held out perplexity | 3.1416 |\n| test sentences | 1500 |\n",
        "Measured with care.",
        "Many.",
        "text: character, 9 tokens",
        "| hidden_size | 6 |",
        "| cell | gru |",
    ],
)
def test_the_card_says_what_a_user_must_know(said: str) -> None:
    assert said in _card(CARD)


def test_the_card_counts_the_parameters() -> None:
    count = sum(parameter.numel() for parameter in build_model(CONFIG).parameters())
    assert f"Parameters: {count / 1e6:.2f} M" in _card(CARD)


def test_without_attribution_none_is_shown() -> None:
    plain = Card(title="T", licence="public domain", limits="Some.")
    assert "Attribution" not in _card(plain, attribution=None)
