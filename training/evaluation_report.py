"""What an evaluation found, as tables for people and as JSON for machines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from models.checkpoint import CheckpointInfo
from models.precision import Precision
from training.evaluation import DecodingSettings, Measurement
from training.evaluation_data import EvaluationData, SentenceData
from training.scoring import Difference, SystemScore

_SPELLINGS = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER"}


@dataclass(frozen=True)
class Comparison:
    """Another checkpoint on the same sentences.

    Attributes:
        info: the other checkpoint.
        differences: by precision and by the figure's name.
    """

    info: CheckpointInfo
    differences: Mapping[Precision, Mapping[str, Difference]]


@dataclass(frozen=True)
class Evaluation:
    """Everything that an evaluation found.

    Attributes:
        info: the checkpoint.
        data: what it was measured on.
        settings: how it decoded.
        device: where it computed.
        measurements: one for each precision.
        comparison: with another checkpoint, or None.
        deviations: what differs from the card, or None where that was not asked for.
        notes: what to know before believing the figures.
    """

    info: CheckpointInfo
    data: EvaluationData
    settings: DecodingSettings
    device: torch.device
    measurements: Sequence[Measurement]
    comparison: Comparison | None = None
    deviations: Sequence[str] | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def readable(name: str) -> str:
    """A figure's name as the model card spells it: ``greedy BLEU first reference``."""
    return " ".join(_SPELLINGS.get(word, word) for word in name.split("_"))


def as_table(evaluation: Evaluation) -> str:
    """The figures in Markdown, the card's beside those of each precision."""
    measurements = evaluation.measurements
    card = evaluation.info.training.metrics if evaluation.data.is_cards else {}
    first = measurements[0].figures
    rows = [
        [
            readable(name),
            *([f"{card[name]:.{score.decimals}f}" if name in card else ""] if card else []),
            *(f"{each.figures[name].value:.{score.decimals}f}" for each in measurements),
        ]
        for name, score in first.items()
    ]
    rows.append(["seconds", *([""] if card else []), *(f"{m.seconds:.1f}" for m in measurements)])
    header = ["figure", *(["card"] if card else []), *(m.precision for m in measurements)]
    title = f"{evaluation.info.name}, {evaluation.data.description}, on {evaluation.device}"
    if isinstance(evaluation.data, SentenceData):
        title += f", length penalty {evaluation.settings.length_penalty:g}"
    parts = [title, _markdown(header, rows)]
    signatures = _signatures({name: score.signature for name, score in first.items()})
    parts += [signatures] if signatures else []
    if evaluation.comparison:
        parts += _comparison_tables(evaluation, evaluation.comparison)
    return "\n\n".join(parts)


def _comparison_tables(evaluation: Evaluation, comparison: Comparison) -> list[str]:
    names = [evaluation.info.name, comparison.info.name]
    if names[0] == names[1]:
        names = [str(evaluation.info.path), str(comparison.info.path)]
    parts = []
    for precision, differences in comparison.differences.items():
        rows = [
            [
                readable(name),
                _with_interval(difference.baseline),
                _with_interval(difference.other),
                f"{difference.other.value - difference.baseline.value:+.2f}",
                "same texts" if difference.p_value is None else f"{difference.p_value:.4f}",
            ]
            for name, difference in differences.items()
        ]
        title = f"Paired bootstrap test, {precision}: score (mean of the samples, 95 % interval)"
        parts += [title, _markdown(["figure", *names, "difference", "p-value"], rows)]
    found = next(iter(comparison.differences.values()))
    parts.append(_signatures({name: difference.signature for name, difference in found.items()}))
    return parts


def _with_interval(score: SystemScore) -> str:
    return f"{score.value:.2f} ({score.mean:.2f} ± {score.interval:.2f})"


def _signatures(signatures: Mapping[str, str | None]) -> str:
    """A line for each metric and kind of references: how sentences were decoded is not in it."""
    lines = {
        readable(name.partition("_")[2]): signature
        for name, signature in signatures.items()
        if signature
    }
    return "\n".join(f"{name}: {signature}" for name, signature in lines.items())


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned for those who read it as it is."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        [
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (header, *rows)
    ]
    rule = [
        "-" * width if not index else "-" * (width - 1) + ":" for index, width in enumerate(widths)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything as plain JSON data; a figure that is no finite number is null."""
    info, data, settings = evaluation.info, evaluation.data, evaluation.settings
    is_translation = isinstance(data, SentenceData)
    decoding = {
        "beam_sizes": list(settings.beam_sizes),
        "length_penalty": settings.length_penalty,
        "sentences": len(data.sentences) if isinstance(data, SentenceData) else None,
    }
    document: dict[str, Any] = {
        "checkpoint": info.name,
        "fingerprint": info.fingerprint,
        "description": data.description,
        "data": [source.model_dump() for source in data.sources],
        "device": str(evaluation.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **(decoding if is_translation else {}),
        "results": [
            {
                "precision": each.precision,
                "seconds": round(each.seconds, 3),
                "figures": {name: _finite(score.value) for name, score in each.figures.items()},
            }
            for each in evaluation.measurements
        ],
        "signatures": {
            name: score.signature
            for name, score in evaluation.measurements[0].figures.items()
            if score.signature
        },
        "card": info.training.metrics if data.is_cards else None,
        "notes": list(evaluation.notes),
    }
    if evaluation.comparison:
        document["comparison"] = _comparison_json(evaluation.comparison)
    if evaluation.deviations is not None:
        document["deviations"] = list(evaluation.deviations)
    return document


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "checkpoint": comparison.info.name,
        "fingerprint": comparison.info.fingerprint,
        "results": [
            {
                "precision": precision,
                "figures": {
                    name: {
                        "baseline": _system_json(difference.baseline),
                        "other": _system_json(difference.other),
                        "p_value": difference.p_value,
                        "signature": difference.signature,
                    }
                    for name, difference in differences.items()
                },
            }
            for precision, differences in comparison.differences.items()
        ],
    }


def _system_json(score: SystemScore) -> dict[str, float]:
    return {"score": score.value, "mean": score.mean, "interval_95": score.interval}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
