"""Who has which row of the batch, and what the rows choose until somebody must hear of it.

Most rows need nobody between their first token and their last one: what they choose is noted, and
only those are looked at that end, or whose requests want to know of every step.
"""

import math
import sys
from collections.abc import Iterable, Sequence

import numpy as np

from models.decoding.beam import LiveBeams, searches_ahead
from models.decoding.choice import Choices, RowKinds
from models.decoding.outputs import RunningOutputs
from models.decoding.params import REPETITION_WINDOW
from models.decoding.running import History, Running
from models.decoding.sampling import NEVER_CHOSEN, joined, settings_of
from models.decoding.searching import RunningSearch
from models.decoding.task import DecodingTask
from models.several_steps import Rules, SeveralSteps
from models.tokenizers import EOS_ID

_NEVER = sys.maxsize


def run(task: DecodingTask, continues_prompt: bool) -> Running:
    """A request whose prompt was read, and is to have rows: see :class:`Running`."""
    kind = RunningSearch if task.params.is_beam else RunningOutputs
    return kind(task, continues_prompt)


class Roster:
    """The running requests and their rows.

    Attributes:
        searches: the beam searches among them.
    """

    def __init__(self) -> None:
        self._step = 0
        self._owners: list[Running] = []  # of each row, like the next
        self._histories: list[History] = []
        self._described: list[Running] = []
        self._watched: list[Running] = []
        self.searches: list[RunningSearch] = []
        self._first_limit = _NEVER  # the step at which the first of them is at its limit

    def join(self, running: Running) -> None:
        """Give a request rows behind all others."""
        running.place(len(self._owners))
        running.last_step = self._step + running.steps_left
        self._owners += [running] * running.row_count
        self._histories += running.histories
        if running.is_described:
            self._described.append(running)
        if running.is_watched:
            self._watched.append(running)
        if isinstance(running, RunningSearch):
            self.searches.append(running)

    @property
    def are_plain(self) -> bool:
        """Whether several steps may be made at once: nobody has to hear of each, or at once.

        A stream's first token is not to wait for those behind it.
        """
        return all(one.is_plain for one in self._described) and all(
            one.is_plain and (one.length or one.is_search) for one in self._watched
        )

    def rules(self, steps: int) -> Rules:
        """How all rows go on for so many steps, where they :attr:`are_plain`."""
        owners = dict.fromkeys(self._owners)
        needs = [each for owner in owners for each in owner.needs(steps)]
        params, uniforms, seen = zip(*needs, strict=True)
        beams = LiveBeams()
        searches = [running.join_beams(beams) for running in self.searches]
        return Rules(
            NEVER_CHOSEN,
            EOS_ID,
            limits=np.array([owner.steps_left for owner in self._owners]),
            settings=settings_of(params),
            seen=joined(seen, room=steps),
            window=REPETITION_WINDOW,
            uniforms=np.ascontiguousarray(np.array(uniforms).T),
            searches=searches_ahead(beams, searches, steps),
        )

    def renew(self, running: Iterable[Running]) -> None:
        """Number the rows of those that stay anew, in this order; others have left."""
        self._owners, self._histories = [], []
        self._described = [one for one in self._described if one.row_count]
        self._watched = [one for one in self._watched if one.row_count]
        self.searches = [one for one in self.searches if one.row_count]
        first = 0
        self._first_limit = _NEVER
        for one in running:
            if one.rows.start != first or one.parents is not one.rows:
                one.place(first)
            first += one.row_count
            self._owners += [one] * one.row_count
            self._histories += one.histories
            self._first_limit = min(self._first_limit, one.last_step)

    def describe(self) -> RowKinds:
        """What the choice of each row's next token needs."""
        kinds = RowKinds()
        for running in self._described:
            running.describe_rows(kinds)
        return kinds

    def note(self, choices: Choices) -> Sequence[Running]:
        """Note what every row has chosen.

        Returns:
            Those to advance, each once. The others go on as they are.
        """
        tokens, logprobs = choices.tokens, choices.logprobs
        chosen = zip(tokens, logprobs, strict=True)
        for history, choice in zip(self._histories, chosen, strict=True):
            history.append(choice)
        self._step += 1
        # A sum is no number where one of its parts is none.
        if self._step == self._first_limit or math.isnan(sum(logprobs)):
            due: Iterable[Running] = self._owners
        elif EOS_ID not in tokens:
            return self._watched
        else:
            ended = [self._owners[row] for row, token in enumerate(tokens) if token == EOS_ID]
            due = [*self._watched, *ended]
        return [*dict.fromkeys(due)]

    def note_several(self, several: SeveralSteps) -> Sequence[Running]:
        """The same of several steps at once, where they :attr:`are_plain`."""
        tokens, logprobs = several.tokens.T.tolist(), several.logprobs.T.tolist()
        counts = several.counts.tolist()
        ended = []
        rows = zip(self._owners, self._histories, tokens, logprobs, counts, strict=True)
        for owner, history, chosen, theirs, count in rows:
            if not count:  # a search's
                continue
            history.extend(zip(chosen[:count], theirs[:count], strict=True))
            is_over = chosen[count - 1] == EOS_ID or math.isnan(theirs[count - 1])
            if is_over or len(history) == owner.task.params.max_new_tokens:
                ended.append(owner)
        self._step += int(np.count_nonzero(several.rows))
        return [*dict.fromkeys((*self._watched, *ended))]
