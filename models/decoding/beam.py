"""Beam search: one expansion of the live hypotheses, and when the search is over.

*Dive into Deep Learning*, section 10.8. Shape legend: ``K`` live hypotheses, ``V`` vocabulary
size. Cumulative log-probabilities are float64, so that the sum does not depend on who adds it.

The rules, which :mod:`models.decoding.reference` follows too:

* each step keeps the best ``beam_size - finished`` continuations of the live hypotheses,
  ``<eos>`` among them; a finished hypothesis keeps its slot;
* among equals the earlier parent wins, then the lower token id;
* the search is over when no hypothesis lives, at the length limit, or when no live one can
  still enter the best ``num_outputs``; at the limit, unfinished ones compete as ``length``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.decoding.params import DecodingParams, Hypothesis, normalised_score
from models.decoding.sampling import suppress_special


class Expansion(NamedTuple):
    """The continuations that an expansion keeps, best first.

    Attributes:
        cumulative: sum of log-probabilities of each.
        parents: index of the live hypothesis that each continues.
        tokens: the token that each adds.
    """

    cumulative: list[float]
    parents: list[int]
    tokens: list[int]


def expand(logprobs: Tensor, cumulative: Sequence[float], width: int) -> Expansion:
    """The best ``width`` continuations of the live hypotheses, or all where there are fewer.

    Args:
        logprobs: ``[K, V]``, of each next token, in the order of the hypotheses.
        cumulative: sum of log-probabilities of each live hypothesis.
        width: how many to keep.
    """
    sums = torch.tensor(cumulative, dtype=torch.float64, device=logprobs.device)
    totals = (suppress_special(logprobs).double() + sums[:, None]).flatten()
    # topk breaks ties as it likes. Its last value is sound, though: everything at least as good
    # comes out of nonzero in the order of parents and tokens, and a stable sort keeps that order.
    threshold = totals.topk(min(width, len(totals))).values[-1]
    candidates = ((totals >= threshold) & totals.isfinite()).nonzero()[:, 0]
    scores, order = torch.sort(totals[candidates], descending=True, stable=True)
    chosen = candidates[order][:width]
    size = logprobs.shape[1]
    return Expansion(
        cumulative=scores[:width].tolist(),
        parents=(chosen // size).tolist(),
        tokens=(chosen % size).tolist(),
    )


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
