"""What a served model computes in."""

from typing import Any, get_args

import pytest
import torch

from models.config import CellName
from models.decoding.corpus import decode_corpus
from models.decoding.params import DecodingParams
from models.encoder_decoder import read_at_once
from models.precision import Precision, choose_precision, keep_float32_exact, set_precision
from models.quantization import Int8Linear
from tests.models.decoding.toy_models import FORMS, make_model

TOLERANCES: dict[Precision, float] = {
    "float32": 0.0,
    "bfloat16": 0.05,
    "float16": 0.005,
    "int8": 0.02,
}
PROMPTS = [[5, 6, 7, 9, 2], [8, 2]]


def test_every_precision_has_a_tolerance() -> None:
    assert set(TOLERANCES) == set(get_args(Precision))


def test_a_processor_chooses_int8_and_refuses_float16_by_name() -> None:
    device = torch.device("cpu")
    assert choose_precision("auto", device) == "int8"
    assert choose_precision("bfloat16", device) == "bfloat16"
    with pytest.raises(ValueError, match="precision float16 was asked for on cpu, but"):
        choose_precision("float16", device)
    with pytest.raises(ValueError, match="there is no precision int4: choose float32,"):
        choose_precision("int4", device)


def test_float32_is_kept_exact() -> None:
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = True
        keep_float32_exact()
        assert [backend.allow_tf32 for backend in backends] == [False, False]
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


@torch.inference_mode()
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("form", FORMS)
def test_a_step_is_near_to_float32_and_its_logits_are_float32(
    form: str, precision: Precision
) -> None:
    plain = make_model(form, "gru", 29, sharpness=1)
    model = set_precision(make_model(form, "gru", 29, sharpness=1), precision)
    expected = plain.step(*read_at_once(plain, PROMPTS)).logits
    logits = model.step(*read_at_once(model, PROMPTS)).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, atol=TOLERANCES[precision], rtol=0)
    assert (precision == "float32") == torch.equal(logits, expected)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_floats_are_stored_as_they_are_computed(precision: Precision) -> None:
    model = make_model("parallel additive", "lstm", 29)
    assert set_precision(model, precision) is model
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{precision}"}


def test_int8_stores_integers_but_for_embeddings_and_biases() -> None:
    model = make_model("dot", "lstm", 29)
    assert set_precision(model, "int8") is model
    assert {"encoder.embedding.weight", "decoder.embedding.weight"} & {
        name for name, _ in model.named_parameters()
    }
    assert all(p.dim() == 1 or "embedding" in name for name, p in model.named_parameters())
    assert isinstance(model.get_submodule("decoder.output_layer"), Int8Linear)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_every_precision_decodes(form: str, cell: CellName, precision: Precision) -> None:
    model = set_precision(make_model(form, cell, 29), precision)
    for params in (
        DecodingParams(5, temperature=0.8, top_k=9, top_p=0.9, num_outputs=2),
        DecodingParams(5, beam_size=3, num_outputs=2, return_attention=True),
    ):
        found = dict(decode_corpus(model, [*PROMPTS, [4] * 20], params))
        assert sorted(found) == [0, 1, 2]
        for outputs in found.values():
            assert len(outputs) == 2
            for token in outputs[0].tokens:
                assert 3 < token.token < 29 or token.token == 2
                if token.attention is not None:
                    assert sum(token.attention) == pytest.approx(1.0, abs=0.02)
