"""The most probable tokens of each row, in two passes over its logits.

Shape legend: ``N`` rows, ``R`` rows of beams, ``V`` vocabulary size, ``K`` candidates,
``C`` blocks of 64 tokens.
"""

import numpy as np
from numba import types

from models.kernels.blocks import bits_of, number_of
from models.kernels.gates import exponential
from models.kernels.instructions import Parcel, keep
from models.kernels.jit import formula, kernel
from models.kernels.sums import SUMS, fold
from models.kernels.team import CHOICE, operation, share_out

BLOCK = 64
"""Tokens of which the highest logit is known, so that most are looked at once."""
_NUMBERS = types.int64[::1]
_FLOATS, _ROWS = types.float32[::1], types.float32[:, ::1]
_choice = Parcel(types.Tuple((_ROWS, _NUMBERS, _NUMBERS, _FLOATS, _FLOATS, _ROWS)))
_pack_choice, _unpack_choice = _choice.pack, _choice.unpack
_LOWEST, _ZERO = np.float32(-np.inf), np.float32(0)
_LOWEST_KEY, _ALL_BUT_SIGN, _SIGN_PLACE = np.int32(-(2**31)), np.int32(0x7FFFFFFF), np.int32(31)


@kernel
def _turn(bits):
    """The bits of floats to integers in the order of the floats, and back; NaN is above all."""
    return np.int32(bits ^ ((bits >> _SIGN_PLACE) & _ALL_BUT_SIGN))


@kernel
def _find_highest(logits, blocks):
    """The highest of each 64 of ``[V]`` logits, the last of them perhaps of fewer.

    Of integers, whose maximum is the same in any order, so that many are compared at once.
    """
    for block in range(blocks.shape[0]):
        part = logits[block * BLOCK : (block + 1) * BLOCK]
        key = _LOWEST_KEY
        for place in range(part.shape[0]):
            key = max(key, _turn(bits_of(part[place] + _ZERO)))  # -0 becomes +0
        blocks[block] = number_of(_turn(key))


@kernel
def _best(logits, blocks):
    """The token of the highest of ``[V]`` logits, the first of equals; NaN is overlooked."""
    top, best = _LOWEST, 0
    for block in range(blocks.shape[0]):
        if blocks[block] > top:
            top, best = blocks[block], block
    for token in range(best * BLOCK, min((best + 1) * BLOCK, logits.shape[0])):
        if logits[token] == top:
            return token
    return best * BLOCK


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


@operation(CHOICE)
def _choose(address, first_row, last_row):
    logits, never, tokens, tops, sums, blocks = _unpack_choice(address)
    partial = np.empty(SUMS, np.float32)
    spared = np.empty(never.shape[0], np.float32)
    for n in range(first_row, last_row):
        row = logits[n]
        for i in range(never.shape[0]):
            spared[i] = row[never[i]]
            row[never[i]] = _LOWEST
        _find_highest(row, blocks[n])
        tokens[n] = _best(row, blocks[n])
        top = row[tokens[n]]
        for i in range(never.shape[0]):
            row[never[i]] = spared[i]
            top = spared[i] if spared[i] > top else top
        tops[n], sums[n] = top, np.log(_mass(row, top, partial))
        for i in range(never.shape[0]):
            row[never[i]] = _LOWEST
    return np.int64(1)


@kernel
def most_probable(logits, never, tokens, tops, sums, blocks, board):
    """The most probable token of each row, and what makes a log-probability of a logit.

    Args:
        logits: ``[N, V]``; those of the tokens in ``never`` become minus infinity.
        never: int64, tokens that are not chosen, though they have their share of probability.
        tokens: ``[N]`` int64, where the tokens go, the lowest of equals.
        tops: ``[N]``, where each row's highest logit goes.
        sums: ``[N]``, where the logarithms of the sums of e^(logit - highest) go.
        blocks: ``[N, C]``, where the highest logit of each 64 goes that may be chosen.
        board: address of where threads are told to help.
    """
    parts, rows = (logits, never, tokens, tops, sums, blocks), logits.shape[0]
    share_out(board, CHOICE, _pack_choice(parts), logits.size // 3, rows, 1)
    keep(parts)


@kernel
def count_blocks(size):
    """C: blocks of so many tokens."""
    return (size + BLOCK - 1) // BLOCK


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
    blocks = np.empty(count_blocks(logits.shape[1]), np.float32)
    partial = np.empty(SUMS, np.float32)
    for n in range(logits.shape[0]):
        row = logits[n]
        _find_highest(row, blocks)
        top = row[_best(row, blocks)]
        log_sum = np.log(_mass(row, top, partial))
        for v in range(row.shape[0]):
            logprobs[n, v] = log_probability(row[v], top, log_sum)


@kernel
def _bar(blocks, count):
    """The ``count``-th highest of the blocks' maxima, or minus infinity where there are fewer.

    So many blocks hold a logit that is as high, and so no lower one is among the ``count`` best.
    """
    highest = np.full(count, _LOWEST, np.float32)
    for block in range(blocks.shape[0]):
        top = blocks[block]
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
    """Put a token, higher than those that are held, in its place; return how many there are."""
    count = tokens.shape[0]
    if held == count and not logprob > logprobs[count - 1]:
        return held
    place = min(held, count - 1)
    while place and logprob > logprobs[place - 1]:
        logprobs[place], tokens[place] = logprobs[place - 1], tokens[place - 1]
        place -= 1
    logprobs[place], tokens[place] = logprob, token
    return min(held + 1, count)


@kernel
def best_candidates(logits, rows, tops, sums, blocks, tokens, logprobs):
    """The most probable tokens of some rows, best first, the lower id first among equals.

    Only the blocks are looked at whose maximum is high enough, as a rule as many as candidates.

    Args:
        logits: ``[N, V]`` as :func:`most_probable` left them.
        rows: ``[R]`` int64.
        tops: ``[N]`` from there.
        sums: ``[N]`` from there.
        blocks: ``[N, C]`` from there.
        tokens: ``[R, K]`` int64, where the tokens go; K is at most V.
        logprobs: ``[R, K]``, where their log-probabilities go.
    """
    for r in range(rows.shape[0]):
        n = rows[r]
        row, top, log_sum = logits[n], tops[n], sums[n]
        # Different logits may have the same log-probability: these are what is compared.
        bar = log_probability(_bar(blocks[n], tokens.shape[1]), top, log_sum)
        held = 0
        for block in range(blocks.shape[1]):
            if log_probability(blocks[n, block], top, log_sum) < bar:
                continue
            for token in range(block * BLOCK, min((block + 1) * BLOCK, row.shape[0])):
                logprob = log_probability(row[token], top, log_sum)
                if not logprob < bar:
                    held = _insert(token, logprob, held, tokens[r], logprobs[r])
