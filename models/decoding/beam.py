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
from typing import NamedTuple

from models.decoding.params import DecodingParams, Hypothesis, normalised_score

_NEGATIVE_INFINITY = float("-inf")


class Candidate(NamedTuple):
    """A continuation of a live hypothesis. Candidates sort by the rules: the best one first.

    Attributes:
        negative_total: its sum of log-probabilities, negated.
        parent: index of the live hypothesis that it continues.
        token: the token that it adds.
        logprob: that token's log-probability.
    """

    negative_total: float
    parent: int
    token: int
    logprob: float


def expand(
    cumulative: Sequence[float],
    logprobs: Sequence[Sequence[float]],
    tokens: Sequence[Sequence[int]],
    width: int,
) -> list[Candidate]:
    """The best ``width`` continuations of the live hypotheses, or all where there are fewer.

    Args:
        cumulative: sum of log-probabilities of each live hypothesis.
        logprobs: of each, those of its best ``width`` next tokens or more.
        tokens: these tokens.
        width: how many to keep.
    """
    # Plain tuples sort in the same order, and most are never looked at again.
    candidates = [
        (-(total + logprob), parent, token, logprob)
        for parent, (total, row, ids) in enumerate(zip(cumulative, logprobs, tokens, strict=True))
        for logprob, token in zip(row, ids, strict=True)
        if logprob > _NEGATIVE_INFINITY
    ]
    candidates.sort()
    return [Candidate(*candidate) for candidate in candidates[:width]]


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
