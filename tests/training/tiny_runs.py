"""What tests of the training loop share: a task that costs nothing, and how runs are compared."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.loop import Trainer
from training.preset import Optimization
from training.samples import Sample
from training.task import BatchLoss

BATCHES = 5
MakeTrainer = Callable[..., Trainer]


def loop_settings(**values: Any) -> Optimization:
    defaults: dict[str, Any] = {
        "steps": 12,
        "batch_rows": 3,
        "learning_rate": 0.05,
        "precision": "float32",
        "validate_every_steps": 4,
        "save_every_steps": 3,
        "log_every_steps": 2,
    }
    return Optimization.model_validate({**defaults, **values})


class FakeTask:
    """A linear model with dropout, five batches an epoch, and validation losses as told."""

    def __init__(self, validation: list[float] | None = None, scale: float = 1.0) -> None:
        torch.manual_seed(7)
        self.model: Any = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.state = torch.zeros(3, 4)
        self.validation = validation
        self.scale = scale
        self.seen: list[tuple[int, int]] = []
        self.tokenizers: Any = {}
        self.languages = None
        self.background_epochs = 0
        self.sources: Any = []
        self.on_batch: Callable[[int, int], None] = lambda epoch, number: None

    def batches(self, epoch: int) -> Iterator[Tensor]:
        for number in range(BATCHES):
            generator = torch.Generator().manual_seed(100 * epoch + number)
            self.where = (epoch, number)
            yield torch.randn(3, 4, generator=generator)

    def loss(self, batch: Tensor) -> BatchLoss:
        self.seen.append(self.where)
        self.on_batch(*self.where)
        outputs = self.model(batch) + 0.1 * self.state
        self.state = outputs.detach()
        objective = self.scale * ((outputs - batch) ** 2).mean()
        return BatchLoss(objective, objective.detach() * 3, 3)

    def carried(self) -> list[Tensor]:
        return [self.state]

    def restore(self, carried: list[Tensor]) -> None:
        (self.state,) = carried

    def may_decide(self, epoch: int) -> bool:
        return epoch >= self.background_epochs

    def validate(self) -> dict[str, float]:
        return {"loss": self.validation.pop(0)} if self.validation else {}

    def final_metrics(self) -> dict[str, float]:
        return {}

    def metrics_note(self) -> str:
        return ""

    def samples(self) -> list[Sample]:
        return [Sample("a source", "a sample")]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            key == "seconds" or equal(one[key], other[key]) for key in one
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def history(run_dir: Path) -> list[dict[str, float]]:
    """The history, without what depends on the clock."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows: list[dict[str, float]] = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]
