"""A run's figures over its steps: a JSON Lines file, TensorBoard, and a picture."""

import json
import math
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

METRICS_FILE = "metrics.jsonl"
PICTURE_FILE = "curves.png"


class Curves:
    """Figures of one run.

    Args:
        run_dir: where the files go.
        step: the step that the run begins or goes on at; later figures of an earlier try,
            which was killed before it saved its state, are dropped.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        self._file = run_dir / METRICS_FILE
        self._picture = run_dir / PICTURE_FILE
        self._rows = [row for row in _read_rows(self._file) if row["step"] <= step]
        # Whole or not at all: a kill at this moment must not cost the history.
        partial = self._file.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
        partial.replace(self._file)
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Append figures of one step."""
        row = {"step": step, **figures}
        self._rows.append(row)
        with self._file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

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


def _read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of an earlier try; a line that a kill cut short is dropped."""
    rows = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and math.isfinite(row.get("step", math.nan)):
            rows.append(row)
    return rows
