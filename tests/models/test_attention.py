import math

import pytest
import torch

from models.attention import ATTENTIONS, AdditiveAttention, Attention, DotAttention

ROWS, QUERIES, SOURCE, QUERY, VALUE, SIZE = 3, 4, 6, 5, 7, 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ATTENTIONS.values())
def test_weights_sum_to_one_over_real_positions(kind: type[Attention]) -> None:
    attention = kind(QUERY, VALUE, SIZE)
    mask = torch.arange(SOURCE) < torch.tensor([[6], [1], [4]])
    values = torch.randn(ROWS, SOURCE, VALUE)
    memory = attention.memory(values, mask)
    assert memory.keys.shape == (ROWS, SOURCE, SIZE)
    context, weights = attention(torch.randn(ROWS, QUERIES, QUERY), memory)
    assert context.shape == (ROWS, QUERIES, VALUE)
    assert weights.shape == (ROWS, QUERIES, SOURCE)
    torch.testing.assert_close(weights.sum(-1), torch.ones(ROWS, QUERIES))
    assert not weights.masked_select(~mask[:, None]).any()
    torch.testing.assert_close(context, torch.einsum("nts,nse->nte", weights, values))
    # A source of one position leaves no choice.
    torch.testing.assert_close(context[1, 0], values[1, 0])


@pytest.mark.parametrize("kind", ATTENTIONS.values())
def test_padding_changes_nothing(kind: type[Attention]) -> None:
    attention = kind(QUERY, VALUE, SIZE)
    values, queries = torch.randn(1, 3, VALUE), torch.randn(1, QUERIES, QUERY)
    alone, _ = attention(queries, attention.memory(values, torch.ones(1, 3, dtype=torch.bool)))
    padded = torch.cat([values, torch.full((1, 2, VALUE), 1e3)], dim=1)
    mask = torch.tensor([[True, True, True, False, False]])
    context, _ = attention(queries, attention.memory(padded, mask))
    torch.testing.assert_close(context, alone)


def test_additive_scores_by_hand() -> None:
    attention = AdditiveAttention(1, 1, 1)
    with torch.no_grad():
        attention.score.weight.fill_(2.0)
        scores = attention.scores(torch.tensor([[[0.5]]]), torch.tensor([[[0.25], [-0.5]]]))
    assert scores[0, 0].tolist() == pytest.approx([2 * math.tanh(0.75), 0.0])


def test_dot_scores_by_hand() -> None:
    scores = DotAttention(4, 4, 4).scores(torch.ones(1, 1, 4), torch.full((1, 1, 4), 3.0))
    assert scores.item() == pytest.approx(12 / 2)
