"""What the training loop knows of a task: batches, a loss, a validation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from models.checkpoint_model import Model
from models.checkpoint_schema import DataSource, Languages
from models.tokenizers import Tokenizer
from training.samples import Sample

AnyBatch = Any
"""Each task has batches of its own type; the loop hands them through unopened."""


@dataclass(frozen=True)
class BatchLoss:
    """The loss of one batch.

    Attributes:
        objective: scalar to minimise, a mean over tokens (label smoothing included).
        negative_log_likelihood: sum over the tokens, in nats, detached.
        tokens: target tokens, padding not counted.
    """

    objective: Tensor
    negative_log_likelihood: Tensor
    tokens: int


class Task(Protocol):
    """One kind of training: language modelling or translation.

    Measuring and sampling leave the model's mode and torch's random numbers as they were, so
    that how often a run validates does not change what it learns.
    """

    @property
    def model(self) -> Model:
        """The model in training."""
        ...

    @property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """By role, as :func:`models.checkpoint_model.save_checkpoint` takes them."""
        ...

    @property
    def languages(self) -> Languages | None:
        """Of a translation model."""
        ...

    @property
    def sources(self) -> list[DataSource]:
        """The texts that were read."""
        ...

    def batches(self, epoch: int) -> Iterator[AnyBatch]:
        """The batches of an epoch (from 0), the same whenever asked.

        Of several processes each is given its share of every batch, None where that is empty.
        """
        ...

    def loss(self, batch: AnyBatch) -> BatchLoss:
        """Forward pass of one batch."""
        ...

    def carried(self) -> list[Tensor]:
        """What goes over from one batch to the next, for resuming: ``[rows, ...]`` each."""
        ...

    def restore(self, carried: list[Tensor]) -> None:
        """Put back what :meth:`carried` gave."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on the validation data, ``loss`` (nats a token) among them.

        The lowest loss is the best.

        Empty where there are no validation data: the training loss then decides.
        """
        ...

    def may_decide(self, epoch: int) -> bool:
        """Whether the training loss of an epoch (from 0) may do so: it is of the own text."""
        ...

    def final_metrics(self) -> dict[str, float]:
        """Figures for the model card, measured with the best weights."""
        ...

    def metrics_note(self) -> str:
        """How the figures were measured, in a sentence or two."""
        ...

    def samples(self) -> list[Sample]:
        """What the model makes of a few texts that it does not train on, where there are any."""
        ...


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and back into the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
