import pytest
import torch

from models.config import LanguageModelConfig
from models.encoder_decoder import read_at_once
from models.language_model import LanguageModel, NotGenerativeError
from models.tokenizers import BOS_ID


def make_model(**values: object) -> LanguageModel:
    torch.manual_seed(0)
    config = {"vocabulary_size": 29, "hidden_size": 30, "num_layers": 2, **values}
    return LanguageModel(LanguageModelConfig.model_validate(config)).double().eval()


@pytest.mark.parametrize("cell", ["gru", "gru_textbook", "lstm", "rnn"])
@pytest.mark.parametrize("embedding_size", [None, 7])
def test_steps_equal_the_whole_sequence(cell: str, embedding_size: int | None) -> None:
    model = make_model(cell=cell, embedding_size=embedding_size, implementation="equations")
    tokens = torch.randint(4, 29, (3, 8))
    logits, final = model(tokens)
    assert logits.shape == (3, 8, 29)
    first, state = read_at_once(model, [[BOS_ID]] * 3)
    assert first.tolist() == [BOS_ID] * 3
    for position in range(8):
        output = model.step(tokens[:, position], state)
        state = output.state
        torch.testing.assert_close(output.logits, logits[:, position].float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(state.layers, final)


def test_prompts_of_different_lengths_equal_each_alone() -> None:
    model = make_model(embedding_size=7)
    prompts = [[BOS_ID], [BOS_ID, 5, 6, 7], [BOS_ID, 8]]
    tokens, state = read_at_once(model, prompts)
    assert tokens.tolist() == [BOS_ID, 7, 8]
    for row, prompt in enumerate(prompts):
        alone_tokens, alone = read_at_once(model, [prompt])
        assert alone_tokens.tolist() == [prompt[-1]]
        for layer, alone_layer in zip(state.layers, alone.layers, strict=True):
            torch.testing.assert_close(layer[0][row : row + 1], alone_layer[0])


def test_a_bidirectional_model_trains_but_does_not_generate() -> None:
    model = make_model(bidirectional=True)
    logits, state = model(torch.randint(4, 29, (3, 8)))
    assert logits.shape == (3, 8, 29)
    model(torch.randint(4, 29, (3, 8)), state)
    with pytest.raises(NotGenerativeError, match="future is not there"):
        read_at_once(model, [[BOS_ID]])


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="<bos>"):
        read_at_once(make_model(), [[BOS_ID], []])


def test_initialisation() -> None:
    normal = make_model(initializer="normal", hidden_size=200)
    weight = normal.stack.trained_cells()[0].weight_hh.detach()
    assert float(weight.std()) == pytest.approx(0.01, rel=0.05)
    assert not normal.output.bias.detach().any()
    biased = make_model(cell="lstm", gate_bias=1.0)
    for cell in biased.stack.trained_cells():
        assert (cell.bias_ih + cell.bias_hh)[30:60].tolist() == [1.0] * 30


def test_dropout_acts_in_training_only() -> None:
    model = make_model(dropout=0.5, embedding_size=7)
    tokens = torch.randint(4, 29, (3, 8))
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    model.train()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
