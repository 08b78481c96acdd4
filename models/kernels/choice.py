"""The most probable tokens of each row, in two passes over its logits.

Shape legend: ``N`` rows, ``R`` rows of beams, ``V`` vocabulary size, ``K`` candidates.
"""

import numpy as np

from models.kernels.gates import exponential
from models.kernels.jit import kernel, reduction

_LANES = 64
_LOWEST, _ZERO = np.float32(-np.inf), np.float32(0)


@kernel
def _best(logits, tops, blocks):
    """The token of the highest of ``[V]`` logits, the first of equals; NaN is overlooked.

    Every 64th token has a maximum in common, with where it stood: many at once, without a branch.
    """
    whole = logits.shape[0] // _LANES
    tops[:] = _LOWEST
    blocks[:] = 0
    for block in range(whole):
        part = logits[block * _LANES : (block + 1) * _LANES]
        for lane in range(_LANES):
            higher = part[lane] > tops[lane]
            tops[lane] = part[lane] if higher else tops[lane]
            blocks[lane] = np.int32(block) if higher else blocks[lane]
    top, token = _LOWEST, logits.shape[0]
    for lane in range(_LANES if whole else 0):
        place = blocks[lane] * _LANES + lane
        if tops[lane] > top or (tops[lane] == top and place < token):
            top, token = tops[lane], place
    for place in range(whole * _LANES, logits.shape[0]):
        if logits[place] > top:
            top, token = logits[place], place
    return min(token, logits.shape[0] - 1)


@reduction
def _mass(logits, top):
    total = _ZERO
    for v in range(logits.shape[0]):
        total += exponential(logits[v] - top)
    return total


@kernel
def most_probable(logits, never, tokens, tops, sums):
    """The most probable token of each row, and what makes a log-probability of a logit.

    Args:
        logits: ``[N, V]``; those of the tokens in ``never`` become minus infinity.
        never: int64, tokens that are not chosen, though they have their share of probability.
        tokens: ``[N]`` int64, where the tokens go, the lowest of equals.
        tops: ``[N]``, where each row's highest logit goes.
        sums: ``[N]``, where the logarithms of the sums of e^(logit - highest) go.
    """
    lane_tops, lane_blocks = np.empty(_LANES, np.float32), np.empty(_LANES, np.int32)
    spared = np.empty(never.shape[0], np.float32)
    for n in range(logits.shape[0]):
        row = logits[n]
        for i in range(never.shape[0]):
            spared[i] = row[never[i]]
            row[never[i]] = _LOWEST
        tokens[n] = _best(row, lane_tops, lane_blocks)
        top = row[tokens[n]]
        for i in range(never.shape[0]):
            row[never[i]] = spared[i]
            top = spared[i] if spared[i] > top else top
        tops[n], sums[n] = top, np.log(_mass(row, top))
        for i in range(never.shape[0]):
            row[never[i]] = _LOWEST


@kernel
def log_probability(logit, top, log_sum):
    """Of a logit, by what :func:`most_probable` says of its row."""
    return np.float32(np.float32(logit - top) - log_sum)


@kernel
def log_probabilities(logits, tokens, tops, sums, logprobs):
    """Of one token of each row ``[N]`` int64, into ``[N]``."""
    for n in range(logits.shape[0]):
        logprobs[n] = log_probability(logits[n, tokens[n]], tops[n], sums[n])


@kernel
def log_softmax(logits, logprobs):
    """All log-probabilities of rows ``[N, V]``, the same bits as those of single tokens."""
    tops, blocks = np.empty(_LANES, np.float32), np.empty(_LANES, np.int32)
    for n in range(logits.shape[0]):
        row = logits[n]
        top = row[_best(row, tops, blocks)]
        log_sum = np.log(_mass(row, top))
        for v in range(row.shape[0]):
            logprobs[n, v] = log_probability(row[v], top, log_sum)


@kernel
def best_candidates(logits, rows, tops, sums, tokens, logprobs):
    """The most probable tokens of some rows, best first, the lower id first among equals.

    Args:
        logits: ``[N, V]`` as :func:`most_probable` left them.
        rows: ``[R]`` int64.
        tops: ``[N]`` from there.
        sums: ``[N]`` from there.
        tokens: ``[R, K]`` int64, where the tokens go; K is at most V.
        logprobs: ``[R, K]``, where their log-probabilities go.
    """
    count = tokens.shape[1]
    for r in range(rows.shape[0]):
        n = rows[r]
        row = logits[n]
        best, ids = logprobs[r], tokens[r]
        held = 0
        for first in range(0, row.shape[0], _LANES):
            part = row[first : first + _LANES]
            if held == count:
                # What is no higher than the logit of the last one is no more probable.
                last = row[ids[count - 1]]
                higher = 0
                for lane in range(part.shape[0]):
                    higher += part[lane] > last
                if not higher:
                    continue
            for lane in range(part.shape[0]):
                value = log_probability(part[lane], tops[n], sums[n])
                if held == count and not value > best[count - 1]:
                    continue
                place = min(held, count - 1)
                held = min(held + 1, count)
                while place and value > best[place - 1]:
                    best[place], ids[place] = best[place - 1], ids[place - 1]
                    place -= 1
                best[place], ids[place] = value, first + lane
