"""Whole steps of decoders: one call takes the place of a dozen.

With few rows, half of a step was Python between the kernels. That of
:class:`models.seq2seq.ParallelAttentionDecoder` comes in two halves: what is between them is the
attention, whose sources stand in several pools.

States may have more rows than take part: the first of them do.

Shape legend: ``N`` rows, ``V`` vocabulary size, ``D`` embedding size, ``H`` hidden size, ``E``
size of an encoder output, ``A`` attention size.
"""

import numpy as np

from models.kernels.gates import apply_tanh, step_gru, step_lstm
from models.kernels.jit import kernel
from models.kernels.products import copy_row, linear


@kernel
def _advance(inputs, before, projection, recurrent, after):
    """One position of a layer of cells: ``inputs [N, I]`` and hidden states ``[N, H]``."""
    projected = np.empty((before.shape[0], 3 * before.shape[1]), np.float32)
    linear(inputs, projection, projected)
    step_gru(projected, before, recurrent, after)


@kernel
def _embed(tokens, embedding):
    inputs = np.empty((tokens.shape[0], embedding.shape[1]), np.float32)
    for n in range(tokens.shape[0]):
        copy_row(embedding[tokens[n]], inputs[n])
    return inputs


@kernel
def step_gru_model(tokens, before, embedding, cells, output, after, logits):
    """Of :class:`models.language_model.LanguageModel` with GRU cells.

    Args:
        tokens: ``[N]`` int64.
        before: for each layer a tuple of its hidden states ``[N, H]`` before the step.
        embedding: ``[V, D]`` float32.
        cells: for each layer, the weights of its inputs and of its hidden states.
        output: makes the logits of the top hidden states.
        after: as ``before``, where those after the step go.
        logits: ``[N, V]``, where these go.
    """
    inputs, rows = _embed(tokens, embedding), tokens.shape[0]
    for layer in range(len(after)):
        hidden = after[layer][0][:rows]
        _advance(inputs, before[layer][0][:rows], *cells[layer], hidden)
        inputs = hidden
    linear(inputs, output, logits)


@kernel
def step_lstm_model(tokens, before, embedding, cells, output, after, logits):
    """The same with LSTM cells, whose memories stand behind their hidden states."""
    inputs, rows = _embed(tokens, embedding), tokens.shape[0]
    for layer in range(len(after)):
        last = (before[layer][0][:rows], before[layer][1][:rows])
        following = (after[layer][0][:rows], after[layer][1][:rows])
        projected = np.empty((rows, 4 * last[0].shape[1]), np.float32)
        linear(inputs, cells[layer][0], projected)
        step_lstm(projected, last, cells[layer][1], following)
        inputs = following[0]
    linear(inputs, output, logits)


@kernel
def begin_step(tokens, before, embedding, projection, recurrent, query, hidden, queries):
    """Through the bottom layer, to what the sources are asked.

    Args:
        tokens: ``[N]`` int64.
        before: ``[N, H]``, hidden states of the bottom layer before the step.
        embedding: ``[V, D]`` float32.
        projection: of the layer's inputs.
        recurrent: of its hidden states.
        query: projects these for the attention.
        hidden: ``[N, H]``, where the hidden states after the step go.
        queries: ``[N, A]``, where the projected queries go.
    """
    inputs = _embed(tokens, embedding)
    _advance(inputs, before, projection, recurrent, hidden)
    linear(hidden, query, queries)


@kernel
def finish_step(
    hidden, contexts, before, cells, combine, bottleneck, bottleneck_size, output, after, logits
):
    """From what the sources answered, through the layers above, to the logits.

    Args:
        hidden: ``[N, H]``, of the bottom layer.
        contexts: ``[N, E]``.
        before: for each layer above a tuple of its hidden states ``[N, H]`` before the step.
        cells: for each of them, the weights of its inputs and of its hidden states.
        combine: makes features of the top hidden state and the context.
        bottleneck: makes them smaller.
        bottleneck_size: how small; 0 if they stay as they are.
        output: makes the logits of them.
        after: as ``before``, where those after the step go.
        logits: ``[N, V]``, where these go.
    """
    rows, size = hidden.shape
    joined = np.empty((rows, size + contexts.shape[1]), np.float32)
    for n in range(rows):
        copy_row(hidden[n], joined[n, :size])
        copy_row(contexts[n], joined[n, size:])
    inputs = joined
    for layer in range(len(after)):
        following = after[layer][0][:rows]
        _advance(inputs, before[layer][0][:rows], *cells[layer], following)
        inputs = following
    for n in range(rows):
        copy_row(inputs[n], joined[n, :size])
    combined = np.empty((rows, size), np.float32)
    linear(joined, combine, combined)
    features = np.empty((rows, size), np.float32)
    apply_tanh(combined, features)
    if bottleneck_size:
        narrow = np.empty((rows, bottleneck_size), np.float32)
        linear(features, bottleneck, narrow)
        linear(narrow, output, logits)
    else:
        linear(features, output, logits)
