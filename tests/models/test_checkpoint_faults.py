"""Any damage to any file of a checkpoint: a clear error that names a file, or the same model."""

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoint import CheckpointError, CheckpointInfo, read_checkpoint
from models.checkpoint_model import Model, build_model, load_model, save_checkpoint
from models.checkpoint_schema import Languages
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.tokenizers import CharacterTokenizer, SentencePieceTokenizer, Tokenizer
from tests.models.checkpoint_folders import RECORD, sign

pytestmark = pytest.mark.chaos

CPU = torch.device("cpu")
COVERED = ("model.safetensors", "tokenizer.json", "tokenizer.model")
"""Files whose every bit is covered by a checksum."""

Files = dict[str, bytes]


@functools.cache
def whole(kind: str) -> Files:
    """The files of a checkpoint as they should be."""
    torch.manual_seed(1)
    letters = CharacterTokenizer.train("abcdefg é")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / kind
        if kind == "letters":
            config = LanguageModelConfig(vocabulary_size=letters.vocabulary_size, hidden_size=7)
            model, languages = build_model(config), None
            tokenizers: dict[str, Tokenizer] = {"text": letters}
        else:
            pieces = SentencePieceTokenizer.train(["I am cold .", "we lost"] * 20, 274)
            size = pieces.vocabulary_size
            model = build_model(
                Seq2SeqConfig(
                    source_vocabulary_size=size,
                    target_vocabulary_size=size,
                    embedding_size=4,
                    hidden_size=4,
                )
            )
            languages = Languages(source="en", target="fr")
            tokenizers = {"source": pieces, "target": pieces}
        save_checkpoint(
            folder,
            model,
            tokenizers=tokenizers,
            languages=languages,
            training=RECORD,
            card="# A card\n",
        )
        return {file.name: file.read_bytes() for file in folder.iterdir()}


@contextmanager
def written(files: Files) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "checkpoint"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        yield folder


def load(folder: Path) -> tuple[CheckpointInfo, Model]:
    info = read_checkpoint(folder)
    return info, load_model(info, CPU)


def refused(folder: Path) -> str:
    """Why a folder cannot be loaded; nothing where it can."""
    try:
        load(folder)
    except CheckpointError as error:
        return str(error)
    return ""


def weights_of(model: Model) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in model.parameters()]


KINDS = st.sampled_from(["letters", "pieces"])


@given(kind=KINDS, data=st.data())
@settings(max_examples=400)
def test_a_flipped_bit_of_any_byte_of_any_file(kind: str, data: st.DataObject) -> None:
    files = dict(whole(kind))
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with written({**files, name: bytes(content)}) as folder:
        reason = refused(folder)
        if name in COVERED:
            assert name in reason
        elif reason:
            # Such a bit of config.json may ask for other shapes, another checksum, another file.
            is_named = any(other in reason for other in (name, *files))
            assert is_named or "missing from the checkpoint folder" in reason, reason
            assert name != "README.md"
        else:
            # What no checksum covers can change a label, but never a weight nor a token.
            info, model = load(folder)
            with written(files) as before:
                info_before, model_before = load(before)
            assert weights_of(model) == weights_of(model_before)
            for role, tokenizer in info_before.tokenizers.items():
                assert info.tokenizers[role].encode("abc I am") == tokenizer.encode("abc I am")
            if name == "config.json":
                assert info.fingerprint != info_before.fingerprint


@given(kind=KINDS, data=st.data())
@settings(max_examples=200)
def test_a_folder_cut_short_anywhere(kind: str, data: st.DataObject) -> None:
    """As a copy that was broken off leaves it: some files whole, one cut, the others missing."""
    files = dict(whole(kind))
    order = data.draw(st.permutations([name for name in files if name != "README.md"]))
    arrived = data.draw(st.integers(0, len(order) - 1))
    cut = order[arrived]
    size = data.draw(st.integers(0, len(files[cut]) - 1))
    there = {name: files[name] for name in order[:arrived]} | {cut: files[cut][:size]}
    with written(there) as folder:
        reason = refused(folder)
        if files[cut][size:].strip() or order[arrived + 1 :]:
            assert any(name in reason for name in order[arrived:]), reason


@given(kind=KINDS, data=st.data())
@settings(max_examples=100)
def test_swapped_files(kind: str, data: st.DataObject) -> None:
    """Two of its own files, or one of another checkpoint's."""
    files = dict(whole(kind))
    others = {**whole("letters" if kind == "pieces" else "pieces")}
    name = data.draw(st.sampled_from([name for name in files if name != "README.md"]))
    donor = data.draw(st.sampled_from([files, others]))
    other = data.draw(st.sampled_from([other for other in donor if donor[other] != files[name]]))
    spoilt = {**files, name: donor[other]}
    if donor is files and other != "README.md":
        spoilt[other] = files[name]
    with written(spoilt) as folder:
        reason = refused(folder)
        if name == "training.json" and other == "training.json":
            return  # it says where a model is from, and belongs to neither
        assert any(known in reason for known in files), reason


@given(kind=KINDS, data=st.data())
@settings(max_examples=300)
def test_damage_that_has_the_right_checksum_crashes_nothing(kind: str, data: st.DataObject) -> None:
    """Whoever means harm signs it: an error that names a file, or a model that can be used."""
    files = dict(whole(kind))
    name = data.draw(st.sampled_from([name for name in files if name in COVERED]))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    with written({**files, name: bytes(content)}) as folder:
        sign(folder)
        reason = refused(folder)
        if reason:
            assert name in reason
            return
        info, model = load(folder)
        assert all(torch.isfinite(p).all() for p in model.parameters())
        for tokenizer in info.tokenizers.values():
            tokens = tokenizer.encode("abc I am cold")
            assert all(0 <= token < tokenizer.vocabulary_size for token in tokens)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_is_a_link_out_of_the_folder_has_to_be_the_right_one(
    tmp_path: Path, name: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret of another")
    with written(whole("letters")) as folder:
        (folder / name).unlink()
        (folder / name).symlink_to(secret)
        reason = refused(folder)
        assert name in reason
        assert "s3cret" not in reason
        # A link to the very file is how shared stores of models keep them.
        (tmp_path / "kept").write_bytes(whole("letters")[name])
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "kept")
        assert not refused(folder)
