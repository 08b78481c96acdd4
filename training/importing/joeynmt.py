"""Recurrent translation models of Joey NMT (Kreutzer et al. 2019), versions 1 and 2.

A model's folder holds ``config.yaml``, the vocabularies ``src_vocab.txt`` and ``trg_vocab.txt``
(one token a line, in the order of ids) and checkpoints. The names of tensors and options are those
of its ``encoders.py``, ``decoders.py``, ``attention.py`` and ``tokenizers.py``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy
import torch
from torch import Tensor

from models.config import CellName
from models.preparation import Preparation
from models.seq2seq import Seq2Seq
from models.tokenizers import CharacterTokenizer, WordTokenizer
from training.importing.translator import (
    Layer,
    Scores,
    Translator,
    build_translator,
    hidden_size_of,
    take_layers,
)
from training.importing.vocabulary import (
    Role,
    Vocabulary,
    make_table_tokenizer,
    read_vocabulary,
    reconcile,
)
from training.importing.weights import ImportingError, Weights, load_plainly, only_tensors

SIDES = ("src", "trg")
USUAL_SPECIALS: dict[Role, str] = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
SPACE_MARK = "▁"
"""U+2581, which character models write for a space."""


@dataclass(frozen=True)
class Side:
    """What the configuration says of one language.

    Attributes:
        language: its code.
        vocabulary: its tokens.
        tokenizer: which makes them.
    """

    language: str
    vocabulary: Vocabulary
    tokenizer: CharacterTokenizer | WordTokenizer


@dataclass(frozen=True)
class JoeyNMTFolder:
    """A model's folder, read but not understood yet.

    Attributes:
        weights: of the model.
        source: language of the source.
        target: language of the target.
        model: the configuration's ``model`` section.
    """

    weights: Weights
    source: Side
    target: Side
    model: Mapping[str, Any]


def read_joeynmt(folder: Path, file: Path) -> JoeyNMTFolder:
    """Read a folder and one of its checkpoints.

    Raises:
        ImportingError: something is missing, or a tokenizer cannot be represented.
        OSError: a file cannot be read.
    """
    config = _read_config(folder / "config.yaml")
    data, model = _section(config, "data"), _section(config, "model")
    # Training remembers its best score, which may be a number of numpy's.
    scalar = type(numpy.float64(0.0)).__reduce__(numpy.float64(0.0))[0]
    allowed = [scalar, (scalar, "numpy.core.multiarray.scalar"), numpy.dtype]
    allowed += [type(numpy.dtype("float64")), type(numpy.dtype("float32"))]
    content = load_plainly(file, allowed, "it is no checkpoint of JoeyNMT's")
    state = content.get("model_state") if isinstance(content, Mapping) else None
    source, target = (_read_side(folder, data, side) for side in SIDES)
    return JoeyNMTFolder(Weights(file, only_tensors(file, state)), source, target, model)


def _read_config(file: Path) -> Mapping[str, Any]:
    try:
        import yaml
    except ModuleNotFoundError:
        raise ImportingError("PyYAML is not installed: pip install pyyaml") from None
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ImportingError(f"{file}: not readable: {str(error).splitlines()[0]}") from error
    if not isinstance(config, Mapping):
        raise ImportingError(f"{file}: holds no sections")
    return _without_blanks(config)


def _without_blanks(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys that have a value: one that is left blank in YAML asks for nothing."""
    return {
        key: _without_blanks(value) if isinstance(value, Mapping) else value
        for key, value in section.items()
        if value is not None
    }


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    if not isinstance(found, Mapping):
        raise ImportingError(f"config.yaml: has no section {name}")
    return found


def _subsection(options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section that may be absent, and is empty then."""
    found = options.get(name, {})
    if not isinstance(found, Mapping):
        raise ImportingError(f"config.yaml: {name} is no section, but {found!r}")
    return found


def _read_side(folder: Path, data: Mapping[str, Any], side: str) -> Side:
    """One language: version 1 names it and has the options of both beside it."""
    found = data.get(side)
    options: Mapping[str, Any] = found if isinstance(found, Mapping) else {**data, "lang": found}
    level, kind = options.get("level", "word"), options.get("tokenizer_type")
    tokenizer_options = _subsection(options, "tokenizer_cfg")
    kind = kind or options.get("bpe_type") or tokenizer_options.get("tokenizer_type")
    where = f"{folder / 'config.yaml'}: {side}"
    if options.get("lang") is None:
        raise ImportingError(f"{where}: names no language")
    if level not in ("word", "char"):
        raise ImportingError(
            f"{where}: level is {level} ({kind or 'subwords'}), which Gatehouse cannot represent "
            "exactly (but word or char)"
        )
    if options.get("normalize") or tokenizer_options.get("pretokenizer") == "moses":
        raise ImportingError(
            f"{where}: its text is normalised or cut by Moses, which Gatehouse does not compute"
        )
    symbols = _subsection(data, "special_symbols")
    names = {role: str(symbols.get(f"{role}_token", name)) for role, name in USUAL_SPECIALS.items()}
    file = folder / f"{side}_vocab.txt"
    tokens = read_vocabulary(file)
    if level == "char":
        tokens = [" " if token == SPACE_MARK else token for token in tokens]
    vocabulary = reconcile(file, tokens, names)
    preparation: Preparation = "lower_case" if options.get("lowercase") else "none"
    kinds: dict[str, Literal["character", "word"]] = {"char": "character", "word": "word"}
    tokenizer = make_table_tokenizer(kinds[level], vocabulary, preparation)
    return Side(str(options["lang"]), vocabulary, tokenizer)


def build_from_joeynmt(folder: JoeyNMTFolder) -> Seq2Seq:
    """Build the model.

    Raises:
        ImportingError: an option is not known to Gatehouse, or a tensor does not fit.
    """
    weights, decoder_options = folder.weights, _section(folder.model, "decoder")
    encoder_options = _section(folder.model, "encoder")
    cell = _require_known_options(encoder_options, decoder_options)
    size = hidden_size_of(weights, "decoder.rnn.weight_hh_l0")
    half = hidden_size_of(weights, "encoder.rnn.weight_hh_l0")
    embeddings = [
        _embedding(weights, f"{side}_embed", vocabulary, options)
        for side, vocabulary, options in (
            ("src", folder.source.vocabulary, encoder_options),
            ("trg", folder.target.vocabulary, decoder_options),
        )
    ]

    def read_encoder(suffix: str) -> list[Layer]:
        return take_layers(
            weights,
            lambda name, layer: f"encoder.rnn.{name}_l{layer}{suffix}",
            cell,
            embeddings[0].shape[1],
            half,
            2 * half,
        )

    inputs = embeddings[1].shape[1] + (size if decoder_options.get("input_feeding", True) else 0)
    target = folder.target.vocabulary
    initial_state, bridge = _take_bridge(weights, decoder_options, size, 2 * half)
    parts = Translator(
        cell=cell,
        source_embedding=embeddings[0],
        target_embedding=embeddings[1],
        encoder=read_encoder(""),
        encoder_backward=read_encoder("_reverse"),
        decoder=take_layers(
            weights, lambda name, layer: f"decoder.rnn.{name}_l{layer}", cell, inputs, size
        ),
        scores=_take_scores(weights, decoder_options, size, 2 * half),
        combine=(
            weights.take("decoder.att_vector_layer.weight", size, size + 2 * half),
            weights.take("decoder.att_vector_layer.bias", size),
        ),
        output=target.outputs(
            weights.take("decoder.output_layer.weight", target.size, size),
            torch.zeros(target.size),
        ),
        initial_state=initial_state,
        bridge=bridge,
    )
    weights.require_all_used("Gatehouse knows JoeyNMT's recurrent encoders and decoders")
    return build_translator(parts)


def _require_known_options(encoder: Mapping[str, Any], decoder: Mapping[str, Any]) -> CellName:
    """The cell; refuse by name what Gatehouse does not compute."""
    allowed: Sequence[tuple[str, Mapping[str, Any], str, str, tuple[object, ...]]] = (
        ("encoder", encoder, "type", "recurrent", ("recurrent",)),
        ("decoder", decoder, "type", "transformer", ("recurrent",)),
        # JoeyNMT itself cannot run a recurrent encoder of one direction.
        ("encoder", encoder, "bidirectional", "True", (True, "True")),
        ("encoder", encoder, "rnn_type", "gru", ("gru", "lstm")),
        ("decoder", decoder, "rnn_type", "gru", (encoder.get("rnn_type", "gru"),)),
        ("decoder", decoder, "attention", "bahdanau", ("bahdanau", "luong")),
        ("decoder", decoder, "init_hidden", "bridge", ("bridge", "last", "zeros", "zero")),
        ("decoder", decoder, "activation", "tanh", ("tanh",)),
    )
    for section, options, name, usual, values in allowed:
        found = options.get(name, usual)
        if found not in values:
            known = " or ".join(str(value) for value in dict.fromkeys(map(str, values)))
            raise ImportingError(
                f"config.yaml: model.{section}.{name} is {found}, which Gatehouse does not "
                f"compute (but {known})"
            )
    return cast(CellName, encoder.get("rnn_type", "gru"))


def _embedding(
    weights: Weights, module: str, vocabulary: Vocabulary, options: Mapping[str, Any]
) -> Tensor:
    """``[V, D]`` in Gatehouse's order, with the scale that JoeyNMT multiplies it by."""
    name = f"{module}.lut.weight"
    size = weights.shape(name)[-1]
    matrix = weights.take(
        name, vocabulary.size, size, why=f"since {vocabulary.file} has {vocabulary.size} tokens"
    )
    is_scaled = _subsection(options, "embeddings").get("scale", False)
    scale = math.sqrt(size) if is_scaled else 1.0
    return vocabulary.embeddings(matrix * scale)


def _take_scores(
    weights: Weights, options: Mapping[str, Any], size: int, encoder_size: int
) -> Scores:
    prefix = "decoder.attention"
    key = weights.take(f"{prefix}.key_layer.weight", size, encoder_size)
    if options.get("attention", "bahdanau") == "luong":
        return Scores(key=key)
    return Scores(
        query=weights.take(f"{prefix}.query_layer.weight", size, size),
        key=key,
        vector=weights.take(f"{prefix}.energy_layer.weight", 1, size),
    )


def _take_bridge(
    weights: Weights, options: Mapping[str, Any], size: int, encoder_size: int
) -> tuple[Literal["top_bridge", "top"], dict[str, Tensor]]:
    """How the decoder begins; zeros are tanh of a bridge of zeros."""
    kind = options.get("init_hidden", "bridge")
    if kind == "last":
        return "top", {}
    weight, bias = torch.zeros(size, encoder_size), torch.zeros(size)
    if kind == "bridge":
        weight = weights.take("decoder.bridge_layer.weight", size, encoder_size)
        bias = weights.take("decoder.bridge_layer.bias", size)
    return "top_bridge", {"projection.weight": weight, "projection.bias": bias}
