"""Recurrent translation models of other packages as Gatehouse's, with input feeding.

OpenNMT-py and JoeyNMT both follow Luong et al. 2015. What differs between them, and between the
options of each, is brought to one form here without changing a number:

* "general", "dot" and JoeyNMT's "luong" scores are q W k without a scale; Gatehouse's are
  (W_q q) . (W_k k) / sqrt(A), so one matrix is the identity and W_q holds the sqrt(A);
* without input feeding, the columns that would read the attentional vector are zeros;
* source and target embeddings of two sizes are filled up with zeros to the larger one.

Shape legend: ``V`` vocabulary size, ``D`` embedding size, ``H`` hidden size of the decoder, ``E``
size of an encoder output, ``G`` number of gates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from models.config import CellName, Seq2SeqConfig
from models.seq2seq import Seq2Seq
from training.importing.weights import ImportingError, Weights

Layer = tuple[Tensor, Tensor, Tensor, Tensor]
"""``weight_ih [G*H, I]``, ``weight_hh [G*H, H]``, ``bias_ih`` and ``bias_hh [G*H]``."""

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
GATES: dict[CellName, int] = {"gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Scores:
    """How a decoder state is compared with the encoder's outputs.

    Attributes:
        query: ``[A, H]``; None for the identity.
        key: ``[A, E]``; None for the identity.
        vector: ``[1, A]`` of an additive attention, v tanh(W_q q + b + W_k k); None for
            a product, (W_q q) . (W_k k).
        query_bias: ``[A]`` of an additive attention, b.
    """

    query: Tensor | None = None
    key: Tensor | None = None
    vector: Tensor | None = None
    query_bias: Tensor | None = None


@dataclass(frozen=True)
class Translator:
    """The parts of a model; embeddings and output layer in the order of Gatehouse's ids.

    Attributes:
        cell: of encoder and decoder.
        source_embedding: ``[V, D]``.
        target_embedding: ``[V, D]``, of another D perhaps.
        encoder: forward layers.
        encoder_backward: backward layers, none of a one-directional encoder.
        decoder: layers; the first reads [embedding; attentional vector], or only the embedding.
        scores: of the attention.
        combine: weight ``[H, H + E]`` over [hidden; context], and bias ``[H]``.
        output: weight ``[V, H]`` and bias ``[V]``.
        initial_state: as in :class:`Seq2SeqConfig`.
        bridge: its parameters, as :mod:`models.bridge` names them.
        attentional_tanh: as in :class:`Seq2SeqConfig`.
        reads_source_eos: as in :class:`Seq2SeqConfig`.
    """

    cell: CellName
    source_embedding: Tensor
    target_embedding: Tensor
    encoder: Sequence[Layer]
    encoder_backward: Sequence[Layer]
    decoder: Sequence[Layer]
    scores: Scores
    combine: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]
    initial_state: Literal["encoder", "joint_bridge", "top_bridge", "top"]
    bridge: dict[str, Tensor] = field(default_factory=dict)
    attentional_tanh: bool = True
    reads_source_eos: bool = True


def take_layers(
    weights: Weights,
    key: Callable[[str, int], str],
    cell: CellName,
    input_size: int,
    hidden_size: int,
    next_size: int | None = None,
) -> list[Layer]:
    """Use the weights of a stack of layers.

    Args:
        weights: to take them from.
        key: a parameter's name and a layer's number to the name of a tensor.
        cell: its number of gates is checked.
        input_size: of the bottom layer.
        hidden_size: of each layer.
        next_size: input size of the other layers, if it is not the hidden size.

    Raises:
        ImportingError: a tensor is missing or of another shape.
    """
    size = GATES[cell] * hidden_size
    layers: list[Layer] = []
    while not layers or key("weight_ih", len(layers)) in weights:
        number, inputs = len(layers), (next_size or hidden_size) if layers else input_size
        layers.append(
            (
                weights.take(key("weight_ih", number), size, inputs),
                weights.take(key("weight_hh", number), size, hidden_size),
                weights.take(key("bias_ih", number), size),
                weights.take(key("bias_hh", number), size),
            )
        )
    return layers


def hidden_size_of(weights: Weights, name: str) -> int:
    """H of a ``weight_hh`` ``[G*H, H]``.

    Raises:
        ImportingError: it is missing or no matrix.
    """
    shape = weights.shape(name)
    if len(shape) != 2:
        raise ImportingError(f"{weights.file}: {name} has shape {list(shape)}, but is no matrix")
    return shape[1]


def build_translator(parts: Translator) -> Seq2Seq:
    """The model, in float32 and evaluation mode.

    Raises:
        ImportingError: the parts do not fit together.
    """
    hidden_size, directions = parts.decoder[0][1].shape[1], 2 if parts.encoder_backward else 1
    encoder_size = directions * parts.encoder[0][1].shape[1]
    sizes = parts.source_embedding.shape[1], parts.target_embedding.shape[1]
    try:
        config = Seq2SeqConfig(
            source_vocabulary_size=len(parts.source_embedding),
            target_vocabulary_size=len(parts.target_embedding),
            cell=parts.cell,
            embedding_size=max(sizes),
            hidden_size=hidden_size,
            encoder_layers=len(parts.encoder),
            decoder_layers=len(parts.decoder),
            bidirectional_encoder=directions == 2,
            decoder="input_feeding",
            attention="dot" if parts.scores.vector is None else "additive",
            encoder_hidden_size=encoder_size,
            initial_state=parts.initial_state,
            attentional_tanh=parts.attentional_tanh,
            reads_source_eos=parts.reads_source_eos,
        )
    except ValueError as error:
        raise ImportingError(f"the parts do not fit together: {error}") from error
    model = Seq2Seq(config).eval()
    try:
        model.load_state_dict(_state(parts, config))
    except RuntimeError as error:
        raise ImportingError(f"the parts do not fit together: {error}") from error
    return model


def _state(parts: Translator, config: Seq2SeqConfig) -> dict[str, Tensor]:
    """The model's parameters by name."""
    width = config.embedding_size
    decoder = list(parts.decoder)
    decoder[0] = (
        _widen_decoder_input(decoder[0][0], parts.target_embedding.shape[1], config),
        *decoder[0][1:],
    )
    state = {
        "encoder.embedding.weight": _widen(parts.source_embedding, width),
        "decoder.embedding.weight": _widen(parts.target_embedding, width),
        "decoder.combine.weight": parts.combine[0],
        "decoder.combine.bias": parts.combine[1],
        "decoder.output_layer.weight": parts.output[0],
        "decoder.output_layer.bias": parts.output[1],
    }
    for prefix, layers in (
        ("encoder.stack.forward_cells", _widen_first(parts.encoder, width)),
        ("encoder.stack.backward_cells", _widen_first(parts.encoder_backward, width)),
        ("decoder.stack.forward_cells", decoder),
    ):
        for number, layer in enumerate(layers):
            for name, parameter in zip(PARAMETERS, layer, strict=True):
                state[f"{prefix}.{number}.{name}"] = parameter
    attention = _attention(parts.scores, config)
    state |= {f"decoder.attention.{name}": tensor for name, tensor in attention.items()}
    state |= {f"decoder.bridge.{name}": tensor for name, tensor in parts.bridge.items()}
    return state


def _attention(scores: Scores, config: Seq2SeqConfig) -> dict[str, Tensor]:
    size = config.hidden_size
    query = torch.eye(size) if scores.query is None else scores.query
    key = torch.eye(size, config.encoder_size) if scores.key is None else scores.key
    if scores.vector is None:
        return {
            "query_projection.weight": query * math.sqrt(size),
            "key_projection.weight": key,
        }
    bias = torch.zeros(size) if scores.query_bias is None else scores.query_bias
    return {
        "query_projection.weight": query,
        "query_projection.bias": bias,
        "key_projection.weight": key,
        "score.weight": scores.vector,
    }


def _widen(matrix: Tensor, width: int) -> Tensor:
    """Zeros behind the columns: ``[R, C]`` to ``[R, width]``."""
    return functional.pad(matrix, (0, width - matrix.shape[1]))


def _widen_first(layers: Sequence[Layer], width: int) -> list[Layer]:
    return [
        layer if number else (_widen(layer[0], width), *layer[1:])
        for number, layer in enumerate(layers)
    ]


def _widen_decoder_input(weight: Tensor, embedding_size: int, config: Seq2SeqConfig) -> Tensor:
    """Zeros where the input has nothing: ``[G*H, D (+ H)]`` to ``[G*H, width + H]``."""
    embedded, fed = weight[:, :embedding_size], weight[:, embedding_size:]
    return torch.cat([_widen(embedded, config.embedding_size), _widen(fed, config.hidden_size)], 1)
