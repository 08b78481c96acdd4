"""Splitting texts into pieces at random, by forward filtering and backward sampling.

Kudo 2018, "Subword Regularization", section 3.2: every way to write the beginning of a text is
summed up first; then pieces are drawn from the end of the text to its beginning.

Shape legend: ``C`` characters of all texts, ``B`` texts, ``N`` nodes of the trie, ``H`` places of
its hash table.
"""

import numpy as np

from models.kernels.jit import kernel

_MULTIPLIER = np.int64(0x9E3779B97F4A7)
_CHARACTERS = np.int64(1 << 21)


@kernel
def _place(keys, key):
    """Where a key is in a hash table, or the free place where it belongs."""
    mask = np.int64(keys.shape[0] - 1)
    mixed = key * _MULTIPLIER
    place = (mixed ^ (mixed >> 29)) & mask
    while keys[place] != key and keys[place] != -1:
        place = (place + 1) & mask
    return place


@kernel
def build_trie(characters, ends, keys, nodes):
    """Put texts into a trie, whose root is node 0.

    Args:
        characters: ``[C]`` int64, of all texts.
        ends: ``[B]`` int64, where each text ends in them.
        keys: ``[H]`` int64, all -1; ``H`` is a power of two above ``C``. Becomes the edges: node
            and character in one number.
        nodes: ``[H]`` int64, where each edge leads.

    Returns:
        ``[B]`` int64: the node at the end of each text.
    """
    last = np.empty(ends.shape[0], np.int64)
    count, begin = np.int64(1), np.int64(0)
    for b in range(ends.shape[0]):
        node = np.int64(0)
        for c in range(begin, ends[b]):
            key = node * _CHARACTERS + characters[c]
            place = _place(keys, key)
            if keys[place] == -1:
                keys[place] = key
                nodes[place] = count
                count += 1
            node = nodes[place]
        last[b] = node
        begin = ends[b]
    return last


@kernel
def _add_edge(edges, weights, first, forward, used, start, end, token, weight):
    """Note a piece from one place to another, and add its way to the mass of the latter."""
    edges[used, 0] = start
    edges[used, 1] = token
    edges[used, 2] = first[end]
    weights[used] = weight
    first[end] = used
    mass = forward[start] + weight
    if forward[end] > -np.inf:
        high, low = max(forward[end], mass), min(forward[end], mass)
        mass = high + np.log1p(np.exp(low - high))
    forward[end] = mass


@kernel
def _find_pieces(text, keys, nodes, tokens, scores, unknown, edges, weights, first, forward):
    """Note every piece of a text, the mass of all ways to each place with it."""
    forward[: text.shape[0] + 1] = -np.inf
    first[: text.shape[0] + 1] = -1
    forward[0] = 0.0
    used = np.int64(0)
    for start in range(text.shape[0]):
        node, end, is_single = np.int64(0), start, False
        while end < text.shape[0]:
            place = _place(keys, node * _CHARACTERS + text[end])
            if keys[place] == -1:
                break
            node = nodes[place]
            end += 1
            if tokens[node] >= 0:
                token, weight = tokens[node], scores[node]
                _add_edge(edges, weights, first, forward, used, start, end, token, weight)
                used += 1
                is_single |= end == start + 1
        if not is_single:
            token = -text[start] - 1
            _add_edge(edges, weights, first, forward, used, start, start + 1, token, unknown)
            used += 1


@kernel
def _draw(edges, weights, first, forward, end, uniform):
    """One of the pieces that end at a place, by the mass of the ways through it."""
    edge, mass = first[end], 0.0
    while True:
        mass += np.exp(forward[edges[edge, 0]] + weights[edge] - forward[end])
        if mass > uniform or edges[edge, 2] < 0:
            return edge
        edge = edges[edge, 2]


@kernel
def sample_splits(
    characters, ends, keys, nodes, tokens, scores, unknown, longest, uniforms, pieces, piece_ends
):
    """Split texts into pieces at random.

    Args:
        characters: ``[C]`` int64, of all texts.
        ends: ``[B]`` int64, where each text ends in them.
        keys: as :func:`build_trie` left them, like the next.
        nodes: ``[H]`` int64.
        tokens: ``[N]`` int64, the piece that ends at a node, or -1.
        scores: ``[N]`` float64, the logarithm of the weight of that piece.
        unknown: float64, that of a character that is no piece.
        longest: characters of the longest piece.
        uniforms: ``[C]`` float64 in [0, 1).
        pieces: ``[C]`` int64, where the pieces of all texts go: their tokens, and ``-c - 1`` for
            a character ``c`` that is no piece.
        piece_ends: ``[B]`` int64, where those of each text end.
    """
    size = np.int64(0)
    begin = np.int64(0)
    for b in range(ends.shape[0]):
        size = max(size, ends[b] - begin)
        begin = ends[b]
    edges = np.empty((size * (longest + 1) + 1, 3), np.int64)
    weights = np.empty(size * (longest + 1) + 1)
    first, forward = np.empty(size + 1, np.int64), np.empty(size + 1)
    begin, written = np.int64(0), np.int64(0)
    for b in range(ends.shape[0]):
        text = characters[begin : ends[b]]
        _find_pieces(text, keys, nodes, tokens, scores, unknown, edges, weights, first, forward)
        end, start_of_text = text.shape[0], written
        while end > 0:
            edge = _draw(edges, weights, first, forward, end, uniforms[begin + end - 1])
            pieces[written] = edges[edge, 1]
            written += 1
            end = edges[edge, 0]
        pieces[start_of_text:written] = pieces[start_of_text:written][::-1].copy()
        piece_ends[b] = written
        begin = ends[b]
