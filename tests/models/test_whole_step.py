"""A step in few kernels has the bits of the step of the modules."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from models.config import LanguageModelConfig, Seq2SeqConfig
from models.decoding.params import DecodingParams
from models.decoding.step import decode_corpus
from models.encoder_decoder import StepModel, StepOutput, read_at_once
from models.language_model import LanguageModel
from models.precision import set_precision
from models.quantization import quantize
from models.seq2seq import ParallelAttentionDecoder, Seq2Seq
from tests.models.teams import team_of

PROMPTS = [
    [5, 6, 7, 2],
    [8, 2],
    [9, 4] * 12 + [2],
    [7] * 40 + [2],
    *([4 + n, 5, 2] for n in range(14)),
]
FORMS: list[dict[str, Any]] = [
    {},
    {"decoder_layers": 3},
    {"attention": "additive", "tie_embeddings": True},
    {"bidirectional_encoder": False, "tie_embeddings": True, "hidden_size": 26},
]


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with team_of(request.param):
        yield


def make_model(form: dict[str, Any]) -> Seq2Seq:
    torch.manual_seed(0)
    settings = {
        "source_vocabulary_size": 29,
        "target_vocabulary_size": 29,
        "embedding_size": 12,
        "hidden_size": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "decoder": "parallel_attention",
        "attention": "dot",
        **form,
    }
    model = Seq2Seq(Seq2SeqConfig.model_validate(settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def both(form: dict[str, Any]) -> tuple[Seq2Seq, Seq2Seq]:
    """The model whose modules step, and the one with the whole step."""
    modules, whole = make_model(form), set_precision(make_model(form), "int8")
    quantize(modules)
    return modules, whole


def both_language_models(cell: str, **settings: object) -> tuple[LanguageModel, LanguageModel]:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        values = {"vocabulary_size": 29, "hidden_size": 30, "num_layers": 2, "cell": cell}
        config = LanguageModelConfig.model_validate({**values, **settings})
        models.append(LanguageModel(config).eval())
    modules, whole = models
    quantize(modules)
    return modules, set_precision(whole, "int8")


PAIRS: list[Callable[[], tuple[StepModel, StepModel]]] = [
    *(partial(both, form) for form in FORMS),
    partial(both_language_models, "gru"),
    partial(both_language_models, "gru", embedding_size=13, num_layers=1),
    partial(both_language_models, "lstm", num_layers=3),
    partial(both_language_models, "lstm", embedding_size=32, hidden_size=32),
]


def parts_of(output: StepOutput) -> list[torch.Tensor]:
    layers = [part for layer in output.state.layers for part in layer]
    attention = [] if output.attention is None else [output.attention]
    return [output.logits, *attention, *layers]


@pytest.mark.parametrize("make_both", PAIRS)
@torch.inference_mode()
def test_a_step_has_the_same_bits(make_both: Callable[[], tuple[StepModel, StepModel]]) -> None:
    modules, whole = make_both()
    tokens, expected = read_at_once(modules, PROMPTS)
    state = read_at_once(whole, PROMPTS)[1]
    for _ in range(3):
        one, other = modules.step(tokens, expected), whole.step(tokens, state)
        pairs = zip(parts_of(other), parts_of(one), strict=True)
        assert all(torch.equal(found, wanted) for found, wanted in pairs)
        tokens, expected, state = (tokens * 7 + 3) % 29, one.state, other.state


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("make_both", PAIRS)
def test_whole_decodings_are_the_same(
    make_both: Callable[[], tuple[StepModel, StepModel]], beam_size: int
) -> None:
    modules, whole = make_both()
    params = DecodingParams(11, beam_size=beam_size)
    assert dict(decode_corpus(whole, PROMPTS, params)) == dict(
        decode_corpus(modules, PROMPTS, params)
    )


@torch.inference_mode()
def test_a_step_leaves_the_state_before_it_alone() -> None:
    _, whole = both({})
    tokens, state = read_at_once(whole, PROMPTS)
    kept = [part.clone() for layer in state.layers for part in layer]
    whole.step(tokens, state)
    parts = (part for layer in state.layers for part in layer)
    assert all(torch.equal(part, before) for part, before in zip(parts, kept, strict=True))


@torch.inference_mode()
def test_who_makes_whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders of GRU cells with attention between them."""

    def refuse(*_: object) -> StepOutput:
        raise AssertionError

    _, whole = both({})
    decoder = whole.decoder
    assert isinstance(decoder, ParallelAttentionDecoder)
    assert decoder.whole_step is not None
    monkeypatch.setattr(decoder, "whole_step", refuse)
    tokens, state = read_at_once(whole, PROMPTS)
    with pytest.raises(AssertionError):
        whole.step(tokens, state)
    for form in ({"cell": "lstm"}, {"cell": "gru_textbook", "implementation": "equations"}):
        other = both(form)[1].decoder
        assert isinstance(other, ParallelAttentionDecoder)
        assert other.whole_step is None


@torch.inference_mode()
def test_which_language_models_make_whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of GRU and LSTM cells that generate text."""
    for cell in ("gru", "lstm"):
        _, whole = both_language_models(cell)
        tokens, state = read_at_once(whole, [[1, 5], [1]])
        expected = whole.step(tokens, state).logits
        monkeypatch.setattr(whole.stack, "step", None)
        assert torch.equal(whole.step(tokens, state).logits, expected)
    for cell, settings in (("rnn", {}), ("gru_textbook", {}), ("gru", {"bidirectional": True})):
        assert (
            both_language_models(cell, implementation="equations", **settings)[1].whole_step is None
        )
