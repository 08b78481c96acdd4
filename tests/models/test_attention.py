import dataclasses
import math

import pytest
import torch
from torch import Tensor

from models.attention import ATTENTIONS, AdditiveAttention, Attention, DotAttention
from models.state import AttentionMemory, RowLayout, join_memories

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


@pytest.mark.parametrize("kind", ATTENTIONS.values())
def test_rows_that_share_a_source_attend_as_with_one_each(kind: type[Attention]) -> None:
    """Two rows at source 0, none at source 1, three at source 2: as beams share theirs."""
    attention = kind(QUERY, VALUE, SIZE)
    mask = torch.arange(SOURCE) < torch.tensor([[6], [1], [4]])
    memory = attention.memory(torch.randn(ROWS, SOURCE, VALUE), mask)
    queries, sources = torch.randn(5, QUERY), torch.tensor([0, 0, 2, 2, 2])
    layout = RowLayout(width=3, cells=torch.tensor([0, 1, 6, 7, 8]), lines=ROWS)
    context, weights = attention.attend(queries, dataclasses.replace(memory, layout=layout))
    alone, alone_weights = attention.attend(queries, memory.select(sources))
    torch.testing.assert_close(context, alone)
    torch.testing.assert_close(weights, alone_weights)
    # All sources with as many rows each need no cells.
    full = dataclasses.replace(memory, layout=RowLayout(width=2))
    queries, sources = torch.randn(6, QUERY), torch.arange(ROWS).repeat_interleave(2)
    for part, alone_part in zip(
        attention.attend(queries, full),
        attention.attend(queries, memory.select(sources)),
        strict=True,
    ):
        torch.testing.assert_close(part, alone_part)


@pytest.mark.parametrize("kind", ATTENTIONS.values())
def test_rows_at_sources_of_several_sizes_attend_as_among_their_own(kind: type[Attention]) -> None:
    attention = kind(QUERY, VALUE, SIZE)
    memories = [
        dataclasses.replace(
            attention.memory(torch.randn(2, size, VALUE), torch.ones(2, size, dtype=torch.bool)),
            layout=layout,
        )
        for size, layout in [(3, RowLayout(2)), (6, RowLayout(2, torch.tensor([0, 2, 3]), 2))]
    ]
    queries = torch.randn(7, QUERY)
    context, weights = attention.attend(queries, join_memories(memories) or memories[0])
    for rows, memory in zip((slice(0, 4), slice(4, 7)), memories, strict=True):
        expected, expected_weights = attention.attend(queries[rows], memory)
        size = memory.mask.shape[1]
        torch.testing.assert_close(context[rows], expected)
        torch.testing.assert_close(weights[rows, :size], expected_weights)
        assert not weights[rows, size:].any()


def memory_of(keys: Tensor) -> AttentionMemory:
    return AttentionMemory(keys, keys, torch.ones(keys.shape[:2], dtype=torch.bool))


def test_additive_scores_by_hand() -> None:
    attention = AdditiveAttention(1, 1, 1)
    with torch.no_grad():
        attention.score.weight.fill_(2.0)
        scores = attention.scores(
            torch.tensor([[[0.5]]]), memory_of(torch.tensor([[[0.25], [-0.5]]]))
        )
    assert scores[0, 0].tolist() == pytest.approx([2 * math.tanh(0.75), 0.0])


def test_dot_scores_by_hand() -> None:
    keys = memory_of(torch.full((1, 1, 4), 3.0))
    scores = DotAttention(4, 4, 4).scores(torch.ones(1, 1, 4), keys)
    assert scores.item() == pytest.approx(12 / 2)
