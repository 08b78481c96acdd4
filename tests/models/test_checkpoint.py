"""What a checkpoint folder says, and every kind of damage has its clear error."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import CheckpointError, find_checkpoints, read_checkpoint
from models.checkpoint_model import load_model
from models.tokenizers import CharacterTokenizer
from tests.models.checkpoint_folders import LETTERS, change_json, make_language_model, save, sign

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "letters", make_language_model(), {"text": LETTERS})
    return tmp_path / "letters"


FILES = ["config.json", "training.json", "tokenizer.json", "model.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: missing"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(CheckpointError, match=rf"{name}: Is a directory"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_file_with_other_content_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as raised:
        read_checkpoint(folder)
    assert len(str(raised.value)) < 1000


def test_cut_weights_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for size in (4, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        sign(folder)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_model(read_checkpoint(folder), CPU)
    file.write_bytes(content + b"\0")
    sign(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(read_checkpoint(folder), CPU)


def test_no_flipped_byte_of_the_header_passes_or_escapes(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    padding = len(content[8 : 8 + size]) - len(content[8 : 8 + size].rstrip())
    for place in range(0, 8 + size - padding, 17):
        for flip in (0x01, 0x20, 0x80):
            spoilt = bytearray(content)
            spoilt[place] ^= flip
            file.write_bytes(spoilt)
            sign(folder)
            with pytest.raises(CheckpointError, match=r"model\.safetensors"):
                load_model(read_checkpoint(folder), CPU)


def test_a_pickle_in_disguise_is_not_run(folder: Path) -> None:
    sprung = folder / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (sprung,))

    torch.save({"output.bias": Trap()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* its SHA-256 differs"):
        read_checkpoint(folder)
    sign(folder)  # as whoever means harm would
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors"):
        read_checkpoint(folder)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=2), "format 2 is newer than this Gatehouse reads"),
        (lambda c: c.pop("format_version"), "format_version is missing"),
        (lambda c: c.update(format_version="1"), "format_version is missing or not a number"),
        (lambda c: c.update(format_version=0), "format_version is missing or not a number"),
        (lambda c: c.update(extra=1), "extra: Extra inputs"),
        (lambda c: c["model"].update(kind="transformer"), "model: Input tag 'transformer'"),
        (lambda c: c["model"].update(hiden_size=3), "hiden_size: Extra inputs"),
        (lambda c: c["model"].update(hidden_size=-1), "hidden_size: Input should be"),
        (lambda c: c.pop("model"), "model: Field required"),
        (lambda c: c.update(tokenizers={}), r"needs the tokenizers \['text'\], not \[\]"),
        (
            lambda c: c.update(tokenizers={"source": c["tokenizers"]["text"]}),
            r"needs the tokenizers \['text'\], not \['source'\]",
        ),
        (lambda c: c["tokenizers"]["text"].update(file="../tokenizer.json"), "text.file: String"),
        (lambda c: c["tokenizers"]["text"].update(file="/etc/passwd"), "text.file: String"),
        (lambda c: c["tokenizers"]["text"].update(file="..\\x"), "text.file: String"),
        (lambda c: c["tokenizers"]["text"].update(file=".."), "text.file: String"),
        (lambda c: c["tokenizers"]["text"].update(file=""), "text.file: String"),
        (lambda c: c["tokenizers"]["text"].update(file="a.json\n"), "text.file: String"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_json(folder / "config.json", change)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        read_checkpoint(folder)


def test_an_unknown_kind_of_tokenizer_is_named(folder: Path) -> None:
    change_json(folder / "config.json", lambda c: c["tokenizers"]["text"].update(kind="bytes"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: unknown kind of tokenizer 'byte"):
        read_checkpoint(folder)


def test_a_tokenizer_of_another_size_is_named(folder: Path) -> None:
    CharacterTokenizer.train("ab").save(folder / "tokenizer.json")
    sign(folder)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: has 6 tokens, but config\.json"):
        read_checkpoint(folder)


def test_a_training_record_with_a_field_missing_is_named(folder: Path) -> None:
    change_json(folder / "training.json", lambda record: record.pop("licence"))
    with pytest.raises(CheckpointError, match=r"training\.json: licence: Field required"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_the_fingerprint_covers_what_decides_the_answers(folder: Path, name: str) -> None:
    before = read_checkpoint(folder).fingerprint
    assert len(before) == 64
    content = bytearray((folder / name).read_bytes())
    if name == "model.safetensors":
        content[-1] ^= 1
    else:
        content += b"\n"
    (folder / name).write_bytes(content)
    sign(folder)
    assert read_checkpoint(folder).fingerprint != before


def test_files_of_two_checkpoints_do_not_pass_for_one(folder: Path, tmp_path: Path) -> None:
    """What a kill between two moves of a save would leave."""
    other = tmp_path / "other"
    model = make_language_model()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save(other, model, {"text": CharacterTokenizer.train("hbcdefg é\u202f")})
    for name in ("model.safetensors", "tokenizer.json"):
        mixed = tmp_path / "mixed"
        shutil.copytree(folder, mixed)
        shutil.copy(other / name, mixed / name)
        with pytest.raises(CheckpointError, match=rf"{name}: .* its SHA-256 differs"):
            read_checkpoint(mixed)
        shutil.rmtree(mixed)


def test_the_fingerprint_does_not_cover_words(folder: Path) -> None:
    before = read_checkpoint(folder).fingerprint
    (folder / "README.md").write_text("Other words.")
    change_json(folder / "training.json", lambda record: record.update(licence="other"))
    assert read_checkpoint(folder).fingerprint == before
    (folder / "README.md").unlink()
    assert read_checkpoint(folder).fingerprint == before


def test_checkpoints_are_found_by_their_config(tmp_path: Path) -> None:
    for name in ("b", "a"):
        save(tmp_path / name, make_language_model(), {"text": LETTERS})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    # What a kill in the middle of a save leaves behind.
    (tmp_path / ".a-x1y2z3").mkdir()
    (tmp_path / ".a-x1y2z3" / "config.json").write_text("{}")
    assert find_checkpoints(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_checkpoints(tmp_path / "a") == [tmp_path / "a"]
    assert find_checkpoints(tmp_path / "nowhere") == []
    assert find_checkpoints(tmp_path / "file") == []
