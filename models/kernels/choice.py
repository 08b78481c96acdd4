"""The most probable tokens of each row, in two passes over its logits.

Shape legend: ``N`` rows, ``R`` rows of beams, ``V`` vocabulary size, ``K`` candidates.
"""

import numpy as np

from models.kernels.gates import exponential
from models.kernels.jit import formula, kernel
from models.kernels.sums import SUMS, fold

LANES = 64
_LOWEST, _ZERO = np.float32(-np.inf), np.float32(0)


@kernel
def _best(logits, tops, blocks):
    """The token of the highest of ``[V]`` logits, the first of equals; NaN is overlooked.

    Every 64th token has a maximum in common, with where it stood: many at once, without a branch.
    """
    whole = logits.shape[0] // LANES
    tops[:] = _LOWEST
    blocks[:] = 0
    for block in range(whole):
        part = logits[block * LANES : (block + 1) * LANES]
        for lane in range(LANES):
            higher = part[lane] > tops[lane]
            tops[lane] = part[lane] if higher else tops[lane]
            blocks[lane] = np.int32(block) if higher else blocks[lane]
    top, token = _LOWEST, logits.shape[0]
    for lane in range(LANES if whole else 0):
        place = blocks[lane] * LANES + lane
        if tops[lane] > top or (tops[lane] == top and place < token):
            top, token = tops[lane], place
    for place in range(whole * LANES, logits.shape[0]):
        if logits[place] > top:
            top, token = logits[place], place
    return min(token, logits.shape[0] - 1)


@formula
def _mass(logits, top, partial):
    """The sum of e^(logit - highest); ``partial [32]`` is space for sums."""
    whole = logits.shape[0] // SUMS * SUMS
    partial[:] = _ZERO
    for first in range(0, whole, SUMS):
        part = logits[first : first + SUMS]
        for lane in range(SUMS):
            partial[lane] += exponential(part[lane] - top)
    total = fold(partial)
    for v in range(whole, logits.shape[0]):
        total += exponential(logits[v] - top)
    return total


@kernel
def most_probable(logits, never, tokens, tops, sums, lanes):
    """The most probable token of each row, and what makes a log-probability of a logit.

    Args:
        logits: ``[N, V]``; those of the tokens in ``never`` become minus infinity.
        never: int64, tokens that are not chosen, though they have their share of probability.
        tokens: ``[N]`` int64, where the tokens go, the lowest of equals.
        tops: ``[N]``, where each row's highest logit goes.
        sums: ``[N]``, where the logarithms of the sums of e^(logit - highest) go.
        lanes: ``[N, 64]``, where the maxima of every 64th logit go, what is left over at the end
            apart.
    """
    blocks = np.empty(LANES, np.int32)
    partial = np.empty(SUMS, np.float32)
    spared = np.empty(never.shape[0], np.float32)
    for n in range(logits.shape[0]):
        row = logits[n]
        for i in range(never.shape[0]):
            spared[i] = row[never[i]]
            row[never[i]] = _LOWEST
        tokens[n] = _best(row, lanes[n], blocks)
        top = row[tokens[n]]
        for i in range(never.shape[0]):
            row[never[i]] = spared[i]
            top = spared[i] if spared[i] > top else top
        tops[n], sums[n] = top, np.log(_mass(row, top, partial))
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
    tops, blocks = np.empty(LANES, np.float32), np.empty(LANES, np.int32)
    partial = np.empty(SUMS, np.float32)
    for n in range(logits.shape[0]):
        row = logits[n]
        top = row[_best(row, tops, blocks)]
        log_sum = np.log(_mass(row, top, partial))
        for v in range(row.shape[0]):
            logprobs[n, v] = log_probability(row[v], top, log_sum)


@kernel
def _bar(lanes, count):
    """The ``count``-th highest of the lanes' maxima, or minus infinity where there are fewer.

    So many lanes hold a logit that is as high, and so no lower one is among the ``count`` best.
    """
    highest = np.full(count, _LOWEST, np.float32)
    for lane in range(lanes.shape[0]):
        top = lanes[lane]
        if not top > highest[count - 1]:
            continue
        place = count - 1
        while place and top > highest[place - 1]:
            highest[place] = highest[place - 1]
            place -= 1
        highest[place] = top
    return highest[count - 1]


@kernel
def _insert(token, logprob, held, tokens, logprobs):
    """Put a token in its place among those that are held; return how many these are then."""
    count = tokens.shape[0]
    if held == count:
        last = logprobs[count - 1]
        if not (logprob > last or (logprob == last and token < tokens[count - 1])):
            return held
    place = min(held, count - 1)
    while place:
        before = logprobs[place - 1]
        if not (logprob > before or (logprob == before and token < tokens[place - 1])):
            break
        logprobs[place], tokens[place] = before, tokens[place - 1]
        place -= 1
    logprobs[place], tokens[place] = logprob, token
    return min(held + 1, count)


@kernel
def best_candidates(logits, rows, tops, sums, lanes, tokens, logprobs):
    """The most probable tokens of some rows, best first, the lower id first among equals.

    Only the lanes are looked at whose maximum is high enough, as a rule as many as candidates.

    Args:
        logits: ``[N, V]`` as :func:`most_probable` left them.
        rows: ``[R]`` int64.
        tops: ``[N]`` from there.
        sums: ``[N]`` from there.
        lanes: ``[N, 64]`` from there.
        tokens: ``[R, K]`` int64, where the tokens go; K is at most V.
        logprobs: ``[R, K]``, where their log-probabilities go.
    """
    size = logits.shape[1]
    whole = size // LANES * LANES
    for r in range(rows.shape[0]):
        n = rows[r]
        row, top, log_sum = logits[n], tops[n], sums[n]
        # Different logits may have the same log-probability: these are what is compared.
        bar = log_probability(_bar(lanes[n], tokens.shape[1]), top, log_sum)
        held = 0
        for lane in range(LANES if whole else 0):
            if log_probability(lanes[n, lane], top, log_sum) < bar:
                continue
            for token in range(lane, whole, LANES):
                logprob = log_probability(row[token], top, log_sum)
                if not logprob < bar:
                    held = _insert(token, logprob, held, tokens[r], logprobs[r])
        for token in range(whole, size):
            logprob = log_probability(row[token], top, log_sum)
            held = _insert(token, logprob, held, tokens[r], logprobs[r])
