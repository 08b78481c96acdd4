"""Splitting texts in pieces at random, the same way for the same seed."""

import subprocess
import sys
from pathlib import Path

import pytest

from models.preparation import normalise_spaces
from models.tokenizers import CharacterTokenizer, SentencePieceTokenizer
from training.tokenization import sample_encodings

TEXTS = ["the time traveller smiled", "a time machine", "he travelled in time", "été ▁ ok"]


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(TEXTS * 20, 283, normalization="nmt_nfkc")


def test_a_seed_splits_the_same_way_and_another_differently(
    tokenizer: SentencePieceTokenizer,
) -> None:
    first = sample_encodings(tokenizer, TEXTS * 5, 0.2, "1 source")
    assert sample_encodings(tokenizer, TEXTS * 5, 0.2, "1 source") == first
    assert sample_encodings(tokenizer, TEXTS * 5, 0.2, "2 source") != first


def test_a_seed_splits_the_same_way_in_every_process(
    tokenizer: SentencePieceTokenizer, tmp_path: Path
) -> None:
    """Resuming goes on in a new process, and processes that train together plan alike."""
    tokenizer.save(tmp_path / "tokenizer.model")
    script = (
        "import sys\n"
        "from models.tokenizers import SentencePieceTokenizer\n"
        "from training.tokenization import sample_encodings\n"
        "tokenizer = SentencePieceTokenizer(open(sys.argv[1], 'rb').read())\n"
        f"print(sample_encodings(tokenizer, {TEXTS} * 5, 0.2, '1 source'))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "tokenizer.model")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.strip() == str(sample_encodings(tokenizer, TEXTS * 5, 0.2, "1 source"))


def test_every_split_is_one_of_the_same_text(tokenizer: SentencePieceTokenizer) -> None:
    found = {
        text: {tuple(sample_encodings(tokenizer, [text], 0.2, str(seed))[0]) for seed in range(30)}
        for text in TEXTS
    }
    for text, splits in found.items():
        assert {tokenizer.decode(split) for split in splits} == {normalise_spaces(text)}
    assert all(len(splits) > 1 for text, splits in found.items() if "▁" not in text)


def test_a_large_smoothing_gives_the_best_split(tokenizer: SentencePieceTokenizer) -> None:
    assert sample_encodings(tokenizer, TEXTS, 500.0, "1") == [*map(tokenizer.encode, TEXTS)]


def test_a_tokenizer_with_one_split_gives_that() -> None:
    characters = CharacterTokenizer.train("".join(TEXTS))
    assert sample_encodings(characters, TEXTS, 0.1, "1") == [*map(characters.encode, TEXTS)]
