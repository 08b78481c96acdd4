"""Checkpoint folders: the round trip, and every kind of damage has its clear error."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import (
    CheckpointError,
    Model,
    build_model,
    find_checkpoints,
    load_model,
    read_checkpoint,
    save_checkpoint,
)
from models.checkpoint_schema import DataSource, Languages, TrainingRecord
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.tokenizers import CharacterTokenizer, Tokenizer, WordTokenizer
from tests.models.checkpoint_folders import sign

CPU = torch.device("cpu")
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


def _language_model() -> Model:
    torch.manual_seed(1)
    return build_model(
        LanguageModelConfig(
            vocabulary_size=LETTERS.vocabulary_size, hidden_size=7, embedding_size=5, num_layers=2
        )
    )


def _translator(*, tied: bool = False) -> Model:
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


def _save(path: Path, model: Model, tokenizers: dict[str, Tokenizer], **changes: Any) -> None:
    languages = Languages(source="en", target="fr") if "source" in tokenizers else None
    options: dict[str, Any] = {"training": RECORD, "card": "# Card é\n", "languages": languages}
    save_checkpoint(path, model, tokenizers=tokenizers, **(options | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _save(tmp_path / "letters", _language_model(), {"text": LETTERS})
    return tmp_path / "letters"


def _change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_a_language_model_comes_back_rounded_to_float16(folder: Path) -> None:
    model, info = _language_model(), read_checkpoint(folder)
    loaded = load_model(info, CPU)
    assert not loaded.training
    expected = {name: p.detach().half().float() for name, p in model.named_parameters()}
    found = dict(loaded.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(p.dtype is torch.float32 for p in found.values())
    assert info.config == model.config
    assert info.name == "letters"
    assert info.languages is None
    assert info.training == RECORD
    assert info.tokenizers["text"].encode("abé") == LETTERS.encode("abé")
    assert info.parameter_count == sum(p.numel() for p in model.parameters())
    assert (folder / "README.md").read_text(encoding="utf-8") == "# Card é\n"
    # Rounded once, it is the same for ever.
    before = (folder / "model.safetensors").read_bytes()
    _save(folder, loaded, {"text": LETTERS})
    assert (folder / "model.safetensors").read_bytes() == before
    assert read_checkpoint(folder).fingerprint == info.fingerprint


@pytest.mark.parametrize("tied", [True, False])
def test_a_translator_comes_back_and_shared_weights_are_stored_once(
    tmp_path: Path, tied: bool
) -> None:
    model = _translator(tied=tied)
    _save(tmp_path / "en-fr", model, {"source": WORDS, "target": WORDS})
    info = read_checkpoint(tmp_path / "en-fr")
    assert info.languages == Languages(source="en", target="fr")
    assert info.tokenizers.keys() == {"source", "target"}
    loaded = load_model(info, CPU)
    inputs = torch.tensor([[4, 5, 6, 2]])
    lengths = torch.tensor([4])
    half = model.half().float().eval()
    assert torch.equal(loaded(inputs, lengths, inputs), half(inputs, lengths, inputs))
    stored = load_file(tmp_path / "en-fr" / "model.safetensors")
    assert info.parameter_count == sum(t.numel() for t in stored.values())
    assert info.parameter_count == sum(p.numel() for p in model.parameters())
    shared = {"encoder.embedding.weight", "decoder.embedding.weight", "decoder.output_layer.weight"}
    assert len(shared & stored.keys()) == (1 if tied else 3)
    assert (tmp_path / "en-fr" / "tokenizer.json").exists(), "one file for one tokenizer"


def test_two_tokenizers_have_two_files(tmp_path: Path) -> None:
    other = WordTokenizer.train(["i see a cat", "je vois un chat"])
    _save(tmp_path / "en-fr", _translator(), {"source": WORDS, "target": other})
    names = {file.name for file in (tmp_path / "en-fr").iterdir()}
    assert {"source-tokenizer.json", "target-tokenizer.json"} <= names
    read_checkpoint(tmp_path / "en-fr")


def test_nothing_in_a_folder_is_a_pickle(folder: Path) -> None:
    for file in folder.iterdir():
        content = file.read_bytes()
        assert not content.startswith((b"\x80", b"PK")), file


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("output.bias"), r"missing \['output.bias'\], unexpected \[\]"),
        (lambda t: t.update(extra=torch.zeros(2)), r"missing \[\], unexpected \['extra'\]"),
        (lambda t: t.update({"output.bias": torch.zeros(2)}), r"output.bias has shape \[2\]"),
        (lambda t: t["output.bias"].fill_(torch.nan), "output.bias holds values that are not fin"),
        (lambda t: t["output.bias"][:1].fill_(torch.inf), "output.bias holds values that are not"),
        (
            lambda t: t.update({"output.bias": t["output.bias"].to(torch.int16)}),
            "output.bias holds torch.int16, not floating point",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* its SHA-256 differs"):
        read_checkpoint(folder)
    sign(folder)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{message}"):
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
    _change_json(folder / "config.json", change)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        read_checkpoint(folder)


def test_an_unknown_kind_of_tokenizer_is_named(folder: Path) -> None:
    _change_json(folder / "config.json", lambda c: c["tokenizers"]["text"].update(kind="bytes"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: unknown kind of tokenizer 'byte"):
        read_checkpoint(folder)


def test_a_tokenizer_of_another_size_is_named(folder: Path) -> None:
    CharacterTokenizer.train("ab").save(folder / "tokenizer.json")
    sign(folder)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: has 6 tokens, but config\.json"):
        read_checkpoint(folder)


def test_a_training_record_with_a_field_missing_is_named(folder: Path) -> None:
    _change_json(folder / "training.json", lambda record: record.pop("licence"))
    with pytest.raises(CheckpointError, match=r"training\.json: licence: Field required"):
        read_checkpoint(folder)


def test_a_config_of_other_shapes_is_refused_without_asking_for_their_memory(folder: Path) -> None:
    _change_json(folder / "config.json", lambda c: c["model"].update(hidden_size=60_000))
    with pytest.raises(CheckpointError, match=r"has shape .* but config\.json asks for"):
        load_model(read_checkpoint(folder), CPU)


def test_a_config_that_cannot_be_built_is_refused(folder: Path) -> None:
    _change_json(folder / "config.json", lambda c: c["model"].update(cell="gru_textbook"))
    with pytest.raises(CheckpointError, match="torch has no textbook GRU"):
        load_model(read_checkpoint(folder), CPU)


def test_weights_that_vanish_between_reading_and_loading_are_named(folder: Path) -> None:
    info = read_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        load_model(info, CPU)


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
    model = _language_model()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    _save(other, model, {"text": CharacterTokenizer.train("hbcdefg é\u202f")})
    for name in ("model.safetensors", "tokenizer.json"):
        mixed = tmp_path / "mixed"
        shutil.copytree(folder, mixed)
        shutil.copy(other / name, mixed / name)
        with pytest.raises(CheckpointError, match=rf"{name}: .* its SHA-256 differs"):
            read_checkpoint(mixed)
        shutil.rmtree(mixed)


def test_weights_beyond_float16_are_not_saved(tmp_path: Path) -> None:
    model = _language_model()
    with torch.no_grad():
        next(model.parameters()).fill_(1e6)
    with pytest.raises(ValueError, match="not finite in float16"):
        _save(tmp_path / "huge", model, {"text": CharacterTokenizer.train("abcdefg é\u202f")})
    assert not (tmp_path / "huge" / "config.json").exists()


def test_a_changed_tokenizer_leaves_no_stale_file(folder: Path) -> None:
    (folder / "source-tokenizer.json").write_text("{}")
    _save(folder, _language_model(), {"text": CharacterTokenizer.train("abcdefg é\u202f")})
    assert not (folder / "source-tokenizer.json").exists()


def test_the_fingerprint_does_not_cover_words(folder: Path) -> None:
    before = read_checkpoint(folder).fingerprint
    (folder / "README.md").write_text("Other words.")
    _change_json(folder / "training.json", lambda record: record.update(licence="other"))
    assert read_checkpoint(folder).fingerprint == before
    (folder / "README.md").unlink()
    assert read_checkpoint(folder).fingerprint == before


class _FullDisk(CharacterTokenizer):
    def save(self, path: Path) -> None:
        path.write_text("half")
        raise OSError("No space left on device")


def test_a_save_that_fails_leaves_the_old_checkpoint_whole(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(OSError, match="No space left"):
        _save(folder, _language_model(), {"text": _FullDisk.train("abcdefg é\u202f")})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder], "nothing is left lying about"


def test_a_save_replaces_its_own_files_only(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "notes.txt").write_text("mine")
    _save(folder, _language_model(), {"text": LETTERS}, card="# New\n")
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "README.md").read_text() == "# New\n"
    assert (folder / "run").is_dir()


def test_checkpoints_are_found_by_their_config(tmp_path: Path) -> None:
    for name in ("b", "a"):
        _save(tmp_path / name, _language_model(), {"text": LETTERS})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    # What a kill in the middle of a save leaves behind.
    (tmp_path / ".a-x1y2z3").mkdir()
    (tmp_path / ".a-x1y2z3" / "config.json").write_text("{}")
    assert find_checkpoints(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_checkpoints(tmp_path / "a") == [tmp_path / "a"]
    assert find_checkpoints(tmp_path / "nowhere") == []
    assert find_checkpoints(tmp_path / "file") == []
