"""Who has which row of the batch, and what the rows choose until somebody must hear of it.

Most rows need nobody between their first token and their last one: what they choose is noted, and
only those are looked at that end, or whose requests want to know of every step.
"""

import math
from collections.abc import Iterable, Sequence
from operator import attrgetter

from models.decoding.choice import Choices, RowKinds
from models.decoding.running import History, Running
from models.tokenizers import EOS_ID


class Roster:
    """The running requests and their rows, until rows join or leave.

    Args:
        running: in the order of their rows, which are numbered anew.

    Attributes:
        rows: of all of them.
        searches: the beam searches among them.
    """

    def __init__(self, running: Iterable[Running] = ()) -> None:
        self._running = list(running)
        self._owners: list[Running] = []
        self._histories: list[History] = []
        self._described: list[Running] = []
        self._watched: list[Running] = []
        self.searches: list[Running] = []
        steps_left = []
        for one in self._running:
            one.place(len(self._owners))
            self._owners += [one] * one.row_count
            self._histories += one.histories
            steps_left.append(one.steps_left)
            if one.is_described:
                self._described.append(one)
            if one.is_watched:
                self._watched.append(one)
            if one.is_search:
                self.searches.append(one)
        self._steps_left = min(steps_left, default=0)  # to the first limit

    @property
    def rows(self) -> int:
        """Rows of all of them."""
        return len(self._owners)

    def describe(self) -> RowKinds:
        """What the choice of each row's next token needs."""
        kinds = RowKinds()
        for running in self._described:
            running.describe_rows(kinds)
        return kinds

    def note(self, choices: Choices) -> Sequence[Running]:
        """Note what every row has chosen.

        Returns:
            Those to advance, in the order of their rows. The others go on as they are.
        """
        tokens, logprobs = choices.tokens, choices.logprobs
        chosen = zip(tokens, logprobs, strict=True)
        for history, choice in zip(self._histories, chosen, strict=True):
            history.append(choice)
        self._steps_left -= 1
        # A sum is no number where one of its parts is none.
        if self._steps_left == 0 or math.isnan(sum(logprobs)):
            return self._running
        if EOS_ID not in tokens:
            return self._watched
        ended = [self._owners[row] for row, token in enumerate(tokens) if token == EOS_ID]
        return sorted(dict.fromkeys([*self._watched, *ended]), key=attrgetter("first_row"))
