"""Models of OpenNMT-py, imported: the same numbers come out."""

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.training.importing.translators import (
    SOURCE_WORDS,
    TARGET_WORDS,
    Teach,
    assert_same_translator,
    sharpen,
)
from training.importing.cli import main

SPECIALS = ["<unk>", "<blank>", "<s>", "</s>"]
VOCABULARIES = {"src": [*SPECIALS, *SOURCE_WORDS], "tgt": [*SPECIALS, *TARGET_WORDS]}
SIZE, SOURCE_SIZE, TARGET_SIZE = 6, 5, 4


def options(**values: object) -> argparse.Namespace:
    """As OpenNMT-py 3 saves them: those that the model depends on."""
    return argparse.Namespace(
        **{
            "model_task": "seq2seq",
            "encoder_type": "brnn",
            "decoder_type": "rnn",
            "rnn_type": "LSTM",
            "enc_layers": 2,
            "dec_layers": 2,
            "enc_hid_size": SIZE,
            "dec_hid_size": SIZE,
            "src_word_vec_size": SOURCE_SIZE,
            "tgt_word_vec_size": TARGET_SIZE,
            "input_feed": 1,
            "bridge": False,
            "global_attention": "general",
            "global_attention_function": "softmax",
            "coverage_attn": False,
            "context_gate": None,
            "copy_attn": False,
            "position_encoding": False,
            "transforms": ["filtertoolong"],
            **values,
        }
    )


# ---------------------------------------------------------------- the equations, said again


class Embeddings(nn.Module):
    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        table = nn.ModuleList([nn.Embedding(count, size)])
        self.make_embedding = nn.ModuleDict({"emb_luts": table})
        self._table = [table[0]]

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[T]`` to ``[T, D]``."""
        return cast(Tensor, self._table[0](tokens))


class Encoder(nn.Module):
    """``RNNEncoder``: its final states go through relu(W s + b) where there is a bridge."""

    def __init__(self, opt: argparse.Namespace) -> None:
        super().__init__()
        both = opt.encoder_type == "brnn"
        size = SIZE // 2 if both else SIZE
        self.embeddings = Embeddings(len(VOCABULARIES["src"]), SOURCE_SIZE)
        self.rnn = getattr(nn, opt.rnn_type)(SOURCE_SIZE, size, opt.enc_layers, bidirectional=both)
        if opt.bridge:
            total = size * opt.enc_layers
            parts = 2 if opt.rnn_type == "LSTM" else 1
            self.bridge = nn.ModuleList(nn.Linear(total, total) for _ in range(parts))

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Tokens ``[S]`` to outputs ``[S, E]`` and the parts of the state ``[L, E]``."""
        outputs, final = self.rnn(self.embeddings(tokens))
        parts = list(final) if isinstance(final, tuple) else [final]
        if hasattr(self, "bridge"):
            for index, part in enumerate(parts):
                linear = self.bridge[index]
                rows = part.reshape(-1, linear.in_features)
                parts[index] = torch.relu(linear(rows)).reshape(part.shape)
        if self.rnn.bidirectional:
            parts = [torch.cat([part[0::2], part[1::2]], 1) for part in parts]
        return outputs, parts


class GlobalAttention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "general":
            self.linear_in = nn.Linear(SIZE, SIZE, bias=False)
        elif kind == "mlp":
            self.linear_context = nn.Linear(SIZE, SIZE, bias=False)
            self.linear_query = nn.Linear(SIZE, SIZE)
            self.v = nn.Linear(SIZE, 1, bias=False)
        self.linear_out = nn.Linear(2 * SIZE, SIZE, bias=kind == "mlp")

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """Query ``[H]``, memory ``[S, H]`` to the attentional vector ``[H]``."""
        if self.kind == "mlp":
            inner = torch.tanh(self.linear_query(query) + self.linear_context(memory))
            scores = self.v(inner)[:, 0]
        else:
            scores = memory @ (self.linear_in(query) if self.kind == "general" else query)
        context = scores.softmax(0) @ memory
        joined = cast(Tensor, self.linear_out(torch.cat([context, query])))
        return joined if self.kind == "mlp" else joined.tanh()


class Decoder(nn.Module):
    """``InputFeedRNNDecoder`` or ``StdRNNDecoder``."""

    def __init__(self, opt: argparse.Namespace) -> None:
        super().__init__()
        self.feeds = bool(opt.input_feed)
        self.embeddings = Embeddings(len(VOCABULARIES["tgt"]), TARGET_SIZE)
        if self.feeds:
            kind = getattr(nn, f"{opt.rnn_type}Cell")
            self.rnn = nn.Module()
            self.rnn.layers = nn.ModuleList(
                kind(SIZE if layer else TARGET_SIZE + SIZE, SIZE) for layer in range(opt.dec_layers)
            )
        else:
            self.rnn = getattr(nn, opt.rnn_type)(TARGET_SIZE, SIZE, opt.dec_layers)
        self.attn = GlobalAttention(opt.global_attention)

    def forward(self, tokens: Tensor, memory: Tensor, parts: list[Tensor]) -> Tensor:
        """Tokens ``[T]`` to attentional vectors ``[T, H]``."""
        embedded = self.embeddings(tokens)
        if not self.feeds:
            state = [part[:, :].contiguous() for part in parts]
            outputs, _ = self.rnn(embedded, tuple(state) if len(state) > 1 else state[0])
            return torch.stack([self.attn(output, memory) for output in outputs])
        fed, vectors = torch.zeros(SIZE), []
        layers = cast(nn.ModuleList, self.rnn.layers)
        states = [tuple(part[layer] for part in parts) for layer in range(len(layers))]
        for inputs in embedded:
            below = torch.cat([inputs, fed])
            for number, layer in enumerate(layers):
                state = layer(below, states[number] if len(parts) > 1 else states[number][0])
                states[number] = state if len(parts) > 1 else (state,)
                below = states[number][0]
            fed = self.attn(below, memory)
            vectors.append(fed)
        return torch.stack(vectors)


class Restated(nn.Module):
    """``NMTModel`` with the same names of parameters."""

    def __init__(self, opt: argparse.Namespace) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(opt), Decoder(opt)
        self.generator = nn.Linear(SIZE, len(VOCABULARIES["tgt"]))

    def teach(self, source: Sequence[int], target: Sequence[int]) -> Tensor:
        memory, parts = self.encoder(torch.tensor(source))
        vectors = self.decoder(torch.tensor(target), memory, parts)
        return cast(Tensor, self.generator(vectors)).log_softmax(-1)


# ---------------------------------------------------------------- imported


def checkpoint(model: nn.Module, opt: argparse.Namespace, **entries: object) -> dict[str, Any]:
    """What OpenNMT-py's ``ModelSaver`` saves."""
    state = model.state_dict()
    names = [name for name in state if name.startswith("generator.")]
    generator = {name.removeprefix("generator."): state.pop(name) for name in names}
    vocabularies = {**VOCABULARIES, "data_task": "seq2seq", "decoder_start_token": "<s>"}
    saved = {"model": state, "generator": generator, "vocab": vocabularies, "opt": opt}
    return {**saved, "optim": {"training_step": 1}, **entries}


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Import a checkpoint: exit status and stderr."""

    def call(saved: dict[str, Any], *words: str) -> tuple[int, str]:
        file = tmp_path / "model_step_1.pt"
        torch.save(saved, file)
        arguments = ["opennmt", str(file), "--from", "en", "--to", "fr", "--name", "mine"]
        status = main([*arguments, "--out", str(tmp_path), *words], prog="import")
        return status, capsys.readouterr().err

    return call


FORMS: dict[str, dict[str, object]] = {
    "general": {},
    "dot, one direction": {"global_attention": "dot", "encoder_type": "rnn"},
    "mlp": {"global_attention": "mlp", "rnn_type": "GRU"},
    "bridge": {"bridge": True},
    "bridge of one direction": {"bridge": True, "encoder_type": "rnn", "rnn_type": "GRU"},
    "no input feeding": {"input_feed": 0},
    "no input feeding, gru": {"input_feed": 0, "rnn_type": "GRU", "enc_layers": 1, "dec_layers": 1},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_equations_give_the_same_probabilities(form: str, run: Run, tmp_path: Path) -> None:
    opt = options(**FORMS[form])
    model = sharpen(Restated(opt))
    assert run(checkpoint(model, opt)) == (0, "")
    teach = cast(Restated, model).teach
    assert_same_translator(tmp_path / "mine", teach, VOCABULARIES["src"], VOCABULARIES["tgt"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_the_original_gives_the_same_probabilities(form: str, run: Run, tmp_path: Path) -> None:
    builder = pytest.importorskip("onmt.model_builder", reason="OpenNMT-py is not installed")
    original, opt, teach = original_model(builder, FORMS[form])
    assert run(checkpoint(original, opt)) == (0, "")
    assert_same_translator(tmp_path / "mine", teach, VOCABULARIES["src"], VOCABULARIES["tgt"])


def original_model(
    builder: Any, values: dict[str, object]
) -> tuple[nn.Module, argparse.Namespace, Teach]:
    """A model that OpenNMT-py builds, and its teacher forcing."""
    parser = importlib.import_module("onmt.utils.parse").ArgumentParser()
    importlib.import_module("onmt.opts").train_opts(parser)
    words = ["-data", "{}", "-src_vocab", "none", "-save_model", "none", "-save_data", "none"]
    opt, _ = parser.parse_known_args(words)
    for name, value in {**vars(options()), **values}.items():
        setattr(opt, name, value)
    opt.brnn = opt.encoder_type == "brnn"
    inputter = importlib.import_module("onmt.inputters.inputter")
    vocabularies = inputter.dict_to_vocabs({**VOCABULARIES, "data_task": "seq2seq"})
    model: Any = sharpen(builder.build_base_model(opt, vocabularies))

    def teach(source: Sequence[int], target: Sequence[int]) -> Tensor:
        tokens = torch.tensor([[*target, 3]])[..., None]  # the last one is never an input
        outputs, _ = model(torch.tensor([source])[..., None], tokens, torch.tensor([len(source)]))
        return cast(Tensor, model.generator(outputs[0])).log_softmax(-1)

    return model, opt, teach


def test_weights_beside_the_checkpoint(run: Run, tmp_path: Path) -> None:
    opt = options()
    model = sharpen(Restated(opt))
    save_file(model.state_dict(), tmp_path / "model_step_1.safetensors")
    saved = checkpoint(model, opt)
    del saved["model"], saved["generator"]
    assert run(saved) == (0, "")
    teach = cast(Restated, model).teach
    assert_same_translator(tmp_path / "mine", teach, VOCABULARIES["src"], VOCABULARIES["tgt"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rnn_type": "SRU"}, "rnn_type is SRU, which Gatehouse does not compute (but LSTM or GRU"),
        ({"encoder_type": "transformer"}, "encoder_type is transformer"),
        ({"copy_attn": True}, "copy_attn is True"),
        ({"coverage_attn": True}, "coverage_attn is True"),
        ({"context_gate": "both"}, "context_gate is both"),
        ({"global_attention_function": "sparsemax"}, "global_attention_function is sparsemax"),
        ({"global_attention": "none"}, "global_attention is none"),
        ({"model_task": "lm"}, "model_task is lm"),
        ({"transforms": ["sentencepiece"]}, "the transforms sentencepiece cut or change"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(
    values: dict[str, object], sentence: str, run: Run
) -> None:
    model = Restated(options())
    status, err = run(checkpoint(model, options(**values)))
    assert (status, err.count("\n")) == (1, 1)
    assert sentence in err


def test_subwords_can_be_imported_as_they_are(run: Run) -> None:
    opt = options(transforms=["bpe"])
    assert run(checkpoint(Restated(opt), opt), "--pretokenized")[0] == 0


class Field:
    """An object, as torchtext's fields are."""


def test_damage_is_one_sentence(run: Run) -> None:
    opt = options()
    model = Restated(opt)
    whole = checkpoint(model, opt)
    short = {**whole["model"], "decoder.attn.linear_in.weight": torch.zeros(6, 5)}
    more = {**whole["model"], "decoder.attn.linear_cover.weight": torch.zeros(6, 1)}
    for changes, sentence in (
        ({"model": short}, "linear_in.weight has shape [6, 5], but [6, 6] is wanted"),
        ({"model": more}, "decoder.attn.linear_cover.weight [6, 1] would be left over"),
        ({"vocab": {"src": Field()}}, "tools/convertv2_v3.py"),
        ({"vocab": [("src", 3)]}, "is no checkpoint of OpenNMT-py 3"),
        ({"vocab": {**whole["vocab"], "src_feats": [["a"]]}}, "features beside words"),
    ):
        status, err = run({**whole, **changes})
        assert (status, err.count("\n")) == (1, 1)
        assert sentence in err
