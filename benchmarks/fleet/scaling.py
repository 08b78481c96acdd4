"""Kubernetes' autoscaler, as far as it decides how many replicas there are.

As ``deploy/kubernetes/base/autoscaler.yml`` sets it; a test holds the two together. A pod that is
starting counts as one with nothing to do, as Kubernetes has it when it adds pods.
"""

import math
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """An autoscaler's figures.

    Attributes:
        least: replicas that are always there.
        most: replicas that there are at most.
        queue_target: texts that wait, for each replica.
        rows_target: rows in use, for each replica; None: the queue alone decides.
        start_seconds: from a decision to a replica that is ready: 5 to be placed on a node that
            is there, 20 for the image, 20 to load and to compile (17 were measured), 5 for probes.
        sync_seconds: between two decisions.
        late_decisions: decisions that a figure is old when it is used, by scraping.
        tolerance: a figure so near to its target is left alone.
        up_share: replicas that one decision adds at most, as a share of those there are ...
        up_pods: ... or so many, whichever is more.
        down_share: replicas that go in a minute at most, as a share.
        down_window_seconds: fewer replicas only if fewer would have done all that time.
    """

    least: int
    most: int
    queue_target: float = 64
    rows_target: float | None = 24
    start_seconds: float = 50
    sync_seconds: float = 15
    late_decisions: int = 1
    tolerance: float = 0.1
    up_share: float = 1.0
    up_pods: int = 4
    down_share: float = 0.1
    down_window_seconds: float = 600


class Autoscaler:
    """Decides again and again; remembers what it needs to."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._late: deque[tuple[float, float]] = deque(maxlen=policy.late_decisions + 1)
        self._answers: deque[tuple[float, int]] = deque()
        self._fell_at = -math.inf

    def decide(self, now: float, there: int, waiting: float, running: float) -> int:
        """How many replicas there shall be.

        Args:
            now: in seconds.
            there: replicas that are ready or starting.
            waiting: texts that wait, over all replicas.
            running: rows in use, over all replicas.
        """
        policy = self.policy
        self._late.append((waiting, running))
        waiting, running = self._late[0]
        asked = self._answer(there, waiting, policy.queue_target)
        if policy.rows_target is not None:
            asked = max(asked, self._answer(there, running, policy.rows_target))
        asked = min(max(asked, policy.least), policy.most)
        self._answers.append((now, asked))
        while self._answers[0][0] < now - policy.down_window_seconds:
            self._answers.popleft()
        if asked > there:
            step = max(math.ceil(there * policy.up_share), policy.up_pods)
            return min(asked, there + step)
        kept = max(answer for _, answer in self._answers)
        if kept >= there or now - self._fell_at < 60:
            return there
        self._fell_at = now
        return max(kept, there - max(1, math.floor(there * policy.down_share)))

    def _answer(self, there: int, total: float, target: float) -> int:
        if abs(total / (there * target) - 1) <= self.policy.tolerance:
            return there
        return math.ceil(total / target)
