"""Translation models: teacher forcing, stepping and batching must agree in every form."""

from collections.abc import Iterator
from itertools import product

import pytest
import torch

from models.bridge import Bridge
from models.config import Seq2SeqConfig
from models.encoder_decoder import pad_tokens, read_at_once
from models.seq2seq import ContextDecoder, Seq2Seq, Seq2SeqEncoder
from models.tokenizers import BOS_ID, EOS_ID

SOURCES = [[5, 6, EOS_ID], [7, EOS_ID], [8, 9, 10, 11, 12, EOS_ID]]
DECODERS = ["context", "attention", "parallel_attention", "input_feeding"]


def make_config(**values: object) -> Seq2SeqConfig:
    return Seq2SeqConfig.model_validate(
        {
            "source_vocabulary_size": 29,
            "target_vocabulary_size": 29,
            "embedding_size": 12,
            "hidden_size": 30,
            "encoder_layers": 2,
            "decoder_layers": 2,
            **values,
        }
    )


def make_model(**values: object) -> Seq2Seq:
    torch.manual_seed(0)
    return Seq2Seq(make_config(**values)).double().eval()


def forms() -> Iterator[dict[str, object]]:
    for decoder, cell, bidirectional in product(DECODERS, ["gru", "lstm"], [True, False]):
        yield {"decoder": decoder, "cell": cell, "bidirectional_encoder": bidirectional}
    yield {"attention": "dot"}
    yield {"tie_embeddings": True}
    yield {"cell": "gru_textbook", "implementation": "equations"}
    yield {"encoder_layers": 1, "decoder_layers": 3}
    yield {"bidirectional_encoder": False, "encoder_layers": 3}
    yield {"decoder": "attention", "bidirectional_encoder": False}
    feeding: dict[str, object] = {"decoder": "input_feeding"}
    yield {**feeding, "attention": "dot", "encoder_hidden_size": 14}
    yield {**feeding, "initial_state": "encoder", "cell": "lstm", "tie_embeddings": True}
    yield {**feeding, "initial_state": "joint_bridge", "cell": "lstm", "encoder_hidden_size": 14}
    yield {**feeding, "initial_state": "top_bridge", "cell": "lstm", "encoder_layers": 3}
    yield {**feeding, "initial_state": "top", "encoder_hidden_size": 60, "encoder_layers": 1}
    yield {**feeding, "attentional_tanh": False}


@pytest.mark.parametrize("values", list(forms()), ids=str)
def test_steps_equal_teacher_forcing(values: dict[str, object]) -> None:
    model = make_model(**values)
    sources, lengths = pad_tokens(SOURCES, torch.device("cpu"))
    inputs = torch.randint(4, 29, (3, 7))
    inputs[:, 0] = BOS_ID
    logits = model(sources, lengths, inputs)
    assert logits.shape == (3, 7, 29)
    tokens, state = read_at_once(model, SOURCES)
    assert tokens.tolist() == [BOS_ID] * 3
    for position in range(7):
        output = model.step(inputs[:, position], state)
        state = output.state
        torch.testing.assert_close(output.logits, logits[:, position].float(), atol=1e-6, rtol=0)
        if output.attention is not None:
            assert output.attention.shape == (3, 6)
            torch.testing.assert_close(output.attention.sum(-1), torch.ones(3).double())
    assert (output.attention is None) == (model.config.decoder == "context")


@pytest.mark.parametrize("values", list(forms()), ids=str)
def test_every_form_trains_in_bfloat16(values: dict[str, object]) -> None:
    model = make_model(**values).float().train()
    sources, lengths = pad_tokens(SOURCES, torch.device("cpu"))
    inputs = torch.randint(4, 29, (3, 7))
    exact = model(sources, lengths, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(sources, lengths, inputs)
    torch.testing.assert_close(logits.float(), exact, atol=0.05, rtol=0.05)
    logits.float().logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("decoder", DECODERS)
def test_sources_in_a_batch_equal_each_alone(decoder: str) -> None:
    model = make_model(decoder=decoder)
    tokens, state = read_at_once(model, SOURCES)
    together = model.step(tokens, state).logits
    for row, source in enumerate(SOURCES):
        alone = model.step(*read_at_once(model, [source])).logits
        torch.testing.assert_close(together[row], alone[0], atol=1e-6, rtol=0)


def test_the_textbook_form_hands_the_state_over_as_it_is() -> None:
    model = make_model(decoder="context", bidirectional_encoder=False)
    sources, lengths = pad_tokens(SOURCES, torch.device("cpu"))
    encoded = model.encoder(sources, lengths)
    state = model.decoder.start(encoded)
    assert isinstance(model.decoder, ContextDecoder)
    assert model.decoder.bridge is None
    assert state.layers == encoded.final_state
    assert state.context is encoded.final_state[-1][0]


def test_the_context_reaches_every_step() -> None:
    model = make_model(decoder="context", bidirectional_encoder=False)
    tokens, state = read_at_once(model, SOURCES)
    assert state.context is not None
    other = type(state)(state.layers, context=torch.zeros_like(state.context))
    assert not torch.allclose(model.step(tokens, state).logits, model.step(tokens, other).logits)


def test_the_bridge_is_a_tanh_layer_for_each_part() -> None:
    config = make_config(decoder_layers=3, cell="lstm")
    bridge = Bridge(config, num_states=2)
    assert bridge.sources == [0, 1, 1]
    encoder = Seq2SeqEncoder(config)
    final = encoder(*pad_tokens(SOURCES, torch.device("cpu"))).final_state
    state = bridge(final)
    assert [len(layer) for layer in state] == [2, 2, 2]
    assert all(part.shape == (3, 30) and part.abs().max() <= 1 for layer in state for part in layer)


def test_encoder_outputs_are_masked() -> None:
    encoder = Seq2SeqEncoder(make_config()).eval()
    encoded = encoder(*pad_tokens(SOURCES, torch.device("cpu")))
    assert encoded.outputs.shape == (3, 6, 30)
    assert encoded.mask.sum(1).tolist() == [3, 2, 6]
    assert not encoded.outputs.masked_select(~encoded.mask[..., None]).any()


def test_tied_embeddings_are_one_matrix() -> None:
    model = make_model(tie_embeddings=True)
    untied = make_model()
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    shared = [name for name in names if model.get_parameter(name) is model.get_parameter(names[0])]
    assert shared == [
        "encoder.embedding.weight",
        "decoder.embedding.weight",
        "decoder.output_layer.weight",
    ]
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in untied.parameters())


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(ValueError, match="<eos>"):
        read_at_once(make_model(), [[5, EOS_ID], []])


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_parameter_learns(decoder: str) -> None:
    model = make_model(decoder=decoder).train()
    sources, lengths = pad_tokens(SOURCES, torch.device("cpu"))
    model(sources, lengths, torch.randint(4, 29, (3, 5))).sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # The context decoder never looks at the bottom layers' outputs, but every weight is on a path.
    assert silent == []


def test_the_attentional_vector_reaches_the_next_step() -> None:
    model = make_model(decoder="input_feeding")
    tokens, state = read_at_once(model, SOURCES)
    *layers, (fed,) = state.layers
    assert not fed.any()
    after = model.step(tokens, state).state
    assert after.layers[-1][0].shape == (3, 30)
    assert after.layers[-1][0].abs().max() <= 1
    other = type(state)((*layers, (fed + 0.1,)), memory=state.memory)
    assert not torch.allclose(model.step(tokens, state).logits, model.step(tokens, other).logits)


def test_a_model_that_never_saw_the_eos_of_a_source() -> None:
    values = {"decoder": "input_feeding", "encoder_layers": 1, "decoder_layers": 1}
    model, other = make_model(**values), make_model(**values, reads_source_eos=False)
    without = [source[:-1] for source in SOURCES]
    expected = model.step(*read_at_once(model, without))
    output = other.step(*read_at_once(other, SOURCES))
    torch.testing.assert_close(output.logits, expected.logits)
    assert output.attention is not None
    assert output.attention.shape == (3, 6)
    assert output.attention[2, -1] == 0
    assert other.step(*read_at_once(other, [[EOS_ID]])).logits.isfinite().all()
