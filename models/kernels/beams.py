"""One step of many beam searches, by the rules of :mod:`models.decoding.beam`.

Shape legend: ``R`` rows of beams, ``K`` candidates of each, ``B`` beams, ``W`` continuations that
a beam keeps at most.
"""

import numpy as np

from models.kernels.jit import kernel

_NEGATIVE_INFINITY = -np.inf


@kernel
def keep_best(
    totals, tokens, logprobs, counts, widths, kept, parents, kept_tokens, kept_logprobs, kept_totals
):
    """The best continuations of each beam's live hypotheses, best first.

    The higher sum first; among equals the earlier parent, then the lower token.

    Args:
        totals: ``[R]`` float64, sums of the log-probabilities of live hypotheses.
        tokens: ``[R, K]`` int64, their most probable next tokens, best first.
        logprobs: ``[R, K]`` float32, log-probabilities of these.
        counts: ``[B]`` int64, live hypotheses of each beam: their rows come one after the other.
        widths: ``[B]`` int64, how many continuations it keeps.
        kept: ``[B]`` int64, where goes how many there are: none where probabilities are no numbers.
        parents: ``[B, W]`` int64, where the hypotheses go that they continue: 0 is a beam's first.
        kept_tokens: ``[B, W]`` int64, where the tokens go.
        kept_logprobs: ``[B, W]`` float64, where the log-probabilities of these go.
        kept_totals: ``[B, W]`` float64, where the new sums go.
    """
    row = 0
    for b in range(counts.shape[0]):
        width, held = widths[b], 0
        choice = min(width, tokens.shape[1])
        sums, ids, origins, shares = kept_totals[b], kept_tokens[b], parents[b], kept_logprobs[b]
        for parent in range(counts[b]):
            if np.isnan(logprobs[row, 0]):
                choice = width = held = 0
            # No more than are kept: how many more there are depends on the other beams.
            for k in range(choice):
                logprob, token = np.float64(logprobs[row, k]), tokens[row, k]
                total = totals[row] + logprob
                if not logprob > _NEGATIVE_INFINITY or (held == width and total < sums[width - 1]):
                    break  # what follows is no better
                place = held
                while place and (
                    total > sums[place - 1]
                    or (
                        total == sums[place - 1]
                        and parent == origins[place - 1]
                        and token < ids[place - 1]
                    )
                ):
                    place -= 1
                if place == width:
                    continue
                held = min(held + 1, width)
                for later in range(held - 1, place, -1):
                    sums[later], ids[later] = sums[later - 1], ids[later - 1]
                    origins[later], shares[later] = origins[later - 1], shares[later - 1]
                sums[place], ids[place], origins[place], shares[place] = (
                    total, token, parent, logprob,
                )  # fmt: skip
            row += 1
        kept[b] = held
