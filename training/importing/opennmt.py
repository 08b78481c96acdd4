"""Recurrent translation models of OpenNMT-py (Klein et al. 2017), version 3.

Encoders ``rnn`` and ``brnn`` (LSTM or GRU, with or without a bridge) and the decoder ``rnn`` with
and without input feeding, with the attentions ``general``, ``dot`` and ``mlp``. The names of
tensors and options are those of its ``model_builder.py``, ``decoders/decoder.py`` and
``modules/global_attention.py``.

A checkpoint holds ``model``, ``generator``, ``vocab`` and ``opt``, an ``argparse.Namespace``, which
is a plain container of names and values and is the only class that is let through.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.config import CellName
from models.seq2seq import Seq2Seq
from training.importing.translator import (
    Layer,
    Scores,
    Translator,
    build_translator,
    hidden_size_of,
    take_layers,
)
from training.importing.vocabulary import Role, Vocabulary, reconcile
from training.importing.weights import (
    ImportingError,
    Weights,
    load_plainly,
    load_safetensors,
    only_tensors,
)

EMBEDDING = "embeddings.make_embedding.emb_luts.0.weight"
HARMLESS_TRANSFORMS = frozenset({"filtertoolong", "clean", "tokendrop", "tokenmask", "switchout"})
"""Those that change training data only: translating, text goes in and comes out as it is."""

PICKLE_ADVICE = (
    "checkpoints of OpenNMT-py 1 and 2 keep their vocabularies as such objects: convert it to "
    "version 3 with OpenNMT-py's tools/convertv2_v3.py"
)
LEFT_OVER_ADVICE = "Gatehouse knows OpenNMT-py's recurrent encoders and decoders with attention"


@dataclass(frozen=True)
class OpenNMTCheckpoint:
    """A checkpoint, read but not understood yet.

    Attributes:
        weights: of the model, those of the generator behind ``generator.``.
        source: vocabulary of the source.
        target: vocabulary of the target.
        options: it was trained with.
    """

    weights: Weights
    source: Vocabulary
    target: Vocabulary
    options: Mapping[str, Any]


def read_opennmt(file: Path) -> OpenNMTCheckpoint:
    """Read a ``.pt`` file, and the ``.safetensors`` file beside it if the weights are there.

    Raises:
        ImportingError: it is no checkpoint of OpenNMT-py 3.
        OSError: it cannot be read.
    """
    content = load_plainly(file, [argparse.Namespace], PICKLE_ADVICE)
    entries = content if isinstance(content, Mapping) else {}
    vocabularies, opt = entries.get("vocab"), entries.get("opt")
    if not isinstance(vocabularies, Mapping) or not isinstance(opt, argparse.Namespace):
        raise ImportingError(f"{file}: is no checkpoint of OpenNMT-py 3: it has no vocab and opt")
    if "model" in entries:
        tensors = only_tensors(file, entries["model"])
        generator = only_tensors(file, entries.get("generator"))
        # Version 2 calls them 0.weight and 0.bias.
        tensors |= {f"generator.{n.removeprefix('0.')}": t for n, t in generator.items()}
    else:
        tensors = load_safetensors(file.with_suffix(".safetensors"))
    options = vars(opt)
    if vocabularies.get("src_feats"):
        raise ImportingError(f"{file}: its source has features beside words, which Gatehouse lacks")
    start = str(vocabularies.get("decoder_start_token") or "<s>")
    source, target = (_vocabulary(file, vocabularies.get(side), start) for side in ("src", "tgt"))
    return OpenNMTCheckpoint(Weights(file, tensors), source, target, options)


def _vocabulary(file: Path, tokens: object, start: str) -> Vocabulary:
    if not isinstance(tokens, Sequence) or not all(isinstance(token, str) for token in tokens):
        raise ImportingError(f"{file}: {PICKLE_ADVICE}")
    names: dict[Role, str] = {"pad": "<blank>", "bos": start, "eos": "</s>", "unk": "<unk>"}
    return reconcile(file, tokens, {role: name for role, name in names.items() if name in tokens})


def build_from_opennmt(checkpoint: OpenNMTCheckpoint) -> Seq2Seq:
    """Build the model.

    Raises:
        ImportingError: an option is not known to Gatehouse, or a tensor does not fit.
    """
    weights, options = checkpoint.weights, checkpoint.options
    _require_known_options(weights.file, options)
    cell: CellName = "lstm" if str(options.get("rnn_type")).upper() == "LSTM" else "gru"
    sizes = {side: weights.shape(f"{side}.{EMBEDDING}")[-1] for side in ("encoder", "decoder")}
    encoder, backward, decoder = _take_stacks(weights, cell, sizes)
    size, half = decoder[0][1].shape[1], encoder[0][1].shape[1]
    source, target = checkpoint.source, checkpoint.target
    scores, combine, has_tanh = _take_attention(weights, size)
    bridge = _take_bridge(weights, cell, half * len(encoder), bool(backward))
    parts = Translator(
        cell=cell,
        source_embedding=source.embeddings(
            weights.take(f"encoder.{EMBEDDING}", source.size, sizes["encoder"])
        ),
        target_embedding=target.embeddings(
            weights.take(f"decoder.{EMBEDDING}", target.size, sizes["decoder"])
        ),
        encoder=encoder,
        encoder_backward=backward,
        decoder=decoder,
        scores=scores,
        combine=combine,
        output=target.outputs(
            weights.take("generator.weight", target.size, size),
            weights.take("generator.bias", target.size),
        ),
        initial_state="joint_bridge" if bridge else "encoder",
        bridge=bridge,
        attentional_tanh=has_tanh,
        reads_source_eos=False,
    )
    weights.require_all_used(LEFT_OVER_ADVICE)
    return build_translator(parts)


def _require_known_options(file: Path, options: Mapping[str, Any]) -> None:
    """Refuse by name what changes the equations and what Gatehouse does not compute."""
    allowed: dict[str, tuple[object, ...]] = {
        "model_task": ("seq2seq", None),
        "encoder_type": ("rnn", "brnn", None),
        "decoder_type": ("rnn", None),
        "rnn_type": ("LSTM", "GRU"),
        "global_attention": ("general", "dot", "mlp", None),
        "global_attention_function": ("softmax", None),
        "coverage_attn": (False, None),
        "context_gate": (None,),
        "copy_attn": (False, None),
        "position_encoding": (False, None),
    }
    for name, values in allowed.items():
        found = options.get(name)
        if found not in values:
            known = " or ".join(str(value) for value in values if value is not None) or "none"
            raise ImportingError(
                f"{file}: {name} is {found}, which Gatehouse does not compute (but {known})"
            )


def _take_stacks(
    weights: Weights, cell: CellName, sizes: Mapping[str, int]
) -> tuple[list[Layer], list[Layer], list[Layer]]:
    """Layers of the encoder, its backward direction and the decoder, of these embedding sizes."""
    fed = "decoder.rnn.layers.0.weight_hh" in weights
    recurrent = "decoder.rnn.layers.0.weight_hh" if fed else "decoder.rnn.weight_hh_l0"
    size = hidden_size_of(weights, recurrent)
    both = "encoder.rnn.weight_ih_l0_reverse" in weights
    half = size // 2 if both else size

    def read_encoder(suffix: str) -> list[Layer]:
        return take_layers(
            weights,
            lambda name, layer: f"encoder.rnn.{name}_l{layer}{suffix}",
            cell,
            sizes["encoder"],
            half,
            size,
        )

    def decoder_key(name: str, layer: int) -> str:
        return f"decoder.rnn.layers.{layer}.{name}" if fed else f"decoder.rnn.{name}_l{layer}"

    inputs = sizes["decoder"] + (size if fed else 0)
    return (
        read_encoder(""),
        read_encoder("_reverse") if both else [],
        take_layers(weights, decoder_key, cell, inputs, size),
    )


def _take_attention(weights: Weights, size: int) -> tuple[Scores, tuple[Tensor, Tensor], bool]:
    """The scores, the layer of the attentional vector, and whether it has a tanh.

    OpenNMT-py joins [context; hidden], Luong et al. (and Gatehouse) [hidden; context].
    """
    prefix = "decoder.attn"
    joined = weights.take(f"{prefix}.linear_out.weight", size, 2 * size)
    weight = torch.cat([joined[:, size:], joined[:, :size]], dim=1)
    if f"{prefix}.linear_context.weight" not in weights:
        query = None
        if f"{prefix}.linear_in.weight" in weights:
            query = weights.take(f"{prefix}.linear_in.weight", size, size)
        return Scores(query=query), (weight, torch.zeros(size)), True
    scores = Scores(
        query=weights.take(f"{prefix}.linear_query.weight", size, size),
        query_bias=weights.take(f"{prefix}.linear_query.bias", size),
        key=weights.take(f"{prefix}.linear_context.weight", size, size),
        vector=weights.take(f"{prefix}.v.weight", 1, size),
    )
    return scores, (weight, weights.take(f"{prefix}.linear_out.bias", size)), False


def _take_bridge(
    weights: Weights, cell: CellName, size: int, is_bidirectional: bool
) -> dict[str, Tensor]:
    """The bridge's projections; none without one.

    A bidirectional encoder's states, all layers and directions in a row, are cut in two halves,
    and each goes through the same matrix: a block-diagonal one over all of them.
    """
    bridge: dict[str, Tensor] = {}
    if "encoder.bridge.0.weight" in weights:
        for part in range(2 if cell == "lstm" else 1):
            weight = weights.take(f"encoder.bridge.{part}.weight", size, size)
            bias = weights.take(f"encoder.bridge.{part}.bias", size)
            if is_bidirectional:
                zeros = torch.zeros_like(weight)
                rows = [torch.cat([weight, zeros], 1), torch.cat([zeros, weight], 1)]
                weight, bias = torch.cat(rows), bias.repeat(2)
            bridge[f"projections.{part}.weight"], bridge[f"projections.{part}.bias"] = weight, bias
    return bridge


def require_plain_text(file: Path, options: Mapping[str, Any]) -> None:
    """Refuse a model whose transforms cut or change the text before it.

    Raises:
        ImportingError: naming the transforms.
    """
    found = [str(name) for name in options.get("transforms") or options.get("_all_transform") or ()]
    changing = sorted(set(found) - HARMLESS_TRANSFORMS)
    if changing:
        raise ImportingError(
            f"{file}: was trained on text that the transforms {', '.join(changing)} cut or change, "
            "which Gatehouse does not compute: give --pretokenized, and let the service's clients "
            "send and receive its tokens with spaces between them"
        )
