"""When to try again, and how long to wait before."""

import random
from dataclasses import dataclass

from gatehouse_client.errors import AnswerError, ClientError, ServerUnreachableError

_WORTH_ANOTHER_TRY = frozenset({429, 502, 503})
"""A full queue, a proxy without a server behind it, a server that loads, restarts or drains."""


@dataclass(frozen=True)
class Retries:
    """How often and how patiently to try again.

    What is tried again has not been answered; decoding has no side effects. A deadline that has
    passed (504) is not tried again, nor an answer that did not come in time: a server that is
    slow would have the work twice. Neither is a stream that has begun.

    Attributes:
        attempts: tries in all; 1 never tries again.
        first_wait_seconds: before the second try, where the server does not say; it doubles.
        longest_wait_seconds: of any one wait; a server that asks for more gets no other try.
    """

    attempts: int = 5
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 30.0

    def wait_seconds(self, error: ClientError, tries: int) -> float | None:
        """How long to wait before another try, or None for no other.

        Args:
            error: what the last try came to.
            tries: tries so far.
        """
        if tries >= self.attempts:
            return None
        if isinstance(error, AnswerError):
            if error.status not in _WORTH_ANOTHER_TRY:
                return None
            if error.retry_after_seconds is not None:
                asked = error.retry_after_seconds
                return None if asked > self.longest_wait_seconds else asked
        elif not isinstance(error, ServerUnreachableError):
            return None
        # Drawn, so that many clients of a server that comes back do not all come at once.
        longest = self.first_wait_seconds * 2.0 ** (tries - 1)
        return min(random.uniform(longest / 2, longest), self.longest_wait_seconds)
