"""What a model reads of the texts that it is to continue."""

import pytest

from app.exceptions import InvalidRequestError
from app.service.prompts import encode_prompts
from models.tokenizers import BOS_ID, UNK_ID, CharacterTokenizer, WordTokenizer


def test_prompts_begin_at_bos() -> None:
    tokenizer = CharacterTokenizer.train("ab")
    assert encode_prompts(tokenizer, ["", "a"]) == [[BOS_ID], [BOS_ID, *tokenizer.encode("a")]]


def test_unseen_characters_are_named_unseen_words_are_unk() -> None:
    with pytest.raises(InvalidRequestError, match=r"'é' \(U\+00E9\), U\+0007$") as caught:
        encode_prompts(CharacterTokenizer.train("ab"), ["ab", "aéa\aé"])
    assert caught.value.field == "prompt.1"
    with pytest.raises(InvalidRequestError, match=r"and 16 more$"):
        encode_prompts(CharacterTokenizer.train("ab"), ["cdefghijklmnopqrstuvwxyz01"])
    assert encode_prompts(WordTokenizer.train(["a b"]), ["a z"])[0][-1] == UNK_ID
