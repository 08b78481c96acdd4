"""Small models for decoding: one of fixed probabilities, and real ones with random weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.config import LanguageModelConfig, Seq2SeqConfig
from models.encoder_decoder import StepOutput
from models.language_model import LanguageModel
from models.seq2seq import Seq2Seq
from models.state import DecodeState


class TableModel:
    """A first-order Markov chain: the logits of the next token are a row of a table.

    Args:
        table: ``[V, V]``.
    """

    continues_prompt = True

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.vocabulary_size = table.shape[1]

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DecodeState]:
        tokens = torch.tensor([prompt[-1] for prompt in prompts])
        return tokens, DecodeState(layers=((torch.zeros(len(prompts), 1),),))

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        return StepOutput(self.table[tokens], state)


def random_table(vocabulary_size: int, seed: int, spread: float = 2.0) -> TableModel:
    generator = torch.Generator().manual_seed(seed)
    return TableModel(spread * torch.randn(vocabulary_size, vocabulary_size, generator=generator))


def uniform_table(vocabulary_size: int) -> TableModel:
    """Every token is equally probable: nothing but ties."""
    return TableModel(torch.zeros(vocabulary_size, vocabulary_size))


def random_language_model(vocabulary_size: int = 29, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    model = LanguageModel(LanguageModelConfig(vocabulary_size=vocabulary_size, hidden_size=30))
    _sharpen(model)
    return model.eval()


def random_translation_model(vocabulary_size: int = 29, seed: int = 0) -> Seq2Seq:
    torch.manual_seed(seed)
    model = Seq2Seq(
        Seq2SeqConfig(
            source_vocabulary_size=23,
            target_vocabulary_size=vocabulary_size,
            embedding_size=12,
            hidden_size=30,
            decoder_layers=2,
        )
    )
    _sharpen(model)
    return model.eval()


def _sharpen(model: torch.nn.Module) -> None:
    """Larger weights, so that the outputs are far from uniform and depend on the past."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
