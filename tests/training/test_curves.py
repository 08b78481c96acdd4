"""A run's figures: the JSON Lines file, TensorBoard's files and the picture."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from training.curves import Curves
from training.samples import AttentionWeights, Sample

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def make_curves(tmp_path: Path) -> Iterator[Callable[[int], Curves]]:
    made: list[Curves] = []

    def make(step: int) -> Curves:
        made.append(Curves(tmp_path, step))
        return made[-1]

    yield make
    for curves in made:
        curves.close()


MakeCurves = Callable[[int], Curves]


def _rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_figures_are_on_disk_at_once(make_curves: MakeCurves, tmp_path: Path) -> None:
    curves = make_curves(0)
    curves.add(10, {"train_loss": 2.5})
    curves.add(10, {"validation_loss": 2.0, "validation_bleu": 1.0})
    assert _rows(tmp_path) == [
        {"step": 10, "train_loss": 2.5},
        {"step": 10, "validation_loss": 2.0, "validation_bleu": 1.0},
    ]


def test_going_on_drops_later_figures_and_torn_lines(
    make_curves: MakeCurves, tmp_path: Path
) -> None:
    first = make_curves(0)
    for step in (10, 20, 30):
        first.add(step, {"train_loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('[1]\n{"no": "step"}\n{"step": 40, "train_lo')
    make_curves(20).add(30, {"train_loss": 9.0})
    assert [(row["step"], row["train_loss"]) for row in _rows(tmp_path)] == [
        *((10, 0.1), (20, 0.05), (30, 9.0))
    ]
    assert not list(tmp_path.glob("*.partial"))


def test_a_kill_while_the_history_is_rewritten_costs_nothing(
    make_curves: MakeCurves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_curves(0).add(10, {"train_loss": 1.0})

    def killed(self: Path, text: str, encoding: str) -> int:
        with self.open("w") as stream:
            stream.write(text[:3])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            Curves(tmp_path, 10)
    make_curves(10)
    assert _rows(tmp_path) == [{"step": 10, "train_loss": 1.0}]


def test_tensorboard_reads_them(make_curves: MakeCurves, tmp_path: Path) -> None:
    # TensorBoard ships no types.
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    curves = make_curves(0)
    curves.add(1, {"train_loss": 4.0})
    curves.add(2, {"train_loss": 3.0})
    curves.close()
    resumed = make_curves(1)
    resumed.add(2, {"train_loss": 2.0})
    resumed.close()
    events = module.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert points == [(1, 4.0), (2, 2.0)], "what a kill made void is purged"


def test_the_picture_is_a_png(make_curves: MakeCurves, tmp_path: Path) -> None:
    curves = make_curves(0)
    curves.draw()
    assert not (tmp_path / "curves.png").exists(), "nothing to draw yet"
    for step in (1, 2, 3):
        curves.add(step, {"train_loss": 3.0 / step, "train_perplexity": 20.0 / step})
        curves.add(step, {"tokens_per_second": 100.0, "validation_bleu": 1.0 * step})
    curves.draw()
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def _sample(output: str) -> Sample:
    weights = AttentionWeights(("▁the", "<eos>"), ("▁la", "<eos>"), torch.eye(2))
    return Sample("the\nend", output, "la fin", weights)


def test_samples_are_kept_as_lines_and_pictures_and_shown_by_tensorboard(
    make_curves: MakeCurves, tmp_path: Path
) -> None:
    curves = make_curves(0)
    curves.add_samples(10, [_sample("la \u2028 fin"), Sample("plain", "text")])
    curves.close()
    lines = (tmp_path / "samples.jsonl").read_text().removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "source": "the\nend", "output": "la \u2028 fin", "reference": "la fin"},
        {"step": 10, "source": "plain", "output": "text"},
    ]
    (picture,) = (tmp_path / "attention").iterdir()
    assert picture.name == "step-0000010.png"
    assert picture.read_bytes().startswith(PNG)
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("attention")] == [10]
    (shown,) = events.Tensors("samples/text_summary")
    text = shown.tensor_proto.string_val[0].decode()
    assert "    output:    la" in text
    assert all(line.startswith("    ") for line in text.split("\n"))


def test_going_on_drops_later_samples(make_curves: MakeCurves, tmp_path: Path) -> None:
    first = make_curves(0)
    for step in (10, 20):
        first.add_samples(step, [Sample("a", f"output of {step}")])
    make_curves(10).add_samples(20, [Sample("a", "another")])
    rows = map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())
    assert [row["output"] for row in rows] == ["output of 10", "another"]
