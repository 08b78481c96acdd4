"""Choosing the next token of each row: pure functions of tensors, randomness passed in.

Shape legend: ``N`` rows, ``V`` vocabulary size. Logits and scores are float32.

A row's choice depends on nothing but the row: its logits, its own settings and its own random
number, so that it does not matter who shares the batch.
"""

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from models.decoding.params import DecodingParams
from models.tokenizers import BOS_ID, PAD_ID, UNK_ID

NEVER_GENERATED = (PAD_ID, BOS_ID, UNK_ID)
_NEGATIVE_INFINITY = float("-inf")


def uniform_number(seed: int, position: int) -> float:
    """A uniform number in [0, 1) that is a function of its two arguments alone.

    A counter-based generator (Salmon et al. 2011) with BLAKE2b as its keyed function: there is
    no state to share, so a draw never depends on other rows or on the order of steps.

    Args:
        seed: of the output.
        position: index of the generated token.
    """
    digest = hashlib.blake2b(struct.pack("<QQ", seed, position), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)


def suppress_special(scores: Tensor) -> Tensor:
    """Scores ``[N, V]`` with ``<pad>``, ``<bos>`` and ``<unk>`` at minus infinity."""
    suppressed = scores.clone()
    suppressed[:, list(NEVER_GENERATED)] = _NEGATIVE_INFINITY
    return suppressed


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Make tokens that were seen less likely: Keskar et al. 2019, section 4.1.

    Args:
        logits: ``[N, V]``.
        seen: ``[N, V]`` bool, the tokens that stand in the text already.
        penalty: ``[N]``, 1 changes nothing.
    """
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def keep_top(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Minus infinity for all but the most probable tokens (Fan et al. 2018; Holtzman et al. 2020).

    Of equal scores the lower token id counts as the more probable.

    Args:
        scores: ``[N, V]``, after the temperature.
        top_k: ``[N]`` int64, tokens to keep; 0 keeps all.
        top_p: ``[N]``, keep the fewest of those whose probabilities (renormalised after
            ``top_k``) sum to this; 1 keeps all.
    """
    ordered, order = torch.sort(scores, dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    keep = (rank < top_k[:, None]) | (top_k[:, None] == 0)
    probabilities = torch.softmax(ordered.masked_fill(~keep, _NEGATIVE_INFINITY), dim=-1)
    mass_before = probabilities.cumsum(-1) - probabilities
    keep &= (mass_before < top_p[:, None]) | (top_p[:, None] >= 1)
    keep[:, 0] = True  # the sum before the first may round away from 0
    mask = torch.zeros_like(keep).scatter(-1, order, keep)
    return scores.masked_fill(~mask, _NEGATIVE_INFINITY)


def invert_distribution(scores: Tensor, uniforms: Tensor) -> Tensor:
    """The token whose share of the cumulative distribution holds the random number.

    Args:
        scores: ``[N, V]``; minus infinity has no share.
        uniforms: ``[N]`` float64 in [0, 1).

    Returns:
        ``[N]`` int64.
    """
    probabilities = torch.softmax(scores, dim=-1)
    cumulative = probabilities.double().cumsum(-1)
    threshold = (uniforms * cumulative[:, -1])[:, None]
    tokens = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    # Rounding may carry the threshold to the very end: the last token with a share takes it.
    positions = torch.arange(scores.shape[-1], device=scores.device)
    last = torch.where(probabilities > 0, positions, 0).amax(-1)
    return torch.minimum(tokens, last)


def most_probable(scores: Tensor) -> Tensor:
    """The highest score's token, the lowest id among equals: ``[N, V]`` to ``[N]`` int64."""
    size = scores.shape[-1]
    positions = torch.arange(size, device=scores.device)
    best = scores == scores.amax(-1, keepdim=True)
    return torch.where(best, positions, size).amin(-1)


def choose_tokens(
    logits: Tensor,
    params: Sequence[DecodingParams],
    uniforms: Sequence[float],
    seen: Sequence[Sequence[int]],
) -> Tensor:
    """Choose the next token of each row by its own settings.

    Args:
        logits: ``[N, V]``.
        params: of each row.
        uniforms: each row's random number in [0, 1); unused where the row is greedy.
        seen: the tokens in each row's text, looked at where it has a repetition penalty.

    Returns:
        ``[N]`` int64.
    """
    device = logits.device
    scores = logits.clone()
    penalised = [row for row, p in enumerate(params) if p.repetition_penalty != 1.0]
    if penalised:
        mask = torch.zeros(len(penalised), logits.shape[1], dtype=torch.bool, device=device)
        for index, row in enumerate(penalised):
            mask[index, list(seen[row])] = True
        penalty = torch.tensor([params[row].repetition_penalty for row in penalised], device=device)
        scores[penalised] = penalise_repetition(scores[penalised], mask, penalty)
    scores = suppress_special(scores)
    tokens = most_probable(scores)
    sampled = [row for row, p in enumerate(params) if p.is_sampled]
    if sampled:
        settings = [params[row] for row in sampled]
        temperature = torch.tensor([p.temperature for p in settings], device=device)
        warm = scores[sampled] / temperature[:, None]
        if any(p.top_k or p.top_p < 1 for p in settings):
            top_k = torch.tensor([p.top_k for p in settings], device=device)
            top_p = torch.tensor([p.top_p for p in settings], device=device)
            warm = keep_top(warm, top_k, top_p)
        draws = torch.tensor([uniforms[row] for row in sampled], dtype=torch.float64, device=device)
        tokens[sampled] = invert_distribution(warm, draws)
    return tokens
