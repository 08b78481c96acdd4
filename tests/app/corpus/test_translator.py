"""Translations are those of the service; what cannot be translated is told and left empty."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.corpus import translator
from app.corpus.translator import CorpusOptions, LineFailure, LineTranslator, TranslatedLines
from app.exceptions import StartupError
from app.service.service import limits_of
from models.checkpoint import read_checkpoint
from models.decoding.corpus import decode_corpus
from tests.app.conftest import make_settings, save_odd_models

LINES = [
    "I am cold .",
    "",
    "  ",
    "go",
    "the time machine " * 20,
    "nothing of this is known",
    "we lost \N{SNOWMAN}",
]


def _options(checkpoint: Path, **settings: Any) -> CorpusOptions:
    return CorpusOptions(
        checkpoint=checkpoint,
        fingerprint=read_checkpoint(checkpoint).fingerprint,
        precision="int8",
        beam_size=settings.pop("beam_size", 4),
        length_penalty=0.75,
        limits=limits_of(make_settings(checkpoint, **settings)),
        row_budget=16,
    )


def _served(client: TestClient, model: str, beam_size: int) -> TranslatedLines:
    body = {"text": LINES, "model": model, "beam_size": beam_size}
    answer = client.post("/translate", json=body).json()
    texts = [" ".join(one["text"].splitlines()) for one in answer["translations"]]
    return TranslatedLines(texts, [], answer["usage"]["output_tokens"])


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("model", ["en-fr", "fr-en-plain"])
def test_translations_are_those_of_the_service(
    checkpoints_dir: Path, client: TestClient, model: str, beam_size: int
) -> None:
    lines = LineTranslator(_options(checkpoints_dir / model, beam_size=beam_size))
    translated = lines.translate([line.encode() for line in LINES])
    assert translated == _served(client, model, beam_size)


def test_pieces_of_characters_are_put_together_as_the_service_does(
    tmp_path: Path, odd_client: TestClient
) -> None:
    save_odd_models(tmp_path)
    translated = LineTranslator(_options(tmp_path / "pieces")).translate(
        [line.encode() for line in LINES]
    )
    assert translated == _served(odd_client, "pieces", 4)


def test_what_cannot_be_translated_is_told_and_empty(checkpoints_dir: Path) -> None:
    options = _options(checkpoints_dir / "en-fr", max_characters_per_text=12)
    lines = LineTranslator(options).translate([b"go", b"\xff", None, b"a" * 13, b"we lost"])
    assert lines.failures == [
        LineFailure(1, "not UTF-8: invalid start byte"),
        LineFailure(3, "text: 13 characters are more than the 12 allowed"),
    ]
    assert [bool(text) for text in lines.translations] == [True, False, False, False, True]


def test_a_line_that_the_model_fails_at_costs_no_other(
    checkpoints_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = LineTranslator(_options(checkpoints_dir / "en-fr"))
    whole = lines.translate([b"go", b"we lost", b"I am cold ."])

    def fail_at_two_tokens(model: Any, prompts: Any, params: Any, **options: Any) -> Iterator[Any]:
        for place, outputs in decode_corpus(model, prompts, params, **options):
            if len(prompts[place]) == 3:
                raise ArithmeticError("not a number")
            yield place, outputs

    monkeypatch.setattr(translator, "decode_corpus", fail_at_two_tokens)
    broken = lines.translate([b"go", b"we lost", b"I am cold ."])
    assert broken.failures == [LineFailure(1, "not a number")]
    assert broken.translations == [whole.translations[0], "", whole.translations[2]]


def test_another_checkpoint_than_was_meant_is_refused(checkpoints_dir: Path) -> None:
    options = _options(checkpoints_dir / "en-fr")
    with pytest.raises(StartupError, match="en-fr-small here is not the one"):
        LineTranslator(
            CorpusOptions(**{**vars(options), "checkpoint": checkpoints_dir / "en-fr-small"})
        )
