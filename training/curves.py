"""A run's figures and samples over its steps: JSON Lines files, TensorBoard, and pictures."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

from training.samples import Sample, draw_attention

METRICS_FILE = "metrics.jsonl"
PICTURE_FILE = "curves.png"
SAMPLES_FILE = "samples.jsonl"
ATTENTION_FOLDER = "attention"


class Curves:
    """Figures and samples of one run.

    Args:
        run_dir: where the files go.
        step: the step that the run begins or goes on at; later figures of an earlier try,
            which was killed before it saved its state, are dropped.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        self._file = run_dir / METRICS_FILE
        self._picture = run_dir / PICTURE_FILE
        self._samples_file = run_dir / SAMPLES_FILE
        self._attention_dir = run_dir / ATTENTION_FOLDER
        self._rows = _keep_rows(self._file, step)
        _keep_rows(self._samples_file, step)
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Append figures of one step."""
        row = {"step": step, **figures}
        self._rows.append(row)
        with self._file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def add_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Show what the model makes of some texts at one step, and how it looks at them."""
        with self._samples_file.open("a", encoding="utf-8") as stream:
            for sample in samples:
                row = {"step": step, "source": sample.source, "output": sample.output}
                row |= {"reference": sample.reference} if sample.reference is not None else {}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        # TensorBoard shows Markdown, in which four spaces begin a line that is left as it is.
        lines = [line for sample in samples for line in _lines(sample)]
        self._writer.add_text("samples", "\n".join(f"    {line}" for line in lines), step)
        figure = draw_attention(samples)
        if figure is not None:
            self._attention_dir.mkdir(exist_ok=True)
            figure.savefig(self._attention_dir / f"step-{step:07}.png", dpi=110)
            self._writer.add_figure("attention", figure, step, close=False)

    def draw(self) -> None:
        """Draw every figure over the steps."""
        # matplotlib takes a second to import, which a run without validation need not wait for.
        from matplotlib.figure import Figure

        groups = {
            "loss (nats a token)": ("train_loss", "validation_loss"),
            "perplexity": ("train_perplexity", "validation_perplexity"),
            "BLEU": ("validation_bleu",),
            "tokens/s": ("tokens_per_second",),
        }
        present = {
            title: [name for name in names if any(name in row for row in self._rows)]
            for title, names in groups.items()
        }
        present = {title: names for title, names in present.items() if names}
        if not present:
            return
        figure = Figure(figsize=(5 * len(present), 3.6), layout="constrained")
        all_axes = figure.subplots(1, len(present), squeeze=False)[0]
        for axes, (title, names) in zip(all_axes, present.items(), strict=True):
            for name in names:
                points = [(row["step"], row[name]) for row in self._rows if name in row]
                axes.plot(*zip(*points, strict=True), label=name.replace("_", " "))
            if title == "perplexity":
                axes.set_yscale("log")
            axes.set(title=title, xlabel="step")
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(self._picture, dpi=110)

    def close(self) -> None:
        """Flush what TensorBoard has not written yet and draw a last time."""
        self.draw()
        self._writer.close()


def _lines(sample: Sample) -> list[str]:
    """A sample in lines of text, a blank one behind."""
    parts = {"source": sample.source, "output": sample.output, "reference": sample.reference}
    named = [f"{name + ':':11}{text}" for name, text in parts.items() if text is not None]
    return [line for text in named for line in text.splitlines()] + [""]


def _keep_rows(file: Path, step: int) -> list[dict[str, Any]]:
    """Drop the rows of later steps from a file, and give those that stay."""
    rows = [row for row in _read_rows(file) if row["step"] <= step]
    # Whole or not at all: a kill at this moment must not cost the history.
    partial = file.with_suffix(".partial")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
    return rows


def _read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of an earlier try; a line that a kill cut short is dropped."""
    rows = []
    for line in file.read_text("utf-8").split("\n") if file.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and math.isfinite(row.get("step", math.nan)):
            rows.append(row)
    return rows
