"""How fast a model chooses tokens, so that several steps at once take no longer than they may."""

SECONDS_AT_ONCE = 0.03
"""So long several steps at once may take: meanwhile nobody leaves or is told. With half of it one
core kept up with a tenth fewer requests, with twice as much no more."""
_FIRST_SECONDS_PER_TOKEN = SECONDS_AT_ONCE / 128
"""Before anything is known: what 64 rows take on a slow core, and one row on a quick one."""


class Pace:
    """Of one model, by its last turn: turns follow each other, and are much alike."""

    def __init__(self) -> None:
        self._seconds_per_token = _FIRST_SECONDS_PER_TOKEN

    @property
    def tokens_at_once(self) -> int:
        """As many as all rows together may choose in several steps."""
        return int(SECONDS_AT_ONCE / self._seconds_per_token)

    def note(self, seconds: float, tokens: int) -> None:
        """A turn took so long for so many tokens of all rows; one without tokens says nothing."""
        if seconds > 0 and tokens > 0:
            self._seconds_per_token = seconds / tokens
