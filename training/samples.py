"""What a model makes of a few texts: outputs, and the attention behind them.

Shape legend: ``S`` source positions, ``T`` target positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.encoder_decoder import read_at_once
from models.seq2seq import Seq2Seq

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES_PER_TOKEN = 0.32
INCHES_FOR_LABELS = 1.6


@dataclass(frozen=True)
class AttentionWeights:
    """Where the model looked while it wrote.

    Attributes:
        source: the source's tokens, S of them.
        target: the written tokens, T of them.
        weights: ``[T, S]`` float32 on the CPU; each row sums to 1.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    weights: Tensor


@dataclass(frozen=True)
class Sample:
    """A text and what the model makes of it, by greedy decoding.

    Attributes:
        source: what the model read.
        output: what it wrote, or why it cannot write.
        reference: what it should have written, where that is known.
        attention: how it looked at the source, where it does.
    """

    source: str
    output: str
    reference: str | None = None
    attention: AttentionWeights | None = None

    def __str__(self) -> str:
        """Source and output on one line, for a log."""
        return f"{self.source} -> {self.output}"


@torch.inference_mode()
def attention_weights(
    model: Seq2Seq, source: Sequence[int], target: Sequence[int]
) -> Tensor | None:
    """Where a model looks while it writes a target.

    Args:
        model: in evaluation mode.
        source: S token ids, ``<eos>`` behind.
        target: T token ids to write one after the other, at least one.

    Returns:
        ``[T, S]`` float32 on the CPU, or None where the model has no attention.
    """
    tokens, state = read_at_once(model, [source])
    rows = []
    for token in target:
        output = model.step(tokens, state)
        if output.attention is None:
            return None
        rows.append(output.attention[0, : len(source)])
        tokens, state = torch.full_like(tokens, token), output.state
    return torch.stack(rows).float().cpu()


def draw_attention(samples: Sequence[Sample]) -> "Figure | None":
    """Draw the attention of samples side by side: a row for each written token.

    Returns:
        The picture, or None where no sample has any attention.
    """
    found = [sample.attention for sample in samples if sample.attention]
    if not found:
        return None
    # matplotlib takes a second to import, which a run without attention need not wait for.
    from matplotlib.figure import Figure

    widths = [INCHES_PER_TOKEN * len(a.source) + INCHES_FOR_LABELS for a in found]
    tallest = max(len(attention.target) for attention in found)
    figure = Figure(
        figsize=(sum(widths), INCHES_PER_TOKEN * tallest + INCHES_FOR_LABELS),
        layout="constrained",
    )
    all_axes = figure.subplots(1, len(found), squeeze=False, width_ratios=widths)[0]
    for axes, attention in zip(all_axes, found, strict=True):
        axes.imshow(attention.weights.numpy(), cmap="Blues", vmin=0.0, vmax=1.0)
        # A piece may hold what matplotlib would read as a formula.
        source, target = (
            [token.replace("$", r"\$") for token in side]
            for side in (attention.source, attention.target)
        )
        axes.set_xticks(range(len(source)), source, rotation=90)
        axes.set_yticks(range(len(target)), target)
        axes.xaxis.tick_top()
    return figure
