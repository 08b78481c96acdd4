"""Choosing the next token of each row: pure functions of tensors, randomness passed in.

Shape legend: ``N`` rows, ``V`` vocabulary size. Logits and scores are float32.

A row's choice depends on nothing but the row: its logits, its own settings and its own random
number, so that it does not matter who shares the batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models import placement
from models.decoding.candidates import most_probable, top_candidates
from models.decoding.params import DecodingParams
from models.kernels.sampling import sample
from models.kernels.team import BOARD
from models.placement import on_device
from models.several_steps import Seen, Settings
from models.tokenizers import BOS_ID, PAD_ID, UNK_ID

NEVER_GENERATED = (PAD_ID, BOS_ID, UNK_ID)
NEVER_CHOSEN = np.array(NEVER_GENERATED)
"""The same, as kernels take them."""
_NEGATIVE_INFINITY = float("-inf")
_NO_LIMIT = 2**31
"""More tokens than a vocabulary has."""


def suppress_special(scores: Tensor, *, in_place: bool = False) -> Tensor:
    """Scores ``[N, V]`` with ``<pad>``, ``<bos>`` and ``<unk>`` at minus infinity."""
    suppressed = scores if in_place else scores.clone()
    for token in NEVER_GENERATED:
        suppressed[:, token] = _NEGATIVE_INFINITY
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


def keep_top(scores: Tensor, top_k: Sequence[int], top_p: Sequence[float]) -> Tensor:
    """Minus infinity for all but the most probable tokens (Fan et al. 2018; Holtzman et al. 2020).

    Of equal scores the lower token id counts as the more probable.

    Args:
        scores: ``[N, V]``, after the temperature.
        top_k: of each row, tokens to keep; 0 keeps all.
        top_p: of each row, keep the fewest of those whose probabilities (renormalised after
            ``top_k``) sum to this; 1 keeps all.
    """
    device, size = scores.device, scores.shape[1]
    limits = [min(k, size) if k else size for k in top_k]
    if any(limit < size for limit in limits):
        widest = max(limit for limit in limits if limit < size)
        scores = _keep_first(scores, on_device(limits, device), widest)
    if all(p >= 1 for p in top_p):
        return scores
    probabilities = torch.softmax(scores, dim=-1)
    # Behind the first `last` tokens there is no probability left to look for.
    last = max(limit for limit, p in zip(limits, top_p, strict=True) if p < 1)
    wanted = on_device(top_p, device, torch.float64)[:, None]
    # Sorted in less time than the host would take to ask whether fewer of them suffice.
    best, _ = top_candidates(probabilities, last)
    before = best.double().cumsum(-1) - best
    counts = (before < wanted).sum(-1).clamp_(min=1)
    return _keep_first(scores, torch.where(wanted[:, 0] < 1, counts, size), last)


def _keep_first(scores: Tensor, counts: Tensor, width: int) -> Tensor:
    """Minus infinity for all but the best ``counts[n]`` of row n.

    ``width`` bounds the counts that are not the whole vocabulary.
    """
    size = scores.shape[1]
    best, tokens = top_candidates(scores, width)
    last = counts.clamp(max=width)[:, None] - 1
    worst, token = best.gather(1, last), tokens.gather(1, last)
    positions = torch.arange(size, device=scores.device)
    keep = (scores > worst) | ((scores == worst) & (positions <= token))
    return scores.masked_fill(~(keep | (counts >= size)[:, None]), _NEGATIVE_INFINITY)


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


def choose_tokens(
    logits: Tensor,
    params: Sequence[DecodingParams],
    uniforms: Sequence[float],
    seen: Sequence[Sequence[int]],
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Choose the next token of each row, or of some rows, by their own settings.

    Args:
        logits: ``[N, V]`` float32.
        params: of each of the ``R`` rows.
        uniforms: each row's random number in [0, 1); unused where the row is greedy.
        seen: the tokens in each row's text, looked at where it has a repetition penalty.
        rows: which rows; None stands for all.

    Returns:
        ``[R]`` int64.
    """
    if placement.is_apart(logits.device):
        chosen = logits if rows is None else logits.index_select(0, on_device(rows, logits.device))
        return choose_tokens_on_device(chosen, params, uniforms, seen)
    count = len(logits)
    pairs = zip(params, seen, strict=True)
    texts = [text if one.repetition_penalty != 1.0 else () for one, text in pairs]
    places = np.arange(count) if rows is None else np.array(rows)
    owners, tokens = np.empty(count, np.int64), np.empty(count, np.int64)
    owners[places] = np.arange(len(places))
    sample(
        logits.detach().contiguous().numpy(), NEVER_CHOSEN, places, owners, settings_of(params),
        joined(texts), np.array(uniforms, np.float64), tokens, BOARD.address,
    )  # fmt: skip
    return torch.from_numpy(tokens[places])


def settings_of(params: Sequence[DecodingParams]) -> Settings:
    """Those of each row, as kernels take them."""
    return (
        np.array([one.temperature for one in params], np.float32),
        np.array([min(one.top_k, _NO_LIMIT) for one in params], np.int64),
        np.array([one.top_p for one in params], np.float64),
        np.array([one.repetition_penalty for one in params], np.float32),
    )


def joined(texts: Sequence[Sequence[int]], room: int = 0) -> Seen:
    """Where each text begins, its length, and all of them with so much room behind each."""
    counts = np.array([len(text) for text in texts], np.int64)
    ends = np.cumsum(counts + room)
    starts = ends - room - counts
    tokens = np.empty(ends[-1] if texts else 0, np.int64)
    for start, text in zip(starts.tolist(), texts, strict=True):
        if text:
            tokens[start : start + len(text)] = text
    return starts, counts, tokens


def choose_tokens_on_device(
    logits: Tensor,
    params: Sequence[DecodingParams],
    uniforms: Sequence[float],
    seen: Sequence[Sequence[int]],
) -> Tensor:
    """What :func:`choose_tokens` does where the logits are on a GPU."""
    scores = logits
    penalised = [row for row, p in enumerate(params) if p.repetition_penalty != 1.0]
    if penalised:
        rows = on_device(penalised, logits.device)
        mask = _mark_seen([seen[row] for row in penalised], logits)
        penalties = [params[row].repetition_penalty for row in penalised]
        penalty = on_device(penalties, logits.device, torch.float32)
        changed = penalise_repetition(logits.index_select(0, rows), mask, penalty)
        scores = logits.index_copy(0, rows, changed)
    scores = suppress_special(scores)
    sampled = [row for row, p in enumerate(params) if p.is_sampled]
    if not sampled:
        return most_probable(scores)
    settings, draws = [params[row] for row in sampled], [uniforms[row] for row in sampled]
    if len(sampled) == len(params):
        return _draw(scores, settings, draws)
    rows = on_device(sampled, logits.device)
    drawn = _draw(scores.index_select(0, rows), settings, draws)
    return most_probable(scores).index_copy(0, rows, drawn)


def _mark_seen(seen: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    """``[R, V]`` bool: the tokens that stand in each of R texts."""
    size = logits.shape[1]
    cells = [row * size + token for row, tokens in enumerate(seen) for token in tokens]
    mask = torch.zeros(len(seen) * size, dtype=torch.bool, device=logits.device)
    return mask.index_fill_(0, on_device(cells, logits.device), True).view(len(seen), size)


def _draw(scores: Tensor, params: Sequence[DecodingParams], uniforms: Sequence[float]) -> Tensor:
    """Sample the next token ``[N]`` of each row by its settings and its random number."""
    device = scores.device
    temperature = on_device([p.temperature for p in params], device, torch.float32)
    warm = scores / temperature[:, None]
    if any(p.top_k or p.top_p < 1 for p in params):
        warm = keep_top(warm, [p.top_k for p in params], [p.top_p for p in params])
    return invert_distribution(warm, on_device(uniforms, device, torch.float64))
