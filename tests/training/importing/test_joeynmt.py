"""Models of JoeyNMT, imported: the same numbers come out."""

import copy
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy
import pytest
import torch
import yaml
from torch import Tensor, nn

from models.checkpoint import read_checkpoint
from tests.training.importing.translators import (
    SOURCE_WORDS,
    TARGET_WORDS,
    Teach,
    assert_same_translator,
    sharpen,
)
from training.importing.cli import main

SPECIALS = ["<unk>", "<pad>", "<s>", "</s>"]
SOURCE, TARGET = [*SPECIALS, *SOURCE_WORDS], [*SPECIALS, *TARGET_WORDS]


def configuration(encoder: dict[str, Any], decoder: dict[str, Any]) -> dict[str, Any]:
    """A ``config.yaml`` of JoeyNMT 2."""
    return {
        "name": "tiny",
        "joeynmt_version": "2.3.0",
        "model_dir": "models/tiny",
        "data": {
            "src": {"lang": "en", "level": "word", "lowercase": False},
            "trg": {"lang": "fr", "level": "word", "lowercase": False},
            "special_symbols": {"unk_token": "<unk>", "unk_id": 0},
        },
        "model": {
            "encoder": {
                "type": "recurrent",
                "rnn_type": "gru",
                "hidden_size": 4,
                "num_layers": 2,
                "bidirectional": True,
                "embeddings": {"embedding_dim": 5},
                **encoder,
            },
            "decoder": {
                "type": "recurrent",
                "rnn_type": encoder.get("rnn_type", "gru"),
                "hidden_size": 6,
                "num_layers": 1,
                "embeddings": {"embedding_dim": 3},
                **decoder,
            },
        },
    }


# ---------------------------------------------------------------- the equations, said again


class Part(nn.Module):
    """A module with the given children, for their names."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


class Restated(nn.Module):
    """``RecurrentEncoder`` and ``RecurrentDecoder`` with the same names of parameters."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        enc, dec = config["encoder"], config["decoder"]
        self.options = dec
        kind = nn.GRU if dec["rnn_type"] == "gru" else nn.LSTM
        half, size = enc["hidden_size"], dec["hidden_size"]
        self.size = size
        inner, outer = enc["embeddings"], dec["embeddings"]
        self.scales = [o["embedding_dim"] ** 0.5 if o.get("scale") else 1 for o in (inner, outer)]
        self.src_embed = Part(lut=nn.Embedding(len(SOURCE), inner["embedding_dim"]))
        self.trg_embed = Part(lut=nn.Embedding(len(TARGET), outer["embedding_dim"]))
        self.encoder = Part(
            rnn=kind(inner["embedding_dim"], half, enc["num_layers"], bidirectional=True)
        )
        attention = Part(key_layer=nn.Linear(2 * half, size, bias=False))
        if dec.get("attention", "bahdanau") == "bahdanau":
            attention.add_module("query_layer", nn.Linear(size, size, bias=False))
            attention.add_module("energy_layer", nn.Linear(size, 1, bias=False))
        self.feeds = dec.get("input_feeding", True)
        width = outer["embedding_dim"] + (size if self.feeds else 0)
        self.decoder = Part(
            rnn=kind(width, size, dec["num_layers"]),
            att_vector_layer=nn.Linear(size + 2 * half, size),
            output_layer=nn.Linear(size, len(TARGET), bias=False),
            attention=attention,
        )
        if dec.get("init_hidden", "bridge") == "bridge":
            self.decoder.add_module("bridge_layer", nn.Linear(2 * half, size))

    def teach(self, source: Sequence[int], target: Sequence[int]) -> Tensor:
        """JoeyNMT puts ``</s>`` behind a source."""
        embedded = self.src_embed.lut(torch.tensor([*source, 3])) * self.scales[0]
        memory, final = self.encoder.rnn(embedded)
        hidden = (final[0] if isinstance(final, tuple) else final)[-2:].reshape(-1)
        first = self._first(hidden)[None].repeat(self.decoder.rnn.num_layers, 1)
        state = (first, first) if isinstance(self.decoder.rnn, nn.LSTM) else first
        fed, vectors = torch.zeros(self.size), []
        for inputs in self.trg_embed.lut(torch.tensor(target)) * self.scales[1]:
            joined = torch.cat([inputs, fed]) if self.feeds else inputs
            outputs, state = self.decoder.rnn(joined[None], state)
            query = outputs[0]
            context = self._scores(query, memory).softmax(0) @ memory
            fed = self.decoder.att_vector_layer(torch.cat([query, context])).tanh()
            vectors.append(fed)
        return cast(Tensor, self.decoder.output_layer(torch.stack(vectors))).log_softmax(-1)

    def _first(self, hidden: Tensor) -> Tensor:
        kind = self.options.get("init_hidden", "bridge")
        if kind == "bridge":
            return cast(Tensor, self.decoder.bridge_layer(hidden)).tanh()
        return hidden[: self.size] if kind == "last" else torch.zeros(self.size)

    def _scores(self, query: Tensor, memory: Tensor) -> Tensor:
        attention = self.decoder.attention
        keys = attention.key_layer(memory)
        if self.options.get("attention") == "luong":
            return cast(Tensor, keys @ query)
        inner = torch.tanh(attention.query_layer(query) + keys)
        return cast(Tensor, attention.energy_layer(inner))[:, 0]


# ---------------------------------------------------------------- imported

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Import a folder: exit status and stderr."""

    def call(
        config: dict[str, Any],
        state: dict[str, Tensor],
        source: Sequence[str] = SOURCE,
        target: Sequence[str] = TARGET,
    ) -> tuple[int, str]:
        folder = tmp_path / "joey"
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "src_vocab.txt").write_text("\n".join(source) + "\n")
        (folder / "trg_vocab.txt").write_text("\n".join(target) + "\n")
        score = {"steps": 3, "best_ckpt_score": numpy.float64(1.5)}
        torch.save({"model_state": state, "stats_state": score}, folder / "best.ckpt")
        words = ["joeynmt", str(folder), "--name", "mine", "--out", str(tmp_path)]
        status = main(words, prog="import")
        return status, capsys.readouterr().err

    return call


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bahdanau": ({}, {}),
    "luong": ({}, {"attention": "luong", "num_layers": 2}),
    "lstm": ({"rnn_type": "lstm"}, {"num_layers": 2}),
    "last": ({"rnn_type": "lstm", "hidden_size": 6}, {"init_hidden": "last"}),
    "last, half as wide": ({"hidden_size": 3}, {"init_hidden": "last", "num_layers": 2}),
    "zeros": ({}, {"init_hidden": "zeros"}),
    "no input feeding": ({}, {"input_feeding": False, "attention": "luong"}),
    "scaled embeddings": (
        {"embeddings": {"embedding_dim": 5, "scale": True}},
        {"embeddings": {"embedding_dim": 3, "scale": True}},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_equations_give_the_same_probabilities(form: str, run: Run, tmp_path: Path) -> None:
    config = configuration(*FORMS[form])
    model = sharpen(Restated(config["model"]))
    assert run(config, model.state_dict()) == (0, "")
    assert_same_translator(tmp_path / "mine", cast(Restated, model).teach, SOURCE, TARGET)
    languages = read_checkpoint(tmp_path / "mine").languages
    assert languages is not None
    assert (languages.source, languages.target) == ("en", "fr")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_the_original_gives_the_same_probabilities(form: str, run: Run, tmp_path: Path) -> None:
    joeynmt = pytest.importorskip("joeynmt.model", reason="JoeyNMT is not installed")
    config = configuration(*FORMS[form])
    model, teach = original_model(joeynmt, config)
    assert run(config, model.state_dict())[0] == 0  # its logger writes to stderr
    assert_same_translator(tmp_path / "mine", teach, SOURCE, TARGET)


def original_model(joeynmt: Any, config: dict[str, Any]) -> tuple[nn.Module, Teach]:
    """A model that JoeyNMT builds, and its teacher forcing."""
    check = importlib.import_module("joeynmt.config")._check_special_symbols
    vocabulary = importlib.import_module("joeynmt.vocabulary").Vocabulary
    symbols = SimpleNamespace(**check({}))
    vocabularies = [vocabulary(words, symbols) for words in (SOURCE_WORDS, TARGET_WORDS)]
    model = sharpen(joeynmt.build_model(copy.deepcopy(config["model"]), *vocabularies))

    def teach(source: Sequence[int], target: Sequence[int]) -> Tensor:
        tokens = torch.tensor([[*source, 3]])
        mask = torch.ones(1, 1, tokens.shape[1], dtype=torch.bool)
        memory, final, _, _ = model(
            return_type="encode",
            src=tokens,
            src_length=torch.tensor([tokens.shape[1]]),
            src_mask=mask,
        )
        inputs = torch.tensor([list(target)])
        outputs, _, _, _ = model(
            return_type="decode",
            trg_input=inputs,
            encoder_output=memory,
            encoder_hidden=final,
            src_mask=mask,
            unroll_steps=inputs.shape[1],
            trg_mask=None,
        )
        return cast(Tensor, outputs[0]).log_softmax(-1)

    return model, teach


def test_characters_and_lower_case(run: Run, tmp_path: Path) -> None:
    config = configuration({}, {})
    for side in ("src", "trg"):
        config["data"][side] |= {"level": "char", "lowercase": True}
    source, target = ([*SPECIALS, "▁", *letters] for letters in ("abcdef", "uvwxyzst"))
    state = Restated(config["model"]).state_dict()
    assert run(config, state, source, target) == (0, "")
    tokenizer = read_checkpoint(tmp_path / "mine").tokenizers["source"]
    assert tokenizer.decode(tokenizer.encode("Ab F")) == "ab f"


def test_a_configuration_of_version_1(run: Run, tmp_path: Path) -> None:
    config = configuration({}, {})
    config["data"] = {"src": "de", "trg": "en", "level": "word", "lowercase": False}
    assert run(config, Restated(config["model"]).state_dict()) == (0, "")
    languages = read_checkpoint(tmp_path / "mine").languages
    assert languages is not None
    assert (languages.source, languages.target) == ("de", "en")


@pytest.mark.parametrize(
    ("side", "options", "sentence"),
    [
        ("src", {"level": "bpe", "tokenizer_type": "subword-nmt"}, "level is bpe (subword-nmt)"),
        ("trg", {"level": "bpe", "tokenizer_type": "sentencepiece"}, "level is bpe (sentencepiece"),
        ("src", {"normalize": True}, "normalised or cut by Moses"),
        ("encoder", {"type": "transformer"}, "model.encoder.type is transformer"),
        ("encoder", {"bidirectional": False}, "model.encoder.bidirectional is False"),
        ("decoder", {"type": "transformer"}, "model.decoder.type is transformer"),
        ("decoder", {"rnn_type": "lstm"}, "model.decoder.rnn_type is lstm"),
        ("decoder", {"attention": "dot"}, "model.decoder.attention is dot"),
        ("decoder", {"activation": "relu"}, "model.decoder.activation is relu"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(
    side: str, options: dict[str, Any], sentence: str, run: Run
) -> None:
    config = configuration({}, {})
    state = Restated(config["model"]).state_dict()
    section = config["model"] if side in config["model"] else config["data"]
    section[side] |= options
    status, err = run(config, state)
    assert (status, err.count("\n")) == (1, 1)
    assert sentence in err


def test_blank_keys_are_as_if_absent(run: Run) -> None:
    config = configuration({}, {"attention": None, "embeddings": None})
    state = Restated(configuration({}, {})["model"]).state_dict()
    config["data"]["special_symbols"] = None
    config["data"]["src"] |= {"tokenizer_cfg": None, "lowercase": None, "level": None}
    config["data"]["trg"] |= {"tokenizer_cfg": {"pretokenizer": None}}
    assert run(config, state) == (0, "")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"src": {"lang": None}}, "src: names no language"),
        ({"src": None}, "src: names no language"),
        ({"trg": {"lang": "fr", "tokenizer_cfg": "moses"}}, "tokenizer_cfg is no section"),
        ({"special_symbols": ["<unk>"]}, "special_symbols is no section"),
    ],
)
def test_a_configuration_with_holes_is_one_sentence(
    change: dict[str, Any], sentence: str, run: Run
) -> None:
    config = configuration({}, {})
    config["data"] |= change
    status, err = run(config, Restated(config["model"]).state_dict())
    assert (status, err.count("\n")) == (1, 1)
    assert sentence in err
    embeddings = configuration({"embeddings": 3}, {})
    state = Restated(configuration({}, {})["model"]).state_dict()
    assert "embeddings is no section" in run(embeddings, state)[1]


def test_damage_is_one_sentence(run: Run, tmp_path: Path) -> None:
    config = configuration({}, {})
    state = Restated(config["model"]).state_dict()
    status, err = run(config, {**state, "decoder.more": torch.zeros(2)})
    assert (status, "decoder.more [2] would be left over" in err) == (1, True)
    status, err = run(config, state, source=SOURCE[:-1])
    assert status == 1
    assert "src_embed.lut.weight has shape [11, 5], but [10, 5] is wanted, since" in err
    (tmp_path / "joey" / "best.ckpt").unlink()
    assert main(["joeynmt", str(tmp_path / "joey"), "--name", "mine", "--out", str(tmp_path)]) == 1
    (tmp_path / "joey" / "config.yaml").write_text("a: [")
    assert main(["joeynmt", str(tmp_path / "joey"), "--name", "mine", "--out", str(tmp_path)]) == 1
