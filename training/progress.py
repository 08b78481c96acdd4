"""Where a run stands: what its log, its record and its saved state tell of it."""

import math
from dataclasses import dataclass


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: updates made.
        epoch: epochs completed.
        batch: batches of the present epoch that were used.
        best_loss: lowest validation loss yet (training loss without validation data).
        best_step: the step that it was measured at: that of the stored weights.
        epoch_likelihood: negative log-likelihood (nats) summed over the present epoch.
        epoch_tokens: its target tokens.
        train_perplexity: of the last complete epoch.
        tokens: target tokens of the whole run.
        seconds: time spent on updates in the whole run.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    epoch_likelihood: float = 0.0
    epoch_tokens: int = 0
    train_perplexity: float = math.inf
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Target tokens a second, over the whole run, validations not counted."""
        return self.tokens / self.seconds if self.seconds else 0.0
