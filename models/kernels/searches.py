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
    gone: ``[N]`` bool, rows that nobody has.
    space: see :func:`make_search_space`.
    layers: for each layer a tuple of the parts of its state, ``[N, H]``.
"""

import numpy as np

from models.kernels.beams import keep_best
from models.kernels.choice import best_candidates
from models.kernels.jit import kernel
from models.kernels.products import copy_row


@kernel
def make_search_space(searches, rows, size):
    """What belongs to each hypothesis, its row and its sum; to each candidate; to who has no row.

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
    return held, candidates, np.empty((rows, 3), np.int64)


@kernel
def begin_searches(searches, numbers, space):
    """Seat the live hypotheses where they are."""
    (places, totals), _, _ = space
    owners, width, next_row = numbers[0], searches.scores.shape[1], 0
    for b in range(searches.counts.shape[0]):
        for number in range(b * width, b * width + searches.counts[b]):
            row = searches.rows[next_row]
            places[number], totals[number] = row, searches.totals[next_row]
            owners[row] = -1 - number
            next_row += 1


@kernel
def expand(step, logits, searches, chosen, space, found):
    """What each search keeps of the continuations of its live hypotheses.

    ``chosen`` is what :func:`models.kernels.choice.most_probable` says of the rows: their highest
    logits, the logarithms of their sums, and the highest of each block.
    """
    (places, totals), (rows, sums, tokens, logprobs), _ = space
    width, count = searches.scores.shape[1], 0
    for b in range(searches.counts.shape[0]):
        for number in range(b * width, b * width + searches.counts[b]):
            rows[count], sums[count] = places[number], totals[number]
            count += 1
        if searches.counts[b]:
            found.steps[b] = step + 1
    if not count:
        return
    best_candidates(logits, rows[:count], *chosen, tokens[:count], logprobs[:count])
    keep_best(
        sums[:count], tokens[:count], logprobs[:count], searches.counts, searches.widths,
        found.kept[step], found.parents[step], found.tokens[step], found.logprobs[step],
        found.totals[step],
    )  # fmt: skip


@kernel
def _can_improve(b, total, searches):
    """See :func:`models.decoding.beam.can_improve`."""
    best, as_good = total / searches.longest[b], 0
    for place in range(searches.finished[b]):
        as_good += 1 if searches.scores[b, place] >= best else 0
    return as_good < searches.outputs[b]


@kernel
def _finish(step, b, searches, found, end, live):
    """Note which hypotheses end with a step; the others' places go into ``live``; how many."""
    count, is_last = 0, step + 1 == searches.limits[b]
    for place in range(found.kept[step, b]):
        if found.tokens[step, b, place] != end and not is_last:
            live[count] = place
            count += 1
            continue
        score = found.totals[step, b, place] / searches.powers[b, step]
        searches.scores[b, searches.finished[b]] = score
        searches.finished[b] += 1
        searches.widths[b] -= 1
    if count and not _can_improve(b, found.totals[step, b, live[0]], searches):
        return 0
    return count


@kernel
def _keep_rows(step, b, live, searches, numbers, gone, space, found, waiting):
    """Hand the rows of a search on to its live hypotheses; how many wait for one in all."""
    (places, totals), _, without_row = space
    owners, _, fed = numbers
    first = b * searches.scores.shape[1]
    before = places[first : first + searches.counts[b]].copy()
    for row in before:
        gone[row] = True
    for number in range(first, first + live.shape[0]):
        place = live[number - first]
        row, token = before[found.parents[step, b, place]], found.tokens[step, b, place]
        totals[number] = found.totals[step, b, place]
        if gone[row]:
            gone[row] = False
            places[number], owners[row], fed[row] = row, -1 - number, token
            continue
        without_row[waiting, 0], without_row[waiting, 1] = number, row
        without_row[waiting, 2] = token
        waiting += 1
    searches.counts[b] = found.live[b] = live.shape[0]
    return waiting


@kernel
def copy_state(layers, row, to):
    """The state of a row to another one."""
    for layer in range(len(layers)):
        for part in range(len(layers[layer])):
            copy_row(layers[layer][part][row], layers[layer][part][to])


@kernel
def settle_searches(step, rows, searches, end, numbers, gone, space, found, layers):
    """Go on with the live hypotheses of the searches that are not over; how many rows there are.

    Those that nobody has are marked. ``end`` is the token that ends outputs.
    """
    (places, _), _, without_row = space
    owners, sources, fed = numbers
    live, waiting = np.empty(searches.scores.shape[1], np.int64), 0
    for b in range(searches.counts.shape[0]):
        if searches.counts[b]:
            count = _finish(step, b, searches, found, end, live)
            waiting = _keep_rows(
                step, b, live[:count], searches, numbers, gone, space, found, waiting
            )
    to = 0
    for number, origin, token in without_row[:waiting]:
        while to < rows and not gone[to]:
            to += 1
        rows += 1 if to == rows else 0
        gone[to] = False
        copy_state(layers, origin, to)
        places[number], owners[to] = to, -1 - number
        sources[to], fed[to] = sources[origin], token
    return rows
