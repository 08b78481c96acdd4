"""Beam search: one expansion of the live hypotheses, and when the search is over.

*Dive into Deep Learning*, section 10.8. Sums of log-probabilities are Python floats (float64),
so that they do not depend on who adds them.

The rules, which :mod:`models.decoding.reference` follows too:

* each step keeps the best ``beam_size - finished`` continuations of the live hypotheses,
  ``<eos>`` among them; a finished hypothesis keeps its slot;
* among equals the earlier parent wins, then the lower token id;
* the search is over when no hypothesis lives, at the length limit, or when no live one can
  still enter the best ``num_outputs``; at the limit, unfinished ones compete as ``length``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.decoding.params import (
    DecodingParams,
    GeneratedToken,
    Hypothesis,
    length_power,
    normalised_score,
)
from models.kernels import beams as kernels
from models.several_steps import Searches, SearchSteps

Weights = tuple[float, ...] | None
"""A token's attention to its source, where asked for."""


class BeamStep(NamedTuple):
    """The continuations that a search keeps of its live hypotheses, best first.

    Attributes:
        parents: index of the live hypothesis that each continues.
        tokens: the token that it adds.
        logprobs: that token's log-probability.
        totals: its sum of log-probabilities.
    """

    parents: list[int]
    tokens: list[int]
    logprobs: list[float]
    totals: list[float]

    def only(self, places: Sequence[int]) -> "BeamStep":
        """These of the continuations."""
        return BeamStep(
            [self.parents[place] for place in places],
            [self.tokens[place] for place in places],
            [self.logprobs[place] for place in places],
            [self.totals[place] for place in places],
        )


@dataclass(slots=True)
class LiveBeams:
    """The beam searches of a batch before a step.

    Attributes:
        rows: their rows, those of a search one after the other.
        totals: of each row its hypothesis' sum of log-probabilities.
        counts: of each search its live hypotheses.
        widths: of each search the continuations that it keeps at most.
    """

    rows: list[int] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)

    @property
    def width(self) -> int:
        """K: as many candidates of each row are enough."""
        return max(self.widths, default=0)

    def add(self, rows: Sequence[int], search: "BeamSearch") -> None:
        """Put a search behind the others."""
        self.rows.extend(rows)
        self.totals.extend(search.totals)
        self.counts.append(len(rows))
        self.widths.append(search.width)


def expand(
    beams: LiveBeams, tokens: NDArray[np.int64], logprobs: NDArray[np.float32]
) -> list[BeamStep]:
    """What each search keeps: nothing where a hypothesis' probabilities are not numbers.

    Args:
        beams: the searches.
        tokens: ``[R, K]``, the most probable next tokens of each row, best first.
        logprobs: ``[R, K]``, their log-probabilities.
    """
    width = beams.width
    shape = (len(beams.counts), width)
    kept = np.empty(len(beams.counts), np.int64)
    parents, ids = np.empty(shape, np.int64), np.empty(shape, np.int64)
    shares, totals = np.empty(shape), np.empty(shape)
    kernels.keep_best(
        np.array(beams.totals), tokens, logprobs, np.array(beams.counts), np.array(beams.widths),
        kept, parents, ids, shares, totals,
    )  # fmt: skip
    steps = map(BeamStep, parents.tolist(), ids.tolist(), shares.tolist(), totals.tolist())
    return [
        step if count == width else step.only(range(count))
        for step, count in zip(steps, kept.tolist(), strict=True)
    ]


def searches_ahead(beams: LiveBeams, searches: Sequence["BeamSearch"], steps: int) -> Searches:
    """The searches as whoever makes so many steps at once takes them.

    Args:
        beams: of these searches.
        searches: in that order.
        steps: K.
    """
    each = [search.params for search in searches]
    scores = np.empty((len(each), max((params.beam_size for params in each), default=0)))
    for place, search in enumerate(searches):
        scores[place, : len(search.finished)] = [one.score for one in search.finished]
    powers = [
        [
            # Nobody is longer than the limit, which a great power is not to overflow beyond.
            length_power(min(search.length + step, params.max_new_tokens), params.length_penalty)
            for step in range(1, steps + 1)
        ]
        for search, params in zip(searches, each, strict=True)
    ]
    longest = [length_power(params.max_new_tokens, params.length_penalty) for params in each]
    return Searches(
        rows=np.array(beams.rows, np.int64),
        totals=np.array(beams.totals, np.float64),
        counts=np.array(beams.counts, np.int64),
        widths=np.array(beams.widths, np.int64),
        limits=np.array([one.params.max_new_tokens - one.length for one in searches], np.int64),
        outputs=np.array([params.num_outputs for params in each], np.int64),
        finished=np.array([len(search.finished) for search in searches], np.int64),
        scores=scores,
        powers=np.array(powers, np.float64).reshape(len(each), steps),
        longest=np.array(longest, np.float64),
    )


def steps_of(found: SearchSteps) -> list[list[BeamStep]]:
    """Of each search the steps that it made."""
    arrays = (found.parents, found.tokens, found.logprobs, found.totals)
    columns = [array.tolist() for array in arrays]
    kept = found.kept.tolist()
    return [
        [
            BeamStep(*(column[step][place][: kept[step][place]] for column in columns))
            for step in range(count)
        ]
        for place, count in enumerate(found.steps.tolist())
    ]


def places_of(found: SearchSteps, first_row: int) -> list[range]:
    """Of each search the rows of its live hypotheses, the searches' rows from this one on."""
    width = found.parents.shape[2]
    return [
        range(first_row + place * width, first_row + place * width + count)
        for place, count in enumerate(found.live.tolist())
    ]


class BeamSearch:
    """One request's search while it runs.

    Args:
        params: of the request.

    Attributes:
        params: of the request.
        totals: the live hypotheses' sums of log-probabilities, best first.
        finished: those that are complete, in the order in which they were found.
        length: steps made, the one at hand among them.
    """

    __slots__ = ("_history", "finished", "length", "params", "totals")

    def __init__(self, params: DecodingParams) -> None:
        self.params = params
        self.totals = [0.0]
        self.finished: list[Hypothesis] = []
        self.length = 0
        self._history: list[tuple[BeamStep, Sequence[Weights]]] = []

    @property
    def width(self) -> int:
        """Continuations that it keeps: a finished hypothesis keeps its slot."""
        return self.params.beam_size - len(self.finished)

    @property
    def can_improve(self) -> bool:
        """Whether it goes on."""
        return bool(self.totals) and can_improve(self.totals[0], self.finished, self.params)

    @property
    def last_tokens(self) -> list[int]:
        """The last token of each live hypothesis, behind at least one step."""
        return self._history[-1][0].tokens

    def go_on(self, step: BeamStep, attention: Sequence[Weights]) -> None:
        """The live hypotheses are these now.

        Args:
            step: without those that are finished.
            attention: of each, or nothing at all.
        """
        self.totals = step.totals
        self._history.append((step, attention))

    def tokens(self, step: BeamStep, place: int, weights: Weights) -> tuple[GeneratedToken, ...]:
        """All tokens of the hypothesis in this place of a step that has not been gone on with.

        Each step knows its parents only, so that going on copies nothing.
        """
        tokens = [GeneratedToken(step.tokens[place], step.logprobs[place], weights)]
        parent = step.parents[place]
        for before, attention in reversed(self._history):
            weights = attention[parent] if attention else None
            tokens.append(GeneratedToken(before.tokens[parent], before.logprobs[parent], weights))
            parent = before.parents[parent]
        tokens.reverse()
        return tuple(tokens)


def can_improve(best_live: float, finished: Sequence[Hypothesis], params: DecodingParams) -> bool:
    """Whether a live hypothesis can still enter the best ``num_outputs``.

    A sum of log-probabilities only falls, so the best that a live hypothesis can reach is its
    present sum at the full length. An equal score would come later, and so lose.

    Args:
        best_live: the highest sum of log-probabilities among the live hypotheses.
        finished: the hypotheses that ended with ``<eos>``.
        params: of the request.
    """
    if len(finished) < params.num_outputs:
        return True
    worst = sorted((h.score for h in finished), reverse=True)[params.num_outputs - 1]
    return normalised_score(best_live, params.max_new_tokens, params.length_penalty) > worst


def rank(hypotheses: Sequence[Hypothesis], num_outputs: int) -> list[Hypothesis]:
    """The best by score; among equals the one that was found first."""
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)[:num_outputs]
