"""What the tests of imported translation models share: sentences, and the comparison."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoint import read_checkpoint
from models.checkpoint_model import load_model
from models.encoder_decoder import read_at_once
from models.seq2seq import Seq2Seq
from models.tokenizers import EOS_ID

SOURCE_WORDS = [f"s{index}" for index in range(7)]
TARGET_WORDS = [f"t{index}" for index in range(9)]
SENTENCES = ["s0 s1 s2 s3 s4", "s6", "s5 s5 s1"]
TRANSLATION = "t0 t8 t3 t3 t1 t7"

Teach = Callable[[Sequence[int], Sequence[int]], Tensor]
"""An original's teacher forcing: their source ids (as they are in their vocabulary, nothing
added) and the target's with ``<s>`` in front, to log-probabilities ``[T, V]``."""


def sharpen(model: nn.Module) -> nn.Module:
    """Random weights that are large enough for every path to show, biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


@torch.inference_mode()
def assert_same_translator(
    folder: Path,
    teach: Teach,
    source_ids: Sequence[str],
    target_ids: Sequence[str],
    *,
    bos: str = "<s>",
) -> Seq2Seq:
    """Every next token of a translation is as probable, step by step and with teacher forcing.

    Args:
        folder: the imported checkpoint.
        teach: the original.
        source_ids: their vocabulary.
        target_ids: their vocabulary.
        bos: what they call ``<bos>``.
    """
    info = read_checkpoint(folder)
    model = load_model(info, torch.device("cpu"))
    assert isinstance(model, Seq2Seq)
    source, target = info.tokenizers["source"], info.tokenizers["target"]
    ours = [target.token(index) for index in range(target.vocabulary_size)]
    names = {"<blank>": "<pad>", "<s>": "<bos>", "</s>": "<eos>"}
    columns = [ours.index(names.get(token, token)) for token in target_ids]
    for sentence in SENTENCES:
        expected = teach(
            [source_ids.index(word) for word in sentence.split()],
            [target_ids.index(word) for word in (bos, *TRANSLATION.split())],
        )
        tokens, state = read_at_once(model, [[*source.encode(sentence), EOS_ID]])
        for position, token in enumerate(target.encode(TRANSLATION)):
            output = model.step(tokens, state)
            logprobs = output.logits[0].log_softmax(-1)[columns]
            torch.testing.assert_close(logprobs, expected[position], atol=1e-5, rtol=1e-5)
            tokens, state = torch.tensor([token]), output.state
    return model
