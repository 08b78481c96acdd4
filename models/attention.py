"""Attention scoring functions.

Shape legend: ``N`` rows, ``B`` sources, ``T`` queries a source, ``S`` source positions, ``Q``
query size, ``E`` size of an encoder output, ``A`` attention size. All tensors are floating point
but the masks.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.state import AttentionMemory


class Attention(nn.Module, ABC):
    """A scoring function with its projections of queries and keys.

    Args:
        query_size: Q.
        value_size: E.
        attention_size: A.
        query_bias: whether a bias is added to the projected query.
    """

    def __init__(
        self, query_size: int, value_size: int, attention_size: int, *, query_bias: bool = False
    ) -> None:
        super().__init__()
        self.query_projection = nn.Linear(query_size, attention_size, bias=query_bias)
        self.key_projection = nn.Linear(value_size, attention_size, bias=False)

    def memory(self, values: Tensor, mask: Tensor) -> AttentionMemory:
        """Prepare encoder outputs ``[B, S, E]`` with their bool mask ``[B, S]`` once."""
        return AttentionMemory(keys=self.key_projection(values), values=values, mask=mask)

    @abstractmethod
    def weigh(self, queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """Projected queries ``[B, T, A]`` to what :meth:`forward` returns."""

    def forward(self, queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """Attend from several positions of each source's target.

        Args:
            queries: ``[B, T, Q]``.
            memory: B sources.

        Returns:
            The context vectors ``[B, T, E]`` and the weights ``[B, T, S]``, which are 0 at
            padded source positions and sum to 1.
        """
        return self.weigh(self.query_projection(queries), memory)

    def attend(self, queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """Attend from one position of each row, to the source that the memory's layout says.

        Args:
            queries: ``[N, Q]``.
            memory: the sources of the N rows.

        Returns:
            The context vectors ``[N, E]`` and the weights ``[N, S]``.
        """
        return self.answer(self.query_projection(queries), memory)

    def answer(self, projected: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """:meth:`attend` for queries ``[N, A]`` that are projected already."""
        if memory.rest is None:
            return self._attend(projected, memory)
        contexts, weights, first = [], [], 0
        part: AttentionMemory | None = memory
        while part is not None:
            context, weight = self._attend(projected[first : first + part.rows], part)
            contexts.append(context)
            weights.append(weight)
            first, part = first + part.rows, part.rest
        size = max(weight.shape[1] for weight in weights)
        padded = [functional.pad(weight, (0, size - weight.shape[1])) for weight in weights]
        return torch.cat(contexts), torch.cat(padded)

    def _attend(self, projected: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        layout = memory.layout
        context, weights = self.weigh(layout.spread(projected), memory)
        return layout.gather(context), layout.gather(weights)


class ScoringAttention(Attention):
    """Scores first, and then what comes of them: in tensor operations, as they can be trained."""

    @abstractmethod
    def scores(self, queries: Tensor, memory: AttentionMemory) -> Tensor:
        """Projected queries ``[B, T, A]`` against the keys ``[B, S, A]``: ``[B, T, S]``."""

    def weigh(self, queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """See :meth:`Attention.weigh`."""
        scores = self.scores(queries, memory).float()
        scores = scores.masked_fill(~memory.mask[:, None], float("-inf"))
        weights = torch.softmax(scores, dim=-1).to(memory.values.dtype)
        return torch.matmul(weights, memory.values), weights


class AdditiveAttention(ScoringAttention):
    """v^T tanh(W_q q + W_k k): Bahdanau et al. 2015, appendix A.1.2."""

    def __init__(
        self, query_size: int, value_size: int, attention_size: int, *, query_bias: bool = False
    ) -> None:
        super().__init__(query_size, value_size, attention_size, query_bias=query_bias)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def scores(self, queries: Tensor, memory: AttentionMemory) -> Tensor:
        """See :meth:`ScoringAttention.scores`."""
        scores: Tensor = self.score(torch.tanh(queries[:, :, None] + memory.keys[:, None]))
        return scores.squeeze(-1)


class DotAttention(ScoringAttention):
    """(W_q q) . (W_k k) / sqrt(A): Luong et al. 2015 ("general"), scaled as Vaswani et al. 2017."""

    def scores(self, queries: Tensor, memory: AttentionMemory) -> Tensor:
        """See :meth:`ScoringAttention.scores`."""
        keys = memory.keys
        return torch.matmul(queries, keys.transpose(1, 2)) / math.sqrt(keys.shape[-1])


ATTENTIONS: dict[Literal["additive", "dot"], type[Attention]] = {
    "additive": AdditiveAttention,
    "dot": DotAttention,
}
