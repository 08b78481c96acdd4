"""The peers' decoding loop gives the same translations as the plain one."""

import pytest
import torch

from benchmarks.peers.decoding import SPARE_TOKENS, decode_beam, decode_greedy, length_limits
from models.config import Seq2SeqConfig
from models.decoding.params import DecodingParams, collect_hypotheses
from models.decoding.reference import decode_reference
from models.seq2seq import Seq2Seq
from models.tokenizers import EOS_ID

PROMPTS = [[*range(4, 4 + length), EOS_ID] for length in (0, 3, 1, 6, 2)]


def make_model(decoder: str) -> Seq2Seq:
    torch.manual_seed(1)
    config = Seq2SeqConfig.model_validate(
        {
            "source_vocabulary_size": 13,
            "target_vocabulary_size": 13,
            "embedding_size": 8,
            "hidden_size": 10,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "decoder": decoder,
        }
    )
    model = Seq2Seq(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from uniform, so that sentences end at different lengths
        model.get_parameter("decoder.output_layer.bias")[EOS_ID] += 1.0
    return model


def reference(model: Seq2Seq, prompt: list[int], beam_size: int) -> list[int]:
    params = DecodingParams(max_new_tokens=3 * len(prompt) + SPARE_TOKENS, beam_size=beam_size)
    steps = decode_reference(model, prompt, params)
    emissions = [emission for step in steps for emission in step]
    return list(collect_hypotheses(emissions, params.length_penalty)[0].token_ids)


@pytest.mark.parametrize("decoder", ["parallel_attention", "attention", "context"])
def test_a_batch_decoded_greedily_equals_each_sentence_alone(decoder: str) -> None:
    model = make_model(decoder)
    rows = decode_greedy(model, PROMPTS)
    assert rows == [reference(model, prompt, 1) for prompt in PROMPTS]
    assert len({len(row) for row in rows}) > 1


@pytest.mark.parametrize("beam_size", [2, 4])
@pytest.mark.parametrize("decoder", ["parallel_attention", "attention", "context"])
def test_a_batch_of_beams_equals_each_sentence_alone(decoder: str, beam_size: int) -> None:
    model = make_model(decoder)
    rows = decode_beam(model, PROMPTS, beam_size)
    assert rows == [reference(model, prompt, beam_size) for prompt in PROMPTS]


def test_the_length_limit_is_that_of_translate() -> None:
    # Three tokens for each of the source's and sixteen more, as docs/api.md says.
    assert length_limits([[5, 6, EOS_ID], [EOS_ID]]).tolist() == [25, 19]
