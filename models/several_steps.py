"""What can make steps in place of a model's modules, several at once too, and what it is told.

Shape legend: ``N`` rows, ``K`` steps, ``V`` vocabulary size; ``B`` beam searches, ``R`` their rows,
``W`` hypotheses that a search has at most.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.encoder_decoder import StepOutput
from models.state import DecodeState

Settings = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]
"""Temperatures, top-k, top-p and repetition penalties, ``[N]`` each."""

Seen = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Of each row where its tokens begin and how many there are, ``[N]`` each, and those of all."""


class Searches(NamedTuple):
    """Beam searches, by the rules of :mod:`models.decoding.beam`; given up to who continues them.

    Attributes:
        rows: ``[R]`` int64, rows of their live hypotheses, search by search, the best first.
        totals: ``[R]`` float64, the sums of their log-probabilities.
        counts: ``[B]`` int64, live hypotheses of each search.
        widths: ``[B]`` int64, how many continuations it keeps.
        limits: ``[B]`` int64, how many steps it may make at most.
        outputs: ``[B]`` int64, how many hypotheses are wanted of it.
        finished: ``[B]`` int64, how many it has finished.
        scores: ``[B, W]`` float64, their scores.
        powers: ``[B, K]`` float64, L^alpha of the length L after each step.
        longest: ``[B]`` float64, that of the greatest length.
    """

    rows: NDArray[np.int64]
    totals: NDArray[np.float64]
    counts: NDArray[np.int64]
    widths: NDArray[np.int64]
    limits: NDArray[np.int64]
    outputs: NDArray[np.int64]
    finished: NDArray[np.int64]
    scores: NDArray[np.float64]
    powers: NDArray[np.float64]
    longest: NDArray[np.float64]


class Rules(NamedTuple):
    """How tokens are chosen in several steps, and when outputs end.

    Attributes:
        never: ``[X]`` int64, tokens that are never chosen.
        end: the token that ends an output.
        limits: ``[N]`` int64, how many tokens each row may choose at most.
        settings: of each row, as :func:`models.kernels.sampling.sample` takes them; a row whose
            temperature is 0 takes the most probable token.
        seen: the tokens that each row has seen, likewise, with room behind them for as many as
            there are steps. What rows with a repetition penalty choose comes to them.
        window: how many of the last tokens count as seen.
        uniforms: ``[K, N]`` float64, the random numbers of each step; unused where a row is greedy.
        searches: the beam searches. What else is said of their rows has no meaning.
    """

    never: NDArray[np.int64]
    end: int
    limits: NDArray[np.int64]
    settings: Settings
    seen: Seen
    window: int
    uniforms: NDArray[np.float64]
    searches: Searches


class SearchSteps(NamedTuple):
    """What beam searches kept in several steps.

    Attributes:
        steps: ``[B]`` int64, how many each has made, 1 at least.
        live: ``[B]`` int64, live hypotheses after them, none where it is over.
        kept: ``[K, B]`` int64, continuations that it kept in each.
        parents: ``[K, B, W]`` int64, which hypotheses these continue.
        tokens: ``[K, B, W]`` int64, the tokens that they add.
        logprobs: ``[K, B, W]`` float64, the log-probabilities of these.
        totals: ``[K, B, W]`` float64, the sums of log-probabilities.
    """

    steps: NDArray[np.int64]
    live: NDArray[np.int64]
    kept: NDArray[np.int64]
    parents: NDArray[np.int64]
    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    totals: NDArray[np.float64]


class SeveralSteps(NamedTuple):
    """What rows chose in several steps.

    Attributes:
        tokens: ``[K, N]`` int64.
        logprobs: ``[K, N]`` float32, their log-probabilities.
        counts: ``[N]`` int64, how many tokens each row has chosen, none if it is a search's: those
            behind the first so many mean nothing.
        rows: ``[K]`` int64, how many rows there were in each step; none in those not made.
        searches: what the beam searches kept.
        state: after them, ``[N + B * W]``, of the rows that have not ended: a row ends with the
            token that ends outputs, at its limit, or with a log-probability that is no number.
            Behind all of them stand the live hypotheses, those of each search in W rows.
    """

    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    counts: NDArray[np.int64]
    rows: NDArray[np.int64]
    searches: SearchSteps
    state: DecodeState


class WholeStep(Protocol):
    """What can take the place of a model's modules in its steps."""

    def __call__(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """See :meth:`StepModel.step`."""
        ...

    def can_decode(self, state: DecodeState) -> bool:
        """Whether :meth:`decode` can begin with this state."""
        ...

    def decode(
        self, tokens: Tensor, state: DecodeState, rules: Rules, steps: int, stop: int
    ) -> SeveralSteps:
        """Feed each row a token ``[N]``, then what it has chosen.

        Args:
            tokens: the first to be fed.
            state: before it.
            rules: how tokens are chosen.
            steps: K, at most.
            stop: address of an int64: once it is not 0, no other step follows.
        """
        ...


def whole_step_of(model: object) -> WholeStep | None:
    """What takes the place of the modules of a model (or of its decoder), if anything does."""
    return getattr(model, "whole_step", None)
