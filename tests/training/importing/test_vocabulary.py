"""Other people's vocabularies."""

import json
from pathlib import Path

import pytest
import torch

from training.importing.vocabulary import UNREACHABLE, read_vocabulary, reconcile
from training.importing.weights import ImportingError

FILE = Path("vocabulary.txt")


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        ("a.txt", "a\n \n<unk>\n", ["a", " ", "<unk>"]),
        ("a.txt", "a\r\nb", ["a", "b"]),
        ("a.txt", "\ufeff<unk>\nb", ["<unk>", "b"]),
        ("a.json", '\ufeff["a", "b"]', ["a", "b"]),
        ("a.json", json.dumps(["\n", "b"]), ["\n", "b"]),
        ("a.json", json.dumps({"b": 1, "a": 0}), ["a", "b"]),
    ],
)
def test_a_file_of_tokens(name: str, text: str, tokens: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_vocabulary(tmp_path / name) == tokens


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.txt", "a\n\nb\n", "line 2 is empty"),
        ("a.json", "{", "not readable"),
        ("a.json", '{"a": 1, "b": 2}', "the ids are not the numbers 0 to 1"),
        ("a.json", '["a", 1]', "neither a list of tokens"),
        ("a.json", "3", "neither a list of tokens"),
    ],
)
def test_a_file_of_something_else(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ImportingError, match=sentence):
        read_vocabulary(tmp_path / name)


def test_rows_move_to_gatehouses_ids() -> None:
    vocabulary = reconcile(FILE, ["a", "<eos>", "b", "<unk>"])
    assert vocabulary.tokens == ("<pad>", "<bos>", "<eos>", "<unk>", "a", "b")
    assert vocabulary.rows == (None, None, 1, 3, 0, 2)
    assert [vocabulary.has(role) for role in ("pad", "bos", "eos", "unk")] == [False, False] + [
        True
    ] * 2
    theirs = torch.arange(1, 5).float()
    assert vocabulary.embeddings(theirs[:, None]).tolist() == [[0], [0], [2], [4], [1], [3]]
    weight, bias = vocabulary.outputs(theirs[:, None], theirs)
    assert weight.tolist() == [[0], [0], [2], [4], [1], [3]]
    assert bias.tolist() == [UNREACHABLE, UNREACHABLE, 2, 4, 1, 3]


def test_tokens_that_cannot_be_told_apart() -> None:
    with pytest.raises(ImportingError, match="'a' comes twice"):
        reconcile(FILE, ["a", "b", "a"])
    with pytest.raises(ImportingError, match="<bos> and <s> may both be <bos>"):
        reconcile(FILE, ["<s>", "<bos>"])
    assert reconcile(FILE, ["<s>", "<bos>"], {"bos": "<s>"}).rows[1] == 0
