"""Language models from a plain state_dict.

An embedding (or one-hot vectors), ``nn.GRU``, ``nn.LSTM`` or ``nn.RNN``, and an output layer: the
shape of the textbook's ``RNNModel`` (*Dive into Deep Learning*, section 9.6) and of most
tutorials. A state_dict says nothing of what its tensors are for, so that is told from their
names and shapes, and every shape is checked.

Shape legend: ``V`` vocabulary size, ``I`` input size, ``H`` hidden size, ``G`` number of gates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.config import CellName, LanguageModelConfig
from models.language_model import LanguageModel
from training.importing.vocabulary import Vocabulary
from training.importing.weights import (
    ImportingError,
    Weights,
    load_plainly,
    load_safetensors,
    only_tensors,
)

CELL_OF_GATES: dict[int, CellName] = {1: "rnn", 3: "gru", 4: "lstm"}

ENTRIES = ("state_dict", "model_state_dict", "model_state", "model")
"""Where training scripts put a model's state_dict among other things."""

OUTPUT_NAMES = frozenset(
    {"output", "out", "linear", "fc", "decoder", "dense", "head", "lm_head", "output_layer", "proj"}
)

MAP_ADVICE = (
    "say what is what with --map THEIRS=OURS, where OURS is embedding, rnn or output "
    "(or with --map THEIRS= leave it out)"
)


@dataclass(frozen=True)
class ImportedLanguageModel:
    """A language model, and what should be said about it.

    Attributes:
        model: in float32 and evaluation mode.
        notes: sentences on what was taken for granted or left out.
    """

    model: LanguageModel
    notes: tuple[str, ...]


def read_state_dict(file: Path) -> tuple[Weights, list[str]]:
    """Read a ``.pt`` or ``.safetensors`` file.

    Returns:
        Its tensors, and notes on what else it held.

    Raises:
        ImportingError: it holds no state_dict, or objects that are not tensors.
        OSError: it cannot be read.
    """
    if file.suffix == ".safetensors":
        return Weights(file, load_safetensors(file)), []
    content = load_plainly(
        file, advice="save the state_dict alone: torch.save(model.state_dict(), FILE)"
    )
    notes = []
    if isinstance(content, Mapping):
        entries = [name for name in ENTRIES if isinstance(content.get(name), Mapping)]
        if len(entries) == 1:
            others = [str(name) for name in content if name != entries[0]]
            if others:
                notes.append(f"took {entries[0]} and left {', '.join(others)} out")
            content = content[entries[0]]
    return Weights(file, only_tensors(file, content)), notes


def build_language_model(
    weights: Weights, vocabulary: Vocabulary, begin_with: int | None = None
) -> ImportedLanguageModel:
    """Build the model that a state_dict is of.

    Args:
        weights: all of them; renamed already where the names do not tell.
        vocabulary: theirs, in Gatehouse's order.
        begin_with: their id of the token that texts begin with, for a vocabulary without
            ``<bos>``; None has the first token of a text meet a state of zeros.

    Raises:
        ImportingError: something is missing, left over, or of the wrong shape; or the vocabulary
            has a ``<bos>`` and ``begin_with`` is another token.
    """
    if begin_with is not None and vocabulary.has("bos"):
        raise ImportingError(
            f"{vocabulary.file}: has a <bos>, which texts begin with: without --begin-with, or say "
            "--special bos=TOKEN"
        )
    notes: list[str] = []
    layers, input_size = _take_layers(weights)
    gates, hidden_size = layers[0][1].shape[0] // layers[0][1].shape[1], layers[0][1].shape[1]
    if gates == 1:
        notes.append("took the nn.RNN for one with tanh, which is nn.RNN's default")
    embedding, output = _take_ends(weights, vocabulary, input_size, hidden_size, notes)
    weights.require_all_used(MAP_ADVICE)

    config = LanguageModelConfig(
        vocabulary_size=len(vocabulary.tokens),
        cell=CELL_OF_GATES[gates],
        embedding_size=None if embedding is None else input_size,
        hidden_size=hidden_size,
        num_layers=len(layers),
        reads_bos=vocabulary.has("bos") or begin_with is not None,
    )
    columns = layers[0][0].T if embedding is None else embedding
    columns = vocabulary.embeddings(columns)
    if begin_with is not None:
        columns[1] = columns[vocabulary.rows.index(begin_with)]
    state = {"output.weight": output[0], "output.bias": output[1]}
    if embedding is None:
        layers[0] = (columns.T, *layers[0][1:])
    else:
        state["embedding.weight"] = columns
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    for layer, parameters in enumerate(layers):
        for name, parameter in zip(names, parameters, strict=True):
            state[f"stack.forward_cells.{layer}.{name}"] = parameter
    model = LanguageModel(config).eval()
    model.load_state_dict(state)
    return ImportedLanguageModel(model, tuple(notes))


def _take_layers(weights: Weights) -> tuple[list[tuple[Tensor, ...]], int]:
    """Weights and biases of each layer of the one recurrent module, and its input size."""
    end = "weight_ih_l0"
    prefixes = [name.removesuffix(end) for name in weights if f".{name}".endswith(f".{end}")]
    if len(prefixes) != 1:
        found = " and ".join(prefix.rstrip(".") for prefix in prefixes)
        raise ImportingError(
            f"{weights.file}: holds the weights of {found}, but a language model has one module"
            if prefixes
            else f"{weights.file}: holds no weights of an nn.GRU, nn.LSTM or nn.RNN, that is, no "
            f"...{end}; {MAP_ADVICE}"
        )
    prefix = prefixes[0]
    for name in weights:
        if name.startswith(prefix) and name.endswith("_reverse"):
            raise ImportingError(
                f"{weights.file}: {name} reads backwards: a bidirectional model cannot generate "
                "text, since its future is not there to read"
            )
        if name.startswith(f"{prefix}weight_hr_l"):
            raise ImportingError(
                f"{weights.file}: {name} is an LSTM's projection (proj_size), which Gatehouse lacks"
            )
    first, recurrent = weights.shape(prefix + end), weights.shape(f"{prefix}weight_hh_l0")
    if len(first) != 2 or len(recurrent) != 2 or recurrent[0] not in _sizes(recurrent[1]):
        raise ImportingError(
            f"{weights.file}: {prefix}weight_hh_l0 has shape {list(recurrent)}, but 1, 3 or 4 "
            "blocks of square matrices are wanted (nn.RNN, nn.GRU or nn.LSTM)"
        )
    size, hidden_size = recurrent
    layers: list[tuple[Tensor, ...]] = []
    while f"{prefix}weight_ih_l{len(layers)}" in weights:
        layer = len(layers)
        layers.append(
            (
                weights.take(
                    f"{prefix}weight_ih_l{layer}", size, hidden_size if layer else first[1]
                ),
                weights.take(f"{prefix}weight_hh_l{layer}", size, hidden_size),
                weights.take_or_zeros(f"{prefix}bias_ih_l{layer}", size),
                weights.take_or_zeros(f"{prefix}bias_hh_l{layer}", size),
            )
        )
    return layers, first[1]


def _sizes(hidden_size: int) -> list[int]:
    return [gates * hidden_size for gates in CELL_OF_GATES]


def _take_ends(
    weights: Weights,
    vocabulary: Vocabulary,
    input_size: int,
    hidden_size: int,
    notes: list[str],
) -> tuple[Tensor | None, tuple[Tensor, Tensor]]:
    """Embedding ``[V, I]`` in their order (None: one-hot), and the output layer in ours."""
    size, why = vocabulary.size, f"since {vocabulary.file} has {vocabulary.size} tokens"
    matrices = [name for name in weights if len(weights.shape(name)) == 2]
    outputs = [name for name in matrices if _is_output(weights, name)]
    embeddings = [name for name in matrices if name not in outputs]
    for role, found in (("output", outputs), ("embedding", embeddings)):
        if f"{role}.weight" in found:
            found[:] = [f"{role}.weight"]
        if len(found) > 1:
            raise ImportingError(
                f"{weights.file}: {' and '.join(found)} may both be the {role}: {MAP_ADVICE}"
            )
    embedding = weights.take(embeddings[0], size, input_size, why=why) if embeddings else None
    if embedding is None and input_size != size:
        raise ImportingError(
            f"{weights.file}: has no embedding, and its recurrent module reads {input_size} "
            f"numbers where one-hot vectors would have {size}, {why}; {MAP_ADVICE}"
        )
    if outputs:
        weight = weights.take(outputs[0], size, hidden_size, why=why)
        bias = weights.take_or_zeros(_bias_name(outputs[0]), size)
        return embedding, vocabulary.outputs(weight, bias)
    if embedding is not None and input_size == hidden_size:
        # A safetensors file keeps a matrix that two layers share under one of its names.
        notes.append(f"took {embeddings[0]} for the output layer's matrix too")
        biases = [name for name in weights if weights.shape(name) == (size,)]
        bias = weights.take(biases[0], size) if len(biases) == 1 else torch.zeros(size)
        return embedding, vocabulary.outputs(embedding, bias)
    raise ImportingError(f"{weights.file}: has no output layer; {MAP_ADVICE}")


def _is_output(weights: Weights, name: str) -> bool:
    """Whether a matrix has a bias beside it, as no embedding has, or an output layer's name."""
    parts = name.split(".")
    return _bias_name(name) in weights or (len(parts) > 1 and parts[-2] in OUTPUT_NAMES)


def _bias_name(name: str) -> str:
    return f"{name.removesuffix('weight')}bias"
