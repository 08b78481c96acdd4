"""Decoding one request in the plainest way: the oracle that the batched decoder must equal.

One row, one hypothesis, one model call at a time. :func:`exhaustive_search` is the oracle of
beam search in turn, for vocabularies and lengths that are small enough to enumerate.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.decoding.beam import can_improve, rank
from models.decoding.choice import log_softmax
from models.decoding.draws import uniform_number
from models.decoding.params import (
    REPETITION_WINDOW,
    DecodingParams,
    Emission,
    FinishReason,
    GeneratedToken,
    Hypothesis,
    complete_hypothesis,
    emit_hypotheses,
)
from models.decoding.sampling import NEVER_GENERATED, choose_tokens
from models.encoder_decoder import StepModel, read_at_once
from models.state import DecodeState
from models.tokenizers import EOS_ID


@torch.inference_mode()
def decode_reference(
    model: StepModel, prompt: Sequence[int], params: DecodingParams
) -> Iterator[list[Emission]]:
    """Decode one request.

    Args:
        model: in evaluation mode.
        prompt: token ids as :meth:`StepModel.read` takes them.
        params: how to choose tokens.

    Yields:
        After every model step what it settled, possibly nothing, so that the caller can look
        for a cancellation between two steps.
    """
    if params.is_beam:
        yield from _beam_search(model, prompt, params)
        return
    for index in range(params.num_outputs):
        for emission in _one_output(model, prompt, params, index):
            yield [emission]


def _one_output(
    model: StepModel, prompt: Sequence[int], params: DecodingParams, output_index: int
) -> Iterator[Emission]:
    tokens, state = read_at_once(model, [prompt])
    text = list(prompt) if model.continues_prompt else []
    seed = params.output_seed(output_index)
    for position in range(params.max_new_tokens):
        logits, state, attention = model.step(tokens, state)
        draw = uniform_number(seed, position)
        tokens = choose_tokens(logits, [params], [draw], [text[-REPETITION_WINDOW:]])
        token = int(tokens)
        text.append(token)
        reason = _finish_reason(token, position + 1, params)
        generated = _generated(token, _logprobs(logits), attention, params)
        yield Emission(output_index, (generated,), reason)
        if reason is not None:
            return


@dataclass(frozen=True)
class _Live:
    tokens: tuple[GeneratedToken, ...]
    cumulative: float
    next_input: Tensor
    state: DecodeState


def _beam_search(
    model: StepModel, prompt: Sequence[int], params: DecodingParams
) -> Iterator[list[Emission]]:
    first, state = read_at_once(model, [prompt])
    live = [_Live((), 0.0, first, state)]
    finished: list[Hypothesis] = []
    for length in range(1, params.max_new_tokens + 1):
        width = params.beam_size - len(finished)
        candidates: list[tuple[float, int, int, GeneratedToken]] = []
        states: list[DecodeState] = []
        for parent, hypothesis in enumerate(live):
            logits, state, attention = model.step(hypothesis.next_input, hypothesis.state)
            states.append(state)
            logprobs = _logprobs(logits)
            for token in _best_tokens(logprobs, width):
                generated = _generated(token, logprobs, attention, params)
                total = hypothesis.cumulative + generated.logprob
                candidates.append((-total, parent, token, generated))
        candidates.sort(key=lambda candidate: candidate[:3])
        parents, live = live, []
        for negative, parent, token, generated in candidates[:width]:
            tokens = (*parents[parent].tokens, generated)
            reason = _finish_reason(token, length, params)
            if reason is not None:
                finished.append(complete_hypothesis(tokens, reason, params.length_penalty))
                continue
            live.append(_Live(tokens, -negative, first.new_tensor([token]), states[parent]))
        if not live or not can_improve(live[0].cumulative, finished, params):
            break
        yield []
    yield emit_hypotheses(rank(finished, params.num_outputs))


def exhaustive_search(
    model: StepModel, prompt: Sequence[int], params: DecodingParams
) -> list[Hypothesis]:
    """Score every possible output and return the best ``num_outputs``.

    *Dive into Deep Learning*, section 10.8.2. The number of outputs grows as V^length.

    Args:
        model: in evaluation mode, with a small vocabulary.
        prompt: token ids as :meth:`StepModel.read` takes them.
        params: ``max_new_tokens``, ``length_penalty`` and ``num_outputs`` are used.
    """
    found: list[Hypothesis] = []

    def visit(tokens: tuple[GeneratedToken, ...], next_input: Tensor, state: DecodeState) -> None:
        logits, state, attention = model.step(next_input, state)
        logprobs = _logprobs(logits)
        for token in range(len(logprobs)):
            if token in NEVER_GENERATED:
                continue
            longer = (*tokens, _generated(token, logprobs, attention, params))
            reason = _finish_reason(token, len(longer), params)
            if reason is None:
                visit(longer, next_input.new_tensor([token]), state)
            else:
                found.append(complete_hypothesis(longer, reason, params.length_penalty))

    with torch.inference_mode():
        visit((), *read_at_once(model, [prompt]))
    return rank(found, params.num_outputs)


def _finish_reason(token: int, length: int, params: DecodingParams) -> FinishReason | None:
    if token == EOS_ID:
        return FinishReason.END
    return FinishReason.LENGTH if length == params.max_new_tokens else None


def _logprobs(logits: Tensor) -> list[float]:
    values: list[float] = log_softmax(logits.float())[0].tolist()
    return values


def _generated(
    token: int, logprobs: list[float], attention: Tensor | None, params: DecodingParams
) -> GeneratedToken:
    weights = None
    if params.return_attention and attention is not None:
        weights = tuple(attention[0].tolist())
    return GeneratedToken(token, logprobs[token], weights)


def _best_tokens(logprobs: list[float], count: int) -> list[int]:
    allowed = (token for token in range(len(logprobs)) if token not in NEVER_GENERATED)
    possible = (token for token in allowed if logprobs[token] != -math.inf)
    return heapq.nsmallest(count, possible, key=lambda token: (-logprobs[token], token))
