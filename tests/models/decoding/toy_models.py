"""Small models for decoding: one of fixed probabilities, and real ones with random weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.config import CellName, Implementation, LanguageModelConfig, Seq2SeqConfig
from models.encoder_decoder import Reading, StepOutput
from models.language_model import LanguageModel
from models.seq2seq import Seq2Seq
from models.state import DecodeState

SOURCE_VOCABULARY_SIZE = 23


class TableModel:
    """A first-order Markov chain: the logits of the next token are a row of a table.

    Args:
        table: ``[V, V]``.
    """

    continues_prompt = True

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.vocabulary_size = self.prompt_vocabulary_size = table.shape[1]

    def read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        yield from ()
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
            source_vocabulary_size=SOURCE_VOCABULARY_SIZE,
            target_vocabulary_size=vocabulary_size,
            embedding_size=12,
            hidden_size=30,
            decoder_layers=2,
        )
    )
    _sharpen(model)
    return model.eval()


FORMS: dict[str, dict[str, Any]] = {
    "one-hot": {"num_layers": 2},
    "embedded": {"num_layers": 2, "embedding_size": 13},
    "context": {"decoder": "context"},
    "additive": {"decoder": "attention", "attention": "additive"},
    "dot": {"decoder": "attention", "attention": "dot", "tie_embeddings": True},
    "parallel additive": {"decoder": "parallel_attention", "attention": "additive"},
    "parallel dot": {"decoder": "parallel_attention", "attention": "dot"},
    "feeding additive": {"decoder": "input_feeding", "attention": "additive"},
    "feeding dot": {
        "decoder": "input_feeding",
        "attention": "dot",
        "encoder_hidden_size": 22,
        "initial_state": "top_bridge",
        "reads_source_eos": False,
    },
    "feeding joint": {
        "decoder": "input_feeding",
        "attention": "additive",
        "initial_state": "joint_bridge",
        "attentional_tanh": False,
    },
}
"""Every form of model that generates; those with a decoder translate."""


def make_model(
    form: str,
    cell: CellName,
    vocabulary_size: int,
    *,
    hidden_size: int = 30,
    sharpness: float = 4,
    implementation: Implementation = "equations",
) -> LanguageModel | Seq2Seq:
    """A model of one of the :data:`FORMS` with random weights, odd sizes throughout.

    Args:
        form: its name.
        cell: which cell.
        vocabulary_size: V, of what is generated.
        hidden_size: of a bidirectional encoder, each direction has half of it.
        sharpness: factor of the weights: large ones give outputs that are far from uniform.
        implementation: who computes whole sequences.
    """
    torch.manual_seed(0)
    values = {
        "cell": cell,
        "implementation": implementation,
        "hidden_size": hidden_size,
        **FORMS[form],
    }
    model: LanguageModel | Seq2Seq
    if "decoder" not in values:
        model = LanguageModel(LanguageModelConfig(vocabulary_size=vocabulary_size, **values))
    else:
        tied = "tie_embeddings" in values
        model = Seq2Seq(
            Seq2SeqConfig(
                source_vocabulary_size=vocabulary_size if tied else SOURCE_VOCABULARY_SIZE,
                target_vocabulary_size=vocabulary_size,
                embedding_size=13,
                encoder_layers=2,
                decoder_layers=2,
                **values,
            )
        )
    _sharpen(model, sharpness)
    return model.eval()


def _sharpen(model: torch.nn.Module, factor: float = 4) -> None:
    """Larger weights, so that the outputs are far from uniform and depend on the past."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
