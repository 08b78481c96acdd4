"""Several steps in one call, without Python between them.

A row whose output ends leaves at once: the last row takes its place, as it does between two calls.
Beam searches may come to have more rows: see :mod:`models.kernels.searches`.

Shape legend: ``N`` rows at first, ``M`` at most, ``K`` steps, ``V`` vocabulary size, ``S`` source
positions, ``H`` hidden size, ``A`` attention size, ``E`` size of an encoder output, ``B`` searches
of ``W`` hypotheses at most. States are for each layer a tuple of its parts, ``[N, H]``.

All take these arguments:
    tokens: ``[N]`` int64, to be fed.
    before: the state, which is left alone.
    spare: two more, of M rows, as space.
    rules: see :class:`models.several_steps.Rules`.
    steps: K, at most.
    stop: address of a number: once it is not 0, no other step follows.
    board: address of where threads are told to help.
    logits: ``[M, V]``, as space.
    outcome: where tokens ``[K, N]`` int64 go, their log-probabilities ``[K, N]`` float32, how many
        there are of each row, ``[N]`` int64, how many rows each step had ``[K]`` int64, and what
        the searches kept: see :class:`models.several_steps.SearchSteps`.
    after: where the state goes of the rows that have not ended, and behind all N, that of the live
        hypotheses, the ``j``-th of search ``b`` at ``N + b * W + j``.
"""

import numpy as np

from models.kernels.attention import attend_by_dot
from models.kernels.choice import count_blocks, log_probabilities, most_probable
from models.kernels.decoders import begin_step, finish_step, step_gru_model, step_lstm_model
from models.kernels.instructions import load
from models.kernels.jit import kernel
from models.kernels.products import copy_row
from models.kernels.sampling import sample
from models.kernels.searches import (
    begin_searches,
    continue_searches,
    copy_state,
    make_search_space,
)


@kernel
def _make_space(tokens, sources, logits, searches):
    """What belongs to each row, and to the searches.

    Of a row whose it was at first or, below 0, whose hypothesis it is, its source and its token;
    floats; blocks; and whether it is gone, so that nobody has it.
    """
    rows, size = logits.shape
    numbers = (np.arange(rows), np.empty(rows, np.int64), np.empty(rows, np.int64))
    for row in range(tokens.shape[0]):
        numbers[1][row], numbers[2][row] = sources[row], tokens[row]
    floats = (np.empty(rows, np.float32), np.empty(rows, np.float32), np.empty(rows, np.float32))
    blocks = np.empty((rows, count_blocks(size)), np.float32)
    of_searches = make_search_space(searches, rows, size)
    begin_searches(searches, numbers, of_searches)
    return numbers, floats, blocks, np.zeros(rows, np.bool_), of_searches


@kernel
def _sample(step, logits, owners, rules, board, tokens):
    """Choose a token for each of the rows that sample or have a repetition penalty."""
    temperatures, _, _, penalties = rules.settings
    rows, count = np.empty(logits.shape[0], np.int64), 0
    for row in range(logits.shape[0]):
        owner = owners[row]
        if owner >= 0 and (temperatures[owner] > 0 or penalties[owner] != 1):
            rows[count] = row
            count += 1
    if count:
        sample(
            logits, rules.never, rows[:count], owners, rules.settings, rules.seen,
            rules.uniforms[step], tokens, board,
        )  # fmt: skip


@kernel
def _look_back(owner, token, rules):
    """Let a row see what it has chosen, and forget what lies too far behind."""
    starts, counts, seen = rules.seen
    if rules.settings[3][owner] == 1:
        return
    seen[starts[owner] + counts[owner]] = token
    if counts[owner] < rules.window:
        counts[owner] += 1
    else:
        starts[owner] += 1


@kernel
def _choose(step, logits, space, rules, board, outcome):
    """Choose a token for each row, and note it where the row was at first."""
    (owners, _, tokens), (tops, sums, logprobs), blocks, _, _ = space
    rows = logits.shape[0]
    outcome[3][step] = rows
    never = rules.never
    most_probable(logits, never, tokens[:rows], tops[:rows], sums[:rows], blocks[:rows], board)
    _sample(step, logits, owners, rules, board, tokens)
    log_probabilities(logits, tokens, tops, sums, logprobs)
    for row in range(rows):
        owner = owners[row]
        if owner < 0:
            continue
        outcome[0][step, owner], outcome[1][step, owner] = tokens[row], logprobs[row]
        outcome[2][owner] = step + 1
        _look_back(owner, tokens[row], rules)


@kernel
def _settle(step, logits, space, rules, board, outcome, layers):
    """Part with the rows whose outputs have ended, go on with searches; returns how many rows."""
    numbers, (tops, sums, logprobs), blocks, gone, of_searches = space
    owners, _, tokens = numbers
    for row in range(logits.shape[0]):
        owner = owners[row]
        if owner >= 0:
            is_over = tokens[row] == rules.end or outcome[2][owner] == rules.limits[owner]
            gone[row] = is_over or np.isnan(logprobs[row])
    rows = continue_searches(
        step, rules.end, logits, (tops, sums, blocks), rules.searches, numbers, gone, of_searches,
        outcome[4], layers, board,
    )  # fmt: skip
    return _close_gaps(rows, space, layers)


@kernel
def _close_gaps(rows, space, layers):
    """Have the last rows take the places of those that nobody has; returns how many are left."""
    (owners, sources, tokens), _, _, gone, ((places, _), _, _, _) = space
    for row in range(rows - 1, -1, -1):
        if not gone[row]:
            continue
        gone[row] = False
        rows -= 1
        if row == rows:
            continue
        owners[row], sources[row], tokens[row] = owners[rows], sources[rows], tokens[rows]
        copy_state(layers, rows, row)
        if owners[row] < 0:
            places[-1 - owners[row]] = row
    return rows


@kernel
def _put_back(rows, first, owners, layers, after):
    """The states of the rows that go on, to where these were at first; hypotheses behind them."""
    for layer in range(len(layers)):
        for part in range(len(layers[layer])):
            for row in range(rows):
                to = owners[row] if owners[row] >= 0 else first - 1 - owners[row]
                copy_row(layers[layer][part][row], after[layer][part][to])


@kernel
def decode_by_gru_decoder(
    tokens, sources, weights, memory, spaces, before, spare, rules, steps, stop, board, logits,
    outcome, after,
):  # fmt: skip
    """Of :class:`models.seq2seq.ParallelAttentionDecoder` with GRU cells and dot attention.

    ``sources [N]`` int64 are each row's; ``weights`` those that :func:`begin_step` takes and those
    that :func:`finish_step` takes; ``memory`` is what :func:`attend_by_dot` takes of the sources;
    ``spaces`` are for queries ``[M, A]``, contexts ``[M, E]`` and attention weights ``[M, S]``.
    """
    first, second = weights
    rows = tokens.shape[0]
    space = _make_space(tokens, sources, logits, rules.searches)
    owners, lines, fed = space[0]
    queries, contexts, attention = spaces
    layers = before
    for step in range(steps):
        bottom, top = layers[:1], layers[1:]
        layers = spare[step % 2]
        hidden = layers[0][0][:rows]
        begin_step(fed[:rows], bottom[0][0][:rows], *first, hidden, queries[:rows])
        attend_by_dot(
            queries[:rows], lines[:rows], *memory, attention[:rows], contexts[:rows], board
        )
        finish_step(hidden, contexts[:rows], top, *second, layers[1:], logits[:rows])
        _choose(step, logits[:rows], space, rules, board, outcome)
        rows = _settle(step, logits[:rows], space, rules, board, outcome, layers)
        if rows == 0 or load(stop):
            break
    _put_back(rows, tokens.shape[0], owners, layers, after)


@kernel
def decode_by_gru_model(
    tokens, weights, before, spare, rules, steps, stop, board, logits, outcome, after
):
    """Of :class:`models.language_model.LanguageModel` with GRU cells.

    ``weights`` are what :func:`step_gru_model` takes: embedding, cells, output.
    """
    rows = tokens.shape[0]
    space = _make_space(tokens, tokens, logits, rules.searches)
    owners, _, fed = space[0]
    layers = before
    for step in range(steps):
        last, layers = layers, spare[step % 2]
        step_gru_model(fed[:rows], last, *weights, layers, logits[:rows])
        _choose(step, logits[:rows], space, rules, board, outcome)
        rows = _settle(step, logits[:rows], space, rules, board, outcome, layers)
        if rows == 0 or load(stop):
            break
    _put_back(rows, tokens.shape[0], owners, layers, after)


@kernel
def decode_by_lstm_model(
    tokens, weights, before, spare, rules, steps, stop, board, logits, outcome, after
):
    """The same with LSTM cells."""
    rows = tokens.shape[0]
    space = _make_space(tokens, tokens, logits, rules.searches)
    owners, _, fed = space[0]
    layers = before
    for step in range(steps):
        last, layers = layers, spare[step % 2]
        step_lstm_model(fed[:rows], last, *weights, layers, logits[:rows])
        _choose(step, logits[:rows], space, rules, board, outcome)
        rows = _settle(step, logits[:rows], space, rules, board, outcome, layers)
        if rows == 0 or load(stop):
            break
    _put_back(rows, tokens.shape[0], owners, layers, after)
