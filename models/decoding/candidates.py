"""The best tokens of each row, without sorting the vocabulary.

One rule for ties everywhere: the higher score, then the lower token id. ``topk`` alone breaks
ties as it likes, and differently for each k.

Shape legend: ``N`` rows, ``V`` vocabulary size, ``K`` candidates, ``C`` blocks of tokens. Scores
are float32 without NaN.
"""

import torch
from torch import Tensor

_BLOCK = 64


def most_probable(scores: Tensor) -> Tensor:
    """The highest score's token, the lowest id among equals: ``[N, V]`` to ``[N]`` int64.

    The best block of tokens first, then the best token in it: several times as fast as one
    ``argmax`` over the vocabulary, which does return the first of equals.
    """
    count = scores.shape[1] // _BLOCK
    if count < 2:
        return scores.argmax(-1)
    blocks = _block_maxima(scores).argmax(-1)
    members = _members(blocks[:, None], scores.shape[1])
    best = scores.gather(1, members).argmax(-1, keepdim=True)
    return members.gather(1, best)[:, 0]


def top_candidates(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best tokens of each row, best first.

    An entry among the K best stands in one of the K best blocks: each better block holds
    something better.

    Args:
        scores: ``[N, V]``.
        count: K; at most V are returned.

    Returns:
        Their scores ``[N, K]`` and token ids ``[N, K]`` int64.
    """
    size = scores.shape[1]
    count = min(count, size)
    if size // _BLOCK < 2 * count:
        tokens = _top_keys(_sort_keys(scores), count)
        return scores.gather(1, tokens), tokens
    blocks = _top_keys(_sort_keys(_block_maxima(scores)), count)
    # In the order of tokens, so that an earlier place means a lower id.
    members = _members(blocks.sort(-1).values, size)
    places = _top_keys(_sort_keys(scores.gather(1, members)), count)
    tokens = members.gather(1, places)
    return scores.gather(1, tokens), tokens


def _block_maxima(scores: Tensor) -> Tensor:
    """``[N, V]`` to ``[N, C]``; the last block holds what is left over, if anything."""
    size = scores.shape[1]
    whole = size // _BLOCK * _BLOCK
    maxima = scores[:, :whole].view(len(scores), -1, _BLOCK).amax(-1)
    if whole == size:
        return maxima
    return torch.cat([maxima, scores[:, whole:].amax(-1, keepdim=True)], dim=1)


def _members(blocks: Tensor, size: int) -> Tensor:
    """The tokens of blocks: ``[N, K]`` to ``[N, K * block]``.

    A last block that is not full repeats the last token.
    """
    offsets = torch.arange(_BLOCK, device=blocks.device)
    return (blocks[..., None] * _BLOCK + offsets).flatten(1).clamp_(max=size - 1)


def _sort_keys(scores: Tensor) -> Tensor:
    """Different int64 keys in the order of score, then of place, the first place highest."""
    bits = (scores + 0.0).view(torch.int32)  # -0 becomes +0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    places = torch.arange(scores.shape[1], device=scores.device)
    return (ordered << 32) - places


def _top_keys(keys: Tensor, count: int) -> Tensor:
    return keys.topk(count, dim=-1).indices
