"""Samples of a run: outputs, attention, and its picture."""

from collections.abc import Sequence

import pytest
import torch

from models.config import Seq2SeqConfig
from models.encoder_decoder import read_at_once
from models.seq2seq import Seq2Seq
from models.tokenizers import EOS_ID
from training.samples import AttentionWeights, Sample, attention_weights, draw_attention

SOURCE, TARGET = [5, 9, 7, 11, EOS_ID], [6, 8, EOS_ID]


def _model(decoder: str) -> Seq2Seq:
    torch.manual_seed(4)
    config = Seq2SeqConfig.model_validate(
        {
            "source_vocabulary_size": 13,
            "target_vocabulary_size": 13,
            "embedding_size": 6,
            "hidden_size": 10,
            "decoder_layers": 2,
            "decoder": decoder,
        }
    )
    return Seq2Seq(config).eval()


def _attention(tokens: Sequence[str]) -> AttentionWeights:
    weights = torch.eye(len(tokens)).roll(1, 1)
    return AttentionWeights(tuple(tokens), tuple(tokens), weights)


@pytest.mark.parametrize("decoder", ["attention", "parallel_attention", "input_feeding"])
def test_the_weights_of_each_written_token_are_those_of_its_step(decoder: str) -> None:
    model = _model(decoder)
    weights = attention_weights(model, SOURCE, TARGET)
    assert weights is not None
    assert weights.shape == (3, 5)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    tokens, state = read_at_once(model, [SOURCE])
    first = model.step(tokens, state)
    second = model.step(torch.tensor([TARGET[0]]), first.state)
    for row, output in enumerate((first, second)):
        assert output.attention is not None
        torch.testing.assert_close(weights[row], output.attention[0, :5])


def test_a_model_without_attention_has_none() -> None:
    assert attention_weights(_model("context"), SOURCE, TARGET) is None


def test_a_picture_has_a_row_for_each_written_token_and_names_both_sides() -> None:
    samples = [
        Sample("a b", "a b", attention=_attention(["▁a", "▁$b$", "<eos>"])),
        Sample("no attention", "none"),
        Sample("c", "c", attention=_attention(["▁c", "<eos>"])),
    ]
    figure = draw_attention(samples)
    assert figure is not None
    one, other = figure.axes
    assert one.images[0].get_array().shape == (3, 3)  # type: ignore[union-attr]
    assert [label.get_text() for label in one.get_xticklabels()] == ["▁a", r"▁\$b\$", "<eos>"]
    assert [label.get_text() for label in other.get_yticklabels()] == ["▁c", "<eos>"]
    figure.canvas.draw()


def test_without_any_attention_there_is_no_picture() -> None:
    assert draw_attention([Sample("a", "b")]) is None
    assert draw_attention([]) is None
