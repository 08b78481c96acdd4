"""Beam searches between the steps of one call, by the rules of :mod:`models.decoding.beam`.

A hypothesis has a row of the batch. The first that continues another keeps its row; further ones
get rows that others have left, or new ones, with a copy of its state.

Shape legend: ``N`` rows at most, ``B`` searches, ``W`` hypotheses that a search has at most, ``K``
candidates of a row. The ``j``-th live hypothesis of search ``b`` has the number ``b * W + j``, and
as the owner of a row the number ``-1 - (b * W + j)``.

Functions take these arguments:
    step: the number of the step.
    searches: see :class:`models.several_steps.Searches`.
    found: see :class:`models.several_steps.SearchSteps`.
    numbers: of each row its owner, its source and the token that it is fed, ``[N]`` int64.
    gone: ``[N]`` bool, whether nobody has the row.
    space: see :func:`make_search_space`.
    layers: for each layer a tuple of the parts of its state, ``[N, H]``.
"""

import numpy as np
from numba import types

from models.kernels.beams import keep_best
from models.kernels.choice import best_candidates
from models.kernels.instructions import Parcel, keep
from models.kernels.jit import kernel
from models.kernels.products import copy_row
from models.kernels.team import SEARCHES, call, operation

_FLOATS, _WIDE_FLOATS, _NUMBERS = types.float32[::1], types.float64[::1], types.int64[::1]
_ROWS, _WIDE_ROWS, _NUMBER_ROWS = types.float32[:, ::1], types.float64[:, ::1], types.int64[:, ::1]
_NUMBER_STEPS, _WIDE_STEPS = types.int64[:, :, ::1], types.float64[:, :, ::1]
_SEARCHES = types.Tuple(
    (_NUMBERS, _WIDE_FLOATS, *[_NUMBERS] * 5, _WIDE_ROWS, _WIDE_ROWS, _WIDE_FLOATS)
)
_FOUND = types.Tuple((_NUMBERS, _NUMBERS, _NUMBER_ROWS, *[_NUMBER_STEPS] * 2, *[_WIDE_STEPS] * 2))
_SPACE = types.Tuple(
    (
        types.Tuple((_NUMBERS, _WIDE_FLOATS)),
        types.Tuple((_NUMBERS, _WIDE_FLOATS, _NUMBER_ROWS, _ROWS)),
        _NUMBER_ROWS,
        _NUMBERS,
    )
)
_parcel = Parcel(
    types.Tuple(
        (
            *(types.int64, types.int64, _ROWS, types.Tuple((_FLOATS, _FLOATS, _ROWS))),
            *(_SEARCHES, types.UniTuple(_NUMBERS, 3), types.boolean[::1], _SPACE, _FOUND),
        )
    )
)
_pack, _unpack = _parcel.pack, _parcel.unpack


@kernel
def make_search_space(searches, rows, size):
    """What belongs to hypotheses and their candidates.

    Of each hypothesis its row and its sum; rows, sums, candidates and their log-probabilities; of
    those without a row their number, the row that they continue and their token; how many these
    are.

    Args:
        searches: before the first step.
        rows: N.
        size: of the vocabulary.
    """
    hypotheses, choice = searches.scores.size, 1
    for b in range(searches.widths.shape[0]):
        choice = max(choice, min(searches.widths[b], size))
    candidates = (
        np.empty(rows, np.int64),
        np.empty(rows),
        np.empty((rows, choice), np.int64),
        np.empty((rows, choice), np.float32),
    )
    held = (np.empty(hypotheses, np.int64), np.empty(hypotheses))
    return held, candidates, np.empty((rows, 3), np.int64), np.zeros(1, np.int64)


@kernel
def begin_searches(searches, numbers, space):
    """Seat the live hypotheses where they are."""
    (places, totals), _, _, _ = space
    owners, width, next_row = numbers[0], searches.scores.shape[1], 0
    for b in range(searches.counts.shape[0]):
        for number in range(b * width, b * width + searches.counts[b]):
            row = searches.rows[next_row]
            places[number], totals[number] = row, searches.totals[next_row]
            owners[row] = -1 - number
            next_row += 1


@kernel
def _expand(step, logits, searches, chosen, space, found):
    """What each search keeps of the continuations of its live hypotheses."""
    (places, totals), (rows, sums, tokens, logprobs), _, _ = space
    _, _, counts, widths, _, _, _, scores, _, _ = searches
    steps, _, kept, parents, kept_tokens, kept_logprobs, kept_totals = found
    width, count = scores.shape[1], 0
    for b in range(counts.shape[0]):
        for number in range(b * width, b * width + counts[b]):
            rows[count], sums[count] = places[number], totals[number]
            count += 1
        if counts[b]:
            steps[b] = step + 1
    tops, log_sums, blocks = chosen
    best_candidates(logits, rows[:count], tops, log_sums, blocks, tokens[:count], logprobs[:count])
    keep_best(
        sums[:count], tokens[:count], logprobs[:count], counts, widths, kept[step], parents[step],
        kept_tokens[step], kept_logprobs[step], kept_totals[step],
    )  # fmt: skip


@kernel
def _can_improve(b, total, searches):
    """See :func:`models.decoding.beam.can_improve`."""
    _, _, _, _, _, outputs, finished, scores, _, longest = searches
    best, as_good = total / longest[b], 0
    for place in range(finished[b]):
        as_good += 1 if scores[b, place] >= best else 0
    return as_good < outputs[b]


@kernel
def _finish(step, b, searches, found, end, live):
    """Note which hypotheses end with a step; the others' places go into ``live``; how many."""
    _, _, _, widths, limits, _, finished, scores, powers, _ = searches
    _, _, kept, _, tokens, _, totals = found
    count, is_last = 0, step + 1 == limits[b]
    for place in range(kept[step, b]):
        if tokens[step, b, place] != end and not is_last:
            live[count] = place
            count += 1
            continue
        scores[b, finished[b]] = totals[step, b, place] / powers[b, step]
        finished[b] += 1
        widths[b] -= 1
    return count if count and _can_improve(b, totals[step, b, live[0]], searches) else 0


@kernel
def _keep_rows(step, b, live, searches, numbers, gone, space, found):
    """Hand the rows of a search on to its live hypotheses; some may wait for one."""
    (places, sums), _, without_row, waiting = space
    counts, width = searches[2], searches[7].shape[1]
    _, still_live, _, parents, tokens, _, totals = found
    owners, _, fed = numbers
    first = b * width
    before = places[first : first + counts[b]].copy()
    for row in before:
        gone[row] = True
    for number in range(first, first + live.shape[0]):
        place = live[number - first]
        row, token = before[parents[step, b, place]], tokens[step, b, place]
        sums[number] = totals[step, b, place]
        if gone[row]:
            gone[row] = False
            places[number], owners[row], fed[row] = row, -1 - number, token
            continue
        without_row[waiting[0], 0], without_row[waiting[0], 1] = number, row
        without_row[waiting[0], 2] = token
        waiting[0] += 1
    counts[b] = still_live[b] = live.shape[0]


@operation(SEARCHES)
def _go_on(address, _first, _last):
    step, end, logits, chosen, searches, numbers, gone, space, found = _unpack(address)
    counts, width = searches[2], searches[7].shape[1]
    _expand(step, logits, searches, chosen, space, found)
    live = np.empty(width, np.int64)
    for b in range(counts.shape[0]):
        if counts[b]:
            count = _finish(step, b, searches, found, end, live)
            _keep_rows(step, b, live[:count], searches, numbers, gone, space, found)
    return np.int64(1)


@kernel
def copy_state(layers, row, to):
    """The state of a row to another one."""
    for layer in range(len(layers)):
        for part in range(len(layers[layer])):
            copy_row(layers[layer][part][row], layers[layer][part][to])


@kernel
def continue_searches(
    step, end, logits, chosen, searches, numbers, gone, space, found, layers, board
):
    """Expand the searches, and go on with the live hypotheses of those that are not over.

    Outputs end with the token ``end``. ``chosen`` is what
    :func:`models.kernels.choice.most_probable` says of the rows of ``logits [N, V]``: their highest
    logits, the logarithms of their sums, and the highest of each block. Operations are found by
    the ``board``.

    Returns:
        How many rows there are, those that nobody has among them.
    """
    rows, waiting = logits.shape[0], space[3]
    waiting[0] = 0
    rows_at_first, totals, counts, widths, limits, outputs, finished, scores, powers, longest = (
        searches
    )
    if not counts.any():
        return rows
    steps, live, kept, parents, tokens, logprobs, sums = found
    parts = (
        step, end, logits, chosen,
        (
            rows_at_first, totals, counts, widths, limits, outputs, finished, scores, powers,
            longest,
        ),
        numbers, gone, space, (steps, live, kept, parents, tokens, logprobs, sums),
    )  # fmt: skip
    call(board, SEARCHES, _pack(parts))
    keep(parts)
    (places, _), _, without_row, _ = space
    owners, sources, fed = numbers
    to = 0
    for number, origin, token in without_row[: waiting[0]]:
        while to < rows and not gone[to]:
            to += 1
        rows += 1 if to == rows else 0
        gone[to] = False
        copy_state(layers, origin, to)
        places[number], owners[to] = to, -1 - number
        sources[to], fed[to] = sources[origin], token
    return rows
