"""The next token of rows that sample, or whose repeated tokens are made less likely.

What is kept of a row is found as one sorts by digits, but without sorting: how much there is in
each part of the scores' range, then in each part of that in which the limit lies, and so on.

Shape legend: ``N`` rows, ``R`` of them that are chosen for, ``O`` owners, ``V`` vocabulary size,
``C`` blocks of 64 tokens, ``T`` tokens that were seen.
"""

import numpy as np
from numba import types

from models.kernels.blocks import bits_of
from models.kernels.choice import BLOCK, _bar, _best, _find_highest, _turn, count_blocks
from models.kernels.gates import exponential
from models.kernels.instructions import Parcel, keep
from models.kernels.jit import formula, kernel
from models.kernels.sums import SUMS, fold
from models.kernels.team import SAMPLING, operation, share_out

_FLOATS, _WIDE_FLOATS, _NUMBERS = types.float32[::1], types.float64[::1], types.int64[::1]
_ROWS = types.float32[:, ::1]
_SETTINGS = types.Tuple((_FLOATS, _NUMBERS, _WIDE_FLOATS, _FLOATS))
_SEEN = types.UniTuple(_NUMBERS, 3)
_sampling = Parcel(types.Tuple((_ROWS, *[_NUMBERS] * 3, _SETTINGS, _SEEN, _WIDE_FLOATS, _NUMBERS)))
_pack_sampling, _unpack_sampling = _sampling.pack, _sampling.unpack

_LOWEST, _ZERO, _ONE = np.float32(-np.inf), np.float32(0), np.float32(1)
_NO_SHARE = np.float32(-87)
"""Below the highest score by more, a token has no probability: float32 ends there."""
_PARTS, _PARTS_PER_UNIT = 512, np.float32(5)
_HALF_RANGE, _DIGITS = np.int64(2**31), 5
_MOST_BARRED = 64
"""So many of the best are worth a look at the highest of each block before."""
_NANOSECONDS_PER_SCORE = 3


@kernel
def _penalise(logits, seen, penalty, never, scores):
    """Logits to scores: less of what was seen (Keskar et al. 2019, section 4.1), nothing of never.

    Args:
        logits: ``[V]``, left alone.
        seen: ``[T]`` int64.
        penalty: divides positive logits and multiplies others.
        never: int64, tokens that are not chosen.
        scores: ``[V]``, where they go.
    """
    for v in range(logits.shape[0]):
        # What is no number has no place among the others: a part of their range is found by it.
        scores[v] = _LOWEST if np.isnan(logits[v]) else logits[v]
    for place in range(seen.shape[0]):
        logit = logits[seen[place]]
        score = logit / penalty if logit > _ZERO else logit * penalty
        scores[seen[place]] = _LOWEST if np.isnan(score) else score
    for place in range(never.shape[0]):
        scores[never[place]] = _LOWEST


@formula
def _weigh(scores, top, weights):
    """e^(score - highest) of ``[V]`` scores."""
    for v in range(scores.shape[0]):
        distance = scores[v] - top
        weights[v] = _ZERO if distance < _NO_SHARE else exponential(distance)


@kernel
def _sum_blocks(weights, sums):
    """The sums of each 64 of ``[V]`` weights; returns that of all."""
    total, partial = 0.0, np.empty(SUMS, np.float32)
    for block in range(sums.shape[0]):
        part = weights[block * BLOCK : (block + 1) * BLOCK]
        whole = part.shape[0] // SUMS * SUMS
        partial[:] = _ZERO
        for first in range(0, whole, SUMS):
            for lane in range(SUMS):
                partial[lane] += part[first + lane]
        share = np.float64(fold(partial))
        for place in range(whole, part.shape[0]):
            share += part[place]
        sums[block] = share
        total += share
    return total


@kernel
def _gather(scores, weights, blocks, bar, tokens):
    """The tokens that have a weight and a score as high as the bar, in their order; how many."""
    count = 0
    for block in range(blocks.shape[0]):
        if blocks[block] < bar:
            continue
        for token in range(block * BLOCK, min((block + 1) * BLOCK, scores.shape[0])):
            tokens[count] = token
            count += 1 if weights[token] > _ZERO and scores[token] >= bar else 0
    return count


@kernel
def _digit(score, top, step):
    """The place of a score among others, by parts of the range from the highest down.

    First by its distance, so that others are spread over many parts, then by the digits of its
    bits, the highest first.
    """
    if step == 0:
        return np.int64((top - score) * _PARTS_PER_UNIT)
    place = np.int64(_turn(bits_of(score + _ZERO))) + _HALF_RANGE  # -0 becomes +0
    return np.int64(255) - ((place >> (32 - 8 * step)) & 255)


@kernel
def _narrow(scores, amounts, top, wanted, tokens, count, parts):
    """The tokens whose score is that of the last one that is kept, in their order.

    Returns:
        How many these are, and how much there is of the better ones.
    """
    before = 0.0
    for step in range(_DIGITS):
        parts[:] = 0.0
        for i in range(count):
            parts[_digit(scores[tokens[i]], top, step)] += amounts[tokens[i]]
        limit, better = 0, 0.0
        for part in range(parts.shape[0]):
            if parts[part] > 0:
                limit, better = part, before
                before += parts[part]
                if before >= wanted:
                    break
        before = better
        left = 0
        for i in range(count):
            token = tokens[i]
            if _digit(scores[token], top, step) == limit:
                tokens[left] = token
                left += 1
        count = left
    return count, before


@kernel
def _keep_best(scores, amounts, wanted, weights, blocks, bar, space):
    """Have no weight for all but the best tokens, the fewest that have what is wanted together.

    The higher score first, of equals the lower token.

    Args:
        scores: ``[V]``.
        amounts: ``[V]``, what each has; tokens without weight do not count.
        wanted: more than 0.
        weights: ``[V]``, changed.
        blocks: ``[C]``, the highest score of each 64.
        bar: no lower score is among the best.
        space: for tokens ``[V]`` int64, and for parts of the range ``[512]`` float64.
    """
    tokens, parts = space
    top = scores[_best(scores, blocks)]
    count = _gather(scores, weights, blocks, bar, tokens)
    count, before = _narrow(scores, amounts, top, wanted, tokens, count, parts)
    if not count:  # the highest score is infinite
        return
    last = scores[tokens[0]]
    for v in range(scores.shape[0]):
        weights[v] = _ZERO if scores[v] < last else weights[v]
    for i in range(count):
        if not before < wanted:
            weights[tokens[i]] = _ZERO
        before += amounts[tokens[i]]


@kernel
def _invert(weights, sums, threshold):
    """The first token with which the sum of the weights exceeds a threshold; -1 without weights.

    Rounding may carry the threshold to the very end: the last token with a weight takes it.
    """
    before, block = 0.0, 0
    while block < sums.shape[0] - 1 and not before + sums[block] > threshold:
        before += sums[block]
        block += 1
    last = -1
    for token in range(block * BLOCK, min((block + 1) * BLOCK, weights.shape[0])):
        if weights[token] > _ZERO:
            before += weights[token]
            last = token
            if before > threshold:
                return token
    if last < 0:
        for token in range(weights.shape[0]):
            last = token if weights[token] > _ZERO else last
    return last


@operation(SAMPLING)
def _sample(address, first, last):
    logits, never, rows, owners, settings, told, uniforms, tokens = _unpack_sampling(address)
    starts, counts, seen = told
    temperatures, top_k, top_p, penalties = settings
    size = logits.shape[1]
    scores, weights = np.empty(size, np.float32), np.empty(size, np.float32)
    blocks, ones = np.empty(count_blocks(size), np.float32), np.full(size, _ONE)
    sums, space = np.empty(blocks.shape[0]), (np.empty(size, np.int64), np.empty(_PARTS))
    for r in range(first, last):
        row, own = rows[r], owners[rows[r]]
        text = seen[starts[own] : starts[own] + counts[own]]
        _penalise(logits[row], text, penalties[own], never, scores)
        temperature = temperatures[own]
        if temperature > _ZERO:
            for v in range(size):
                scores[v] /= temperature
        _find_highest(scores, blocks)
        best = _best(scores, blocks)
        if not temperature > _ZERO:
            tokens[row] = best
            continue
        _weigh(scores, scores[best], weights)
        bar, total, amounts = _LOWEST, 0.0, ones
        for limit in range(2):  # a loop, since each call would be compiled for itself
            if limit == 0:
                wanted, is_limited = np.float64(top_k[own]), 0 < top_k[own] < size
                if 0 < top_k[own] <= _MOST_BARRED:
                    bar = _bar(blocks, top_k[own])
            else:
                wanted, is_limited = top_p[own] * total, top_p[own] < 1
            if is_limited:
                _keep_best(scores, amounts, wanted, weights, blocks, bar, space)
            amounts, total = weights, _sum_blocks(weights, sums)
        token = _invert(weights, sums, uniforms[own] * total)
        tokens[row] = best if token < 0 else token  # scores may have become infinite
    return np.int64(1)


@kernel
def sample(logits, never, rows, owners, settings, seen, uniforms, tokens, board):
    """Choose a token for each of some rows, by its owner's settings.

    A row depends on nothing but itself. One of which a logit is no number gets some token.

    Args:
        logits: ``[N, V]``, left alone.
        never: int64, tokens that are not chosen.
        rows: ``[R]`` int64.
        owners: ``[N]`` int64, whose each row is.
        settings: of each owner: temperatures ``[O]``, where 0 takes the most probable token; among
            how many of the most probable to sample ``[O]`` int64, 0 for all; or among the fewest
            that hold this probability ``[O]`` float64, 1 for all; and repetition penalties ``[O]``.
        seen: where the tokens begin that each owner has seen ``[O]`` int64, how many these are
            ``[O]`` int64, and all of them ``[T]`` int64.
        uniforms: ``[O]`` float64 in [0, 1), each owner's random number.
        tokens: ``[N]`` int64, where those of the rows go.
        board: address of where threads are told to help.
    """
    parts = (logits, never, rows, owners, settings, seen, uniforms, tokens)
    count = rows.shape[0]
    nanoseconds = count * logits.shape[1] * _NANOSECONDS_PER_SCORE
    share_out(board, SAMPLING, _pack_sampling(parts), nanoseconds, count, 1)
    keep(parts)
