"""One step's choices for all rows, brought to the host in one go.

Shape legend: ``N`` rows, ``V`` vocabulary size, ``S`` source positions, ``K`` candidates.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import placement
from models.decoding.beam import BeamStep, LiveBeams, expand
from models.decoding.candidates import most_probable, top_candidates
from models.decoding.params import DecodingParams
from models.decoding.sampling import (
    NEVER_CHOSEN,
    choose_tokens,
    choose_tokens_on_device,
    suppress_special,
)
from models.kernels import choice as kernels
from models.kernels.team import BOARD
from models.placement import on_device


class RowNeeds(NamedTuple):
    """What the choice of a row's token depends on, besides its logits.

    Attributes:
        params: of its request.
        uniforms: random numbers in [0, 1), one for each step; unused where the row is greedy.
        seen: the tokens in its text, looked at where it has a repetition penalty.
    """

    params: DecodingParams
    uniforms: Sequence[float]
    seen: Sequence[int]


@dataclass(slots=True)
class RowKinds:
    """Which rows need what. A row that stands nowhere here is greedy.

    Attributes:
        special: rows that sample or have a repetition penalty, with their needs.
        beams: the beam searches.
        attended: rows whose attention weights are asked for.
    """

    special: dict[int, RowNeeds] = field(default_factory=dict)
    beams: LiveBeams = field(default_factory=LiveBeams)
    attended: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Choices:
    """What one step offers to every row.

    Attributes:
        tokens: the chosen token of each row; of no meaning for a beam's.
        logprobs: its log-probability, before temperature, penalties and filters.
        beams: of each beam search, in the order of :class:`RowKinds`, what it keeps in each step.
        attention: of each row that asked for them, the weights of all source positions.
        places: of each beam search the rows of its live hypotheses, the best first, none where it
            is over; empty where each stands in the row that it continues.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float]
    beams: Sequence[Sequence[BeamStep]]
    attention: Mapping[int, Sequence[float]]
    places: Sequence[range] = ()


def choose(logits: Tensor, attention: Tensor | None, kinds: RowKinds) -> Choices:
    """Choose for all rows.

    Args:
        logits: ``[N, V]`` float32; given up to this function, which writes into them.
        attention: ``[N, S]``, or None.
        kinds: which rows need what.
    """
    if placement.is_apart(logits.device):
        return choose_on_device(logits, attention, kinds)
    return _choose_here(logits.contiguous(), attention, kinds)


def choose_on_device(logits: Tensor, attention: Tensor | None, kinds: RowKinds) -> Choices:
    """What :func:`choose` does where the logits are on a GPU."""
    parts = compute_choices(logits, attention, kinds)
    # One transfer brings them all.
    flat = np.array(torch.cat(parts).tolist())
    ends = itertools.accumulate(len(part) for part in parts)
    values = [flat[end - len(part) : end] for end, part in zip(ends, parts, strict=True)]
    return _unpack(values, kinds, attention is not None)


def log_softmax(logits: Tensor) -> Tensor:
    """All log-probabilities ``[N, V]``, the same bits that :func:`choose` gives of some tokens."""
    if placement.is_apart(logits.device):
        return torch.log_softmax(logits, dim=-1)
    logprobs = torch.empty(logits.shape)
    kernels.log_softmax(logits.detach().contiguous().numpy(), logprobs.numpy())
    return logprobs


def _choose_here(logits: Tensor, attention: Tensor | None, kinds: RowKinds) -> Choices:
    """What :func:`compute_choices` says, by kernels for the processor."""
    special = _choose_special(logits, kinds)
    scores, count = logits.numpy(), len(logits)
    tokens, tops = np.empty(count, np.int64), np.empty(count, np.float32)
    sums = np.empty(count, np.float32)
    blocks = np.empty((count, kernels.count_blocks(scores.shape[1])), np.float32)
    kernels.most_probable(scores, NEVER_CHOSEN, tokens, tops, sums, blocks, BOARD.address)
    if special is not None:
        tokens[list(kinds.special)] = special
    chosen = np.empty(count, np.float32)
    kernels.log_probabilities(scores, tokens, tops, sums, chosen)
    beams: Sequence[BeamStep] = ()
    if kinds.beams.rows:
        rows = np.array(kinds.beams.rows)
        shape = (len(rows), min(kinds.beams.width, scores.shape[1]))
        candidates, logprobs = np.empty(shape, np.int64), np.empty(shape, np.float32)
        kernels.best_candidates(scores, rows, tops, sums, blocks, candidates, logprobs)
        beams = expand(kinds.beams, candidates, logprobs)
    weights = [] if attention is None or not kinds.attended else attention[kinds.attended].tolist()
    return Choices(
        tokens=tokens.tolist(),
        logprobs=chosen.tolist(),
        beams=[[step] for step in beams],
        attention=dict(zip(kinds.attended, weights, strict=False)),
    )


def _choose_special(logits: Tensor, kinds: RowKinds) -> NDArray[np.int64] | None:
    """The tokens of the rows that sample or have a repetition penalty, in their order."""
    if not kinds.special:
        return None
    params, draws, seen = zip(*kinds.special.values(), strict=True)
    uniforms = [uniform for (uniform,) in draws]
    return choose_tokens(logits, params, uniforms, seen, list(kinds.special)).numpy()


def compute_choices(logits: Tensor, attention: Tensor | None, kinds: RowKinds) -> list[Tensor]:
    """What the device has to say of every row. The host does not wait for it.

    Args:
        logits: ``[N, V]`` float32; given up to this function, which writes into them.
        attention: ``[N, S]``, or None.
        kinds: which rows need what.

    Returns:
        Tensors of one dimension, in float64, which holds token ids and float32 values exactly:
        tokens and log-probabilities ``[N]``, then, where rows ask for them, candidates and their
        log-probabilities, row by row, then attention weights, row by row.
    """
    device = logits.device
    logprobs = torch.log_softmax(logits, dim=-1)
    tokens = _choose_tokens(logits, kinds)
    chosen = logprobs.gather(1, tokens[:, None])[:, 0]
    parts = [tokens.double(), chosen.double()]
    if kinds.beams.rows:
        rows = logprobs
        if not _are_all(kinds.beams.rows, len(logprobs)):
            rows = logprobs.index_select(0, on_device(kinds.beams.rows, device))
        best, ids = top_candidates(suppress_special(rows), kinds.beams.width)
        parts += [ids.double().flatten(), best.double().flatten()]
    if attention is not None and kinds.attended:
        index = on_device(kinds.attended, device)
        parts.append(attention.index_select(0, index).double().flatten())
    return parts


def _choose_tokens(logits: Tensor, kinds: RowKinds) -> Tensor:
    if len(kinds.beams.rows) == len(logits):
        return torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    if not kinds.special:
        return most_probable(suppress_special(logits, in_place=True))
    params, draws, seen = zip(*kinds.special.values(), strict=True)
    uniforms = [uniform for (uniform,) in draws]
    if _are_all(kinds.special, len(logits)):
        return choose_tokens_on_device(logits, params, uniforms, seen)
    rows = on_device(list(kinds.special), logits.device)
    special = choose_tokens_on_device(logits.index_select(0, rows), params, uniforms, seen)
    tokens = most_probable(suppress_special(logits, in_place=True))
    return tokens.index_copy(0, rows, special)


def _are_all(rows: Iterable[int], count: int) -> bool:
    """Whether nothing has to be selected: requests that leave upset the order of the others."""
    return list(rows) == list(range(count))


def _unpack(values: list[NDArray[np.float64]], kinds: RowKinds, has_attention: bool) -> Choices:
    """The parts of the transfer, each to the rows that it belongs to."""
    tokens, logprobs, *others = values
    beams: Sequence[BeamStep] = ()
    count = len(kinds.beams.rows)
    if count:
        ids = others[0].astype(np.int64).reshape(count, -1)
        beams = expand(kinds.beams, ids, others[1].astype(np.float32).reshape(count, -1))
    weights: list[list[float]] = []
    if has_attention and kinds.attended:
        weights = others[-1].reshape(len(kinds.attended), -1).tolist()
    return Choices(
        tokens=tokens.astype(np.int64).tolist(),
        logprobs=logprobs.tolist(),
        beams=[[step] for step in beams],
        attention=dict(zip(kinds.attended, weights, strict=False)),
    )
