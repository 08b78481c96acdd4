"""An exponential moving average of the weights, which is measured and stored.

Training itself goes on with the weights (Polyak & Juditsky 1992; Kingma & Ba 2015, section 7.2).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """The average of a model's parameters over the updates made so far.

    Args:
        model: its parameters are averaged; one that several places share, once.
        decay: of the average at each update, above 0 and below 1: it looks back over about
            1 / (1 - decay) updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = list(model.parameters())
        self._decay = decay
        self._averages = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after an update.

        Args:
            step: updates made, this one included. The average is corrected for its bias towards
                the initial weights: after the first update it is what that has made, and it
                looks back the further the more there were.
        """
        weight = (1 - self._decay) / (1 - self._decay**step)
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.lerp_(parameter, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages into the model, and the weights back at the end, bit for bit."""
        kept = [parameter.detach().clone() for parameter in self._parameters]
        self._fill(self._averages)
        try:
            yield
        finally:
            self._fill(kept)

    def state(self) -> list[Tensor]:
        """The averages, in the order of the model's parameters."""
        return self._averages

    @torch.no_grad()
    def restore(self, averages: Sequence[Tensor]) -> None:
        """Put back what :meth:`state` gave."""
        for own, saved in zip(self._averages, averages, strict=True):
            own.copy_(saved)

    @torch.no_grad()
    def _fill(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
