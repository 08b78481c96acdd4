"""A model that is saved and loaded: the round trip, and what cannot be loaded or saved."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import CheckpointError, read_checkpoint
from models.checkpoint_model import load_model
from models.checkpoint_schema import Languages
from models.tokenizers import CharacterTokenizer, WordTokenizer
from tests.models.checkpoint_folders import (
    LETTERS,
    RECORD,
    WORDS,
    change_json,
    make_language_model,
    make_translator,
    save,
    sign,
)

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "letters", make_language_model(), {"text": LETTERS})
    return tmp_path / "letters"


def test_a_language_model_comes_back_rounded_to_float16(folder: Path) -> None:
    model, info = make_language_model(), read_checkpoint(folder)
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
    save(folder, loaded, {"text": LETTERS})
    assert (folder / "model.safetensors").read_bytes() == before
    assert read_checkpoint(folder).fingerprint == info.fingerprint


@pytest.mark.parametrize("tied", [True, False])
def test_a_translator_comes_back_and_shared_weights_are_stored_once(
    tmp_path: Path, tied: bool
) -> None:
    model = make_translator(tied=tied)
    save(tmp_path / "en-fr", model, {"source": WORDS, "target": WORDS})
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
    save(tmp_path / "en-fr", make_translator(), {"source": WORDS, "target": other})
    names = {file.name for file in (tmp_path / "en-fr").iterdir()}
    assert {"source-tokenizer.json", "target-tokenizer.json"} <= names
    read_checkpoint(tmp_path / "en-fr")


def test_nothing_in_a_folder_is_a_pickle(folder: Path) -> None:
    for file in folder.iterdir():
        content = file.read_bytes()
        assert not content.startswith((b"\x80", b"PK")), file


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


def test_a_config_of_other_shapes_is_refused_without_asking_for_their_memory(folder: Path) -> None:
    change_json(folder / "config.json", lambda c: c["model"].update(hidden_size=60_000))
    with pytest.raises(CheckpointError, match=r"has shape .* but config\.json asks for"):
        load_model(read_checkpoint(folder), CPU)


def test_a_config_that_cannot_be_built_is_refused(folder: Path) -> None:
    change_json(folder / "config.json", lambda c: c["model"].update(cell="gru_textbook"))
    with pytest.raises(CheckpointError, match="torch has no textbook GRU"):
        load_model(read_checkpoint(folder), CPU)


def test_weights_that_vanish_between_reading_and_loading_are_named(folder: Path) -> None:
    info = read_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        load_model(info, CPU)


def test_weights_beyond_float16_are_not_saved(tmp_path: Path) -> None:
    model = make_language_model()
    with torch.no_grad():
        next(model.parameters()).fill_(1e6)
    with pytest.raises(ValueError, match="not finite in float16"):
        save(tmp_path / "huge", model, {"text": CharacterTokenizer.train("abcdefg é\u202f")})
    assert not (tmp_path / "huge" / "config.json").exists()


def test_a_changed_tokenizer_leaves_no_stale_file(folder: Path) -> None:
    (folder / "source-tokenizer.json").write_text("{}")
    save(folder, make_language_model(), {"text": CharacterTokenizer.train("abcdefg é\u202f")})
    assert not (folder / "source-tokenizer.json").exists()


class _FullDisk(CharacterTokenizer):
    def save(self, path: Path) -> None:
        path.write_text("half")
        raise OSError("No space left on device")


def test_a_save_that_fails_leaves_the_old_checkpoint_whole(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(OSError, match="No space left"):
        save(folder, make_language_model(), {"text": _FullDisk.train("abcdefg é\u202f")})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder], "nothing is left lying about"


def test_a_save_replaces_its_own_files_only(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "notes.txt").write_text("mine")
    save(folder, make_language_model(), {"text": LETTERS}, card="# New\n")
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "README.md").read_text() == "# New\n"
    assert (folder / "run").is_dir()


def test_loading_draws_no_weights_and_imports_no_compiler(tmp_path: Path) -> None:
    save(tmp_path / "en-fr", make_translator(tied=True), {"source": WORDS, "target": WORDS})
    script = (
        "import sys, torch; from pathlib import Path\n"
        "from models.checkpoint import read_checkpoint\n"
        "from models.checkpoint_model import load_model\n"
        "before = torch.get_rng_state()\n"
        f"load_model(read_checkpoint(Path({str(tmp_path / 'en-fr')!r})), torch.device('cpu'))\n"
        "assert torch.equal(torch.get_rng_state(), before)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True)
