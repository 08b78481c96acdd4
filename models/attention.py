"""Attention scoring functions.

Shape legend: ``N`` rows, ``T`` queries a row, ``S`` source positions, ``Q`` query size, ``E``
size of an encoder output, ``A`` attention size. All tensors are floating point but the masks.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from models.state import AttentionMemory


class Attention(nn.Module, ABC):
    """A scoring function with its projections of queries and keys.

    Args:
        query_size: Q.
        value_size: E.
        attention_size: A.
    """

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__()
        self.query_projection = nn.Linear(query_size, attention_size, bias=False)
        self.key_projection = nn.Linear(value_size, attention_size, bias=False)

    def memory(self, values: Tensor, mask: Tensor) -> AttentionMemory:
        """Prepare encoder outputs ``[N, S, E]`` with their bool mask ``[N, S]`` once."""
        return AttentionMemory(keys=self.key_projection(values), values=values, mask=mask)

    @abstractmethod
    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Projected queries ``[N, T, A]`` against keys ``[N, S, A]``: ``[N, T, S]``."""

    def forward(self, queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            queries: ``[N, T, Q]``.
            memory: the sources, one a row.

        Returns:
            The context vectors ``[N, T, E]`` and the weights ``[N, T, S]``, which are 0 at
            padded source positions and sum to 1.
        """
        scores = self.scores(self.query_projection(queries), memory.keys)
        scores = scores.float().masked_fill(~memory.mask[:, None], float("-inf"))
        weights = torch.softmax(scores, dim=-1).to(memory.values.dtype)
        return torch.matmul(weights, memory.values), weights


class AdditiveAttention(Attention):
    """v^T tanh(W_q q + W_k k): Bahdanau et al. 2015, appendix A.1.2."""

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__(query_size, value_size, attention_size)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """See :meth:`Attention.scores`."""
        features = torch.tanh(queries[:, :, None] + keys[:, None])
        scores: Tensor = self.score(features)
        return scores.squeeze(-1)


class DotAttention(Attention):
    """(W_q q) . (W_k k) / sqrt(A): Luong et al. 2015 ("general"), scaled as Vaswani et al. 2017."""

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """See :meth:`Attention.scores`."""
        return torch.matmul(queries, keys.transpose(1, 2)) / math.sqrt(keys.shape[-1])


ATTENTIONS: dict[Literal["additive", "dot"], type[Attention]] = {
    "additive": AdditiveAttention,
    "dot": DotAttention,
}
