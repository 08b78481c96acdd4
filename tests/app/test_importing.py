"""An imported model, served: the text is what the original would have written."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from app.cli import main

TOKENS = ["<unk>", *"abcdefgh "]


@torch.inference_mode()
def greedy(layer: nn.GRU, linear: nn.Linear, prompt: str, count: int) -> str:
    """The textbook's prediction: read the prompt, then feed each most probable character."""
    state, text = None, prompt
    inputs = [TOKENS.index(character) for character in prompt]
    for _ in range(count):
        one_hot = functional.one_hot(torch.tensor(inputs), len(TOKENS)).float()
        outputs, state = layer(one_hot, state)
        logits = linear(outputs[-1])
        logits[0] = -torch.inf  # Gatehouse never writes <unk>
        inputs = [int(logits.argmax())]
        text += TOKENS[inputs[0]]
    return text


def test_an_imported_model_writes_what_the_original_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer, linear = nn.GRU(len(TOKENS), 16), nn.Linear(16, len(TOKENS))
    for parameter in (*layer.parameters(), *linear.parameters()):
        parameter.data *= 4  # far from uniform
    state = {f"rnn.{name}": tensor for name, tensor in layer.state_dict().items()}
    state |= {f"linear.{name}": tensor for name, tensor in linear.state_dict().items()}
    torch.save(state, tmp_path / "rnn.pt")
    (tmp_path / "vocabulary.json").write_text(json.dumps(TOKENS))
    words = ["import", "state-dict", str(tmp_path / "rnn.pt"), "--tokenizer", "character"]
    words += ["--vocabulary", str(tmp_path / "vocabulary.json")]
    assert main([*words, "--name", "rnn", "--out", str(tmp_path / "models")]) == 0
    assert f"wrote {tmp_path / 'models' / 'rnn'}" in capsys.readouterr().out

    monkeypatch.setenv("GATEHOUSE_PRECISION", "float32")
    words = ["generate", "bad cab", "--temperature", "0", "--max-new-tokens", "20"]
    assert main([*words, "--checkpoints", str(tmp_path / "models")]) == 0
    assert capsys.readouterr().out == greedy(layer, linear, "bad cab", 20) + "\n"
