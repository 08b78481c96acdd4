"""How fast a model's steps are, so that several at once take no longer than they may."""

from collections.abc import Sequence

from models.decoding.step import MOST_STEPS

SECONDS_AT_ONCE = 0.03
"""So long several steps at once may take: meanwhile nobody leaves or is told. With half of it one
core kept up with a tenth fewer requests, with twice as much no more."""
_FIRST_TOKENS = 128
"""Before anything is known: 64 rows choose them within that time on a slow core."""


class Pace:
    """Of one model, by its last turn: turns follow each other, and are much alike.

    Attributes:
        steps_at_once: how many steps may be made at once.
        tokens_at_once: as many as all rows together may choose in them: more rows take longer.
    """

    def __init__(self) -> None:
        self.steps_at_once = MOST_STEPS
        self.tokens_at_once = _FIRST_TOKENS

    def note(self, seconds: float, rows: Sequence[int]) -> None:
        """A turn took so long for steps of so many rows; one without steps says nothing."""
        if seconds > 0 and rows:
            # Fewer rows are hardly faster than those of the turn: both are limited.
            share = SECONDS_AT_ONCE / seconds
            self.steps_at_once = max(1, min(MOST_STEPS, int(share * len(rows))))
            self.tokens_at_once = int(share * sum(rows))
