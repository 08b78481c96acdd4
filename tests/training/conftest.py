"""Tiny texts and presets, which train in a second."""

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import CheckpointInfo, read_checkpoint
from tests.training.tiny_runs import FakeTask, MakeTrainer, loop_settings
from training import curves
from training.curves import Curves
from training.loop import Trainer
from training.preset import Preset, load_preset
from training.progress import Progress
from training.run import train

MakePreset = Callable[..., Preset]
Trained = Callable[..., CheckpointInfo]

TEXT_PRESET = """
description = "a tiny character model"
[data]
kind = "text"
held_out_share = 0.2
[data.source]
name = "Tiny text"
location = "{location}"
[tokenizer]
kind = "character"
[model]
kind = "language_model"
cell = "gru"
embedding_size = 6
hidden_size = 10
num_layers = 2
dropout = 0.3
[training]
steps = 24
batch_rows = 5
sequence_length = 40
learning_rate = 0.01
schedule = "cosine"
warmup_steps = 3
precision = "float32"
validate_every_steps = 8
save_every_steps = 5
log_every_steps = 3
[card]
title = "Tiny"
licence = "Licence of the tiny text"
attribution = "By nobody at all."
limits = "All of them."
"""

PAIRS_PRESET = """
description = "a tiny translation model"
[data]
kind = "parallel"
source_language = "en"
target_language = "fr"
test_share = 0.1
validation_share = 0.1
[data.source]
name = "Tiny pairs"
location = "{location}"
[tokenizer]
kind = "word"
[model]
kind = "seq2seq"
embedding_size = 6
hidden_size = 10
dropout = 0.3
[training]
steps = 14
batch_tokens = 60
learning_rate = 0.01
label_smoothing = 0.1
precision = "float32"
validate_every_steps = 6
save_every_steps = 4
log_every_steps = 3
[card]
title = "Tiny translator"
licence = "CC BY 2.0"
attribution = "By the pairs' people."
limits = "All of them."
"""


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Models this small only lose by sharing their work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the drawing, which takes longer than the training."""
    monkeypatch.setattr(Curves, "draw", lambda self: None)
    monkeypatch.setattr(curves, "draw_attention", lambda samples: None)


@pytest.fixture(scope="session")
def text() -> str:
    """Forty paragraphs."""
    chooser = random.Random(1)
    words = ["time", "machine", "morlock", "eloi", "sphinx", "fire", "white", "garden", "well"]
    paragraphs = [
        " ".join(chooser.choices(words, k=chooser.randint(6, 20))).capitalize() + "."
        for _ in range(40)
    ]
    return "\n\n".join(paragraphs) + "\n"


@pytest.fixture(scope="session")
def pairs_text() -> str:
    """A hundred pairs of sentences of two to eight words."""
    chooser = random.Random(2)
    words = [("i", "je"), ("see", "vois"), ("a", "un"), ("cat", "chat"), ("dog", "chien")]
    words += [("and", "et"), ("no", "non"), ("yes", "oui"), ("here", "ici"), ("now", "maintenant")]
    lines: dict[str, str] = {}
    while len(lines) < 100:
        chosen = chooser.choices(words, k=chooser.randint(2, 8))
        english, french = zip(*chosen, strict=True)
        lines[" ".join(english)] = " ".join(french)
    return "".join(f"{english}\t{french}\n" for english, french in lines.items())


@pytest.fixture
def text_file(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(text)
    return file


@pytest.fixture
def pairs_file(tmp_path: Path, pairs_text: str) -> Path:
    file = tmp_path / "pairs.txt"
    file.write_text(pairs_text)
    return file


@pytest.fixture
def text_preset_file(tmp_path: Path, text_file: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(TEXT_PRESET.format(location=text_file))
    return file


@pytest.fixture
def pairs_preset_file(tmp_path: Path, pairs_file: Path) -> Path:
    file = tmp_path / "pairs.toml"
    file.write_text(PAIRS_PRESET.format(location=pairs_file))
    return file


@pytest.fixture
def text_preset(text_preset_file: Path) -> MakePreset:
    """Make the tiny language model's preset, with overrides as of ``--set``."""
    return lambda *overrides: load_preset(str(text_preset_file), overrides)[1]


@pytest.fixture
def pairs_preset(pairs_preset_file: Path) -> MakePreset:
    """Make the tiny translation model's preset, with overrides as of ``--set``."""
    return lambda *overrides: load_preset(str(pairs_preset_file), overrides)[1]


@pytest.fixture
def trained(tmp_path: Path, no_pictures: None) -> Trained:
    """Train a preset for six steps and write its checkpoint, by default under its kind's name."""

    def make(preset: Preset, name: str = "") -> CheckpointInfo:
        short = preset.model_copy(
            update={"training": preset.training.model_copy(update={"steps": 6})}
        )
        options: Any = {"cache_dir": tmp_path / "cache", "device": torch.device("cpu")}
        folder = train(
            name or preset.data.kind, short, tmp_path / "out", show_progress=False, **options
        )
        return read_checkpoint(folder)

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    def make(
        task: FakeTask,
        folder: str = "run",
        best: list[Progress] | None = None,
        record: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Trainer:
        saved = best if best is not None else []
        return Trainer(
            task=task,
            settings=loop_settings(**settings),
            device=torch.device("cpu"),
            run_dir=tmp_path / folder,
            record=record or {"training": {"steps": 12}},
            save_best=lambda progress: saved.append(Progress(**vars(progress))),
            show_progress=False,
        )

    return make


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal() -> Iterator[None]:
    """A job that a shell starts in the background ignores Ctrl-C, and so would these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
