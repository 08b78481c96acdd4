"""Models of plain torch layers, imported: the same numbers come out."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from models.checkpoint import read_checkpoint
from models.checkpoint_model import load_model
from models.encoder_decoder import read_at_once
from models.language_model import LanguageModel
from models.tokenizers import BOS_ID, Tokenizer
from training.importing.cli import main

TOKENS = ["<unk>", "e", " ", "a", "t", "\n", "o"]
TEXT = "tea to eat"


class TextbookModel(nn.Module):
    """The textbook's RNNModel: one-hot vectors of all tokens into a recurrent layer."""

    def __init__(self, layer: nn.RNNBase, size: int = len(TOKENS)) -> None:
        super().__init__()
        self.rnn = layer
        self.linear = nn.Linear(layer.hidden_size, size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[T]`` to logits ``[T, V]``."""
        inputs = functional.one_hot(tokens, self.linear.out_features).float()
        logits: Tensor = self.linear(self.rnn(inputs)[0])
        return logits


class EmbeddingModel(nn.Module):
    """The shape of PyTorch's example of word-level language modelling."""

    def __init__(self, layer: nn.RNNBase, size: int = len(TOKENS), *, tied: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Embedding(size, layer.input_size)
        self.lstm = layer
        self.decoder = nn.Linear(layer.hidden_size, size)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[T]`` to logits ``[T, V]``."""
        logits: Tensor = self.decoder(self.lstm(self.encoder(tokens))[0])
        return logits


Import = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Import:
    """Import a model, a state_dict or a file: exit status, stdout and stderr."""

    def call(
        source: nn.Module | dict[str, Any] | Path,
        *options: str,
        tokens: Sequence[str] = TOKENS,
        tokenizer: str = "character",
    ) -> tuple[int, str, str]:
        file = source if isinstance(source, Path) else tmp_path / "model.pt"
        if not isinstance(source, Path):
            torch.save(source if isinstance(source, dict) else source.state_dict(), file)
        vocabulary = tmp_path / "vocabulary.json"
        vocabulary.write_text(json.dumps(tokens))
        words = ["state-dict", str(file), "--vocabulary", str(vocabulary), "--tokenizer", tokenizer]
        words += ["--name", "mine", "--out", str(tmp_path), *options]
        status = main(words, prog="import")
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def load(tmp_path: Path) -> tuple[LanguageModel, Tokenizer]:
    info = read_checkpoint(tmp_path / "mine")
    model = load_model(info, torch.device("cpu"))
    assert isinstance(model, LanguageModel)
    return model, info.tokenizers["text"]


@torch.inference_mode()
def assert_same_outputs(
    original: nn.Module,
    tmp_path: Path,
    tokens: Sequence[str] = TOKENS,
    text: Sequence[str] = TEXT,
    before: Sequence[str] = (),
) -> None:
    """Every next token is as probable, read position by position as the service reads."""
    model, tokenizer = load(tmp_path)
    theirs = torch.tensor([tokens.index(token) for token in [*before, *text]])
    expected = original.eval()(theirs).log_softmax(-1)[len(before) :]
    ours = [tokenizer.token(index) for index in range(tokenizer.vocabulary_size)]
    columns = [ours.index(token) for token in tokens]
    encoded = tokenizer.encode(("" if tokenizer.kind == "character" else " ").join(text))
    for length in range(1, len(encoded) + 1):
        output = model.step(*read_at_once(model, [[BOS_ID, *encoded[:length]]]))
        logprobs = output.logits[0].log_softmax(-1)
        torch.testing.assert_close(
            logprobs[columns], expected[length - 1], atol=1e-5, rtol=1e-5, check_stride=False
        )
        assert float(logprobs.exp().sum()) == pytest.approx(1.0)


LAYERS: dict[str, Callable[[int], nn.RNNBase]] = {
    "gru": lambda size: nn.GRU(size, 6),
    "gru of 3 layers": lambda size: nn.GRU(size, 6, 3),
    "lstm of 2 layers": lambda size: nn.LSTM(size, 6, 2),
    "lstm without biases": lambda size: nn.LSTM(size, 6, bias=False),
    "rnn": lambda size: nn.RNN(size, 6, 2),
    "batch-first gru": lambda size: nn.GRU(size, 6, batch_first=True),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_one_hot_model_gives_the_same_probabilities(
    layer: str, run: Import, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = TextbookModel(LAYERS[layer](len(TOKENS)))
    status, out, err = run(model)
    assert (status, f"wrote {tmp_path / 'mine'}\n" in out) == (0, True)
    assert ("with tanh" in err) == (layer == "rnn")
    assert load(tmp_path)[0].embedding is None
    assert_same_outputs(model, tmp_path)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_model_with_an_embedding_gives_the_same_probabilities(
    layer: str, run: Import, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = EmbeddingModel(LAYERS[layer](4))
    assert run(model)[0] == 0
    assert_same_outputs(model, tmp_path)


def test_special_tokens_keep_their_rows_wherever_they_stand(run: Import, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = ["cold", "</s>", "<blank>", "I", "<s>", "am", "<unk>"]
    model = EmbeddingModel(nn.GRU(4, 6), len(tokens))
    assert run(model, tokens=tokens, tokenizer="word")[0] == 0
    gatehouse, tokenizer = load(tmp_path)
    assert gatehouse.config.reads_bos
    named = [tokenizer.token(index) for index in range(7)]
    assert named == ["<pad>", "<bos>", "<eos>", "<unk>", "cold", "I", "am"]
    theirs = [tokens.index(token) for token in ("<blank>", "<s>", "</s>", "<unk>")]
    expected = model(torch.tensor([4, 3, 6, 5])).log_softmax(-1)  # <s> I <unk> am
    output = gatehouse.step(*read_at_once(gatehouse, [[BOS_ID, *tokenizer.encode("I was am")]]))
    logprobs = output.logits[0].log_softmax(-1)
    torch.testing.assert_close(logprobs[:4], expected[-1][theirs], atol=1e-5, rtol=0)


def test_texts_may_begin_behind_a_token_of_theirs(run: Import, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for model in (EmbeddingModel(nn.GRU(4, 6)), TextbookModel(nn.LSTM(len(TOKENS), 6))):
        assert run(model, "--begin-with", "\n")[0] == 0
        assert_same_outputs(model, tmp_path, before=["\n"])
        for file in (tmp_path / "mine").iterdir():
            file.unlink()
        (tmp_path / "mine").rmdir()


def test_an_empty_text_can_be_continued(run: Import, tmp_path: Path) -> None:
    assert run(EmbeddingModel(nn.GRU(4, 6)))[0] == 0
    model, _ = load(tmp_path)
    assert not model.config.reads_bos
    together = model.step(*read_at_once(model, [[BOS_ID, 5], [BOS_ID]])).logits
    torch.testing.assert_close(together[1], model.step(*read_at_once(model, [[BOS_ID]])).logits[0])


def test_safetensors_with_one_matrix_for_both_ends(run: Import, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EmbeddingModel(nn.GRU(6, 6), tied=True)
    state = {k: v for k, v in model.state_dict().items() if k != "decoder.weight"}
    save_file(state, tmp_path / "model.safetensors")
    status, _, err = run(tmp_path / "model.safetensors")
    assert (status, "took encoder.weight for the output layer's matrix too" in err) == (0, True)
    assert_same_outputs(model, tmp_path)


def test_a_training_scripts_file_and_wrapped_names(run: Import, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TextbookModel(nn.GRU(len(TOKENS), 6))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    status, _, err = run({"epoch": 3, "model_state_dict": state, "optimizer": {"lr": 1.0}})
    assert status == 0
    assert "note: took model_state_dict and left epoch, optimizer out" in err
    assert_same_outputs(model, tmp_path)
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "left epoch, optimizer out" in card


def test_names_that_tell_nothing_are_mapped(run: Import, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EmbeddingModel(nn.GRU(6, 6))
    names = {"encoder": "a", "lstm": "b.c", "decoder": "d"}
    state = {}
    for name, tensor in model.state_dict().items():
        module, rest = name.split(".", 1)
        state[f"{names[module]}.{rest}"] = tensor
    bias = state.pop("d.bias")
    state |= {"d_bias": bias, "steps": torch.zeros(1)}
    status, _, err = run(state)
    assert (status, "a.weight and d.weight may both be the embedding" in err) == (1, True)
    options = ["--map", "d=output", "--map", "d_bias=output.bias"]
    status, _, err = run(state, *options)
    assert (status, "steps [1] would be left over" in err) == (1, True)
    assert run(state, *options, "--map", "steps=", "--map", "b.c=rnn")[0] == 0
    assert_same_outputs(model, tmp_path)


def change(**changes: Tensor | None) -> Callable[[], dict[str, Tensor]]:
    """The state of an EmbeddingModel with some tensors changed, or left out."""

    def make() -> dict[str, Tensor]:
        state = dict(EmbeddingModel(nn.GRU(4, 6)).state_dict())
        for name, tensor in changes.items():
            if tensor is None:
                del state[name]
            else:
                state[name] = tensor
        return state

    return make


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (change(**{"decoder.weight": torch.zeros(8, 6)}),
         "decoder.weight has shape [8, 6], but [7, 6] is wanted, since"),
        (change(**{"encoder.weight": torch.zeros(7, 5)}),
         "encoder.weight has shape [7, 5], but [7, 4] is wanted"),
        (change(**{"lstm.bias_ih_l0": torch.zeros(17)}),
         "lstm.bias_ih_l0 has shape [17], but [18] is wanted"),
        (change(**{"lstm.weight_hh_l0": torch.zeros(17, 6)}), "1, 3 or 4 blocks"),
        (change(**{"lstm.weight_hh_l0": None}), "lstm.weight_hh_l0 is missing"),
        (change(**{"lstm.weight_ih_l0": None}), "holds no weights of an nn.GRU, nn.LSTM or nn.RNN"),
        (change(**{"encoder.weight": None}), "has no embedding, and its recurrent module reads 4"),
        (change(**{"norm.weight": torch.ones(6)}), "norm.weight [6] would be left over"),
        (change(**{"lstm.bias_hh_l0": torch.full((18,), torch.nan)}), "values that are not finite"),
        (change(**{"lstm.bias_hh_l0": torch.zeros(18, dtype=torch.int8)}), "torch.int8"),
        (lambda: EmbeddingModel(nn.GRU(4, 6, bidirectional=True)).state_dict(), "reads backwards"),
        (lambda: EmbeddingModel(nn.LSTM(4, 6, proj_size=3)).state_dict(), "proj_size"),
        (lambda: {"encoder": 3}, "encoder is a int, where a state_dict has a tensor"),
        (dict, "holds no state_dict"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(
    make: Callable[[], dict[str, Any]], sentence: str, run: Import, tmp_path: Path
) -> None:
    status, out, err = run(dict(make()))
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert sentence in err
    assert err.startswith(f"import: {tmp_path / 'model.pt'}: ")
    assert not (tmp_path / "mine").exists()


def test_a_pickled_model_is_refused(run: Import, tmp_path: Path) -> None:
    torch.save(EmbeddingModel(nn.GRU(4, 6)), tmp_path / "whole.pt")
    status, _, err = run(tmp_path / "whole.pt")
    assert (status, err.count("\n")) == (1, 1)
    assert "never unpickles; save the state_dict alone" in err
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "torn.safetensors").write_bytes(b"nothing")
    for name in ("torn.pt", "torn.safetensors", "missing.pt"):
        status, _, err = run(tmp_path / name)
        assert (status, err.count("\n")) == (1, 1)
        assert f"import: {tmp_path / name}: " in err


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02.",  # nothing on the stack: IndexError
        b"\x80\x02}K\x01\x85b.",  # a state for a dict: AssertionError or like it
        b"\x80\x02]]K\x01s.",  # a list with a list for its index: TypeError
        b"\x80\x02h\x07.",  # a memo that was never written
    ],
)
def test_a_damaged_pickle_is_one_sentence(run: Import, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "torn.pt").write_bytes(content)
    status, out, err = run(tmp_path / "torn.pt")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"import: {tmp_path / 'torn.pt'}: " in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--map", "nothing=rnn"], "nothing is called nothing"),
        (["--map", "rnn"], "--map rnn: write it as"),
        (["--special", "eos=</p>"], "has no token '</p>' to be <eos>"),
        (["--special", "end=a"], "a role is one of pad, bos, eos, unk"),
        (["--special", "eos=a", "--special", "bos=a"], "one token cannot be two special ones"),
        (["--begin-with", "x"], "has no token 'x'"),
        (["--special", "bos=a", "--begin-with", "\n"], "has a <bos>, which texts begin with"),
        (["--name", "../mine"], "letters, digits, dots"),
        (["--tokenizer", "word"], "' ' is not a word"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_sentence(
    options: list[str], sentence: str, run: Import
) -> None:
    status, _, err = run(EmbeddingModel(nn.GRU(4, 6)), *options)
    assert (status, err.count("\n")) == (1, 1)
    assert sentence in err


def test_nothing_is_overwritten(run: Import) -> None:
    model = EmbeddingModel(nn.GRU(4, 6))
    assert run(model)[0] == 0
    status, _, err = run(model)
    assert (status, "is there already" in err) == (1, True)
