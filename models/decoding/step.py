"""The batched decoder: requests of every kind share one batch of rows and advance together.

Rows join by :meth:`BatchedDecoder.admit`, all advance by :meth:`BatchedDecoder.step`, and leave
when their output is complete or by :meth:`BatchedDecoder.remove`. A greedy or sampled request
has one row for each output still running, a beam search one for each live hypothesis.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from models.decoding.beam import Expansion, can_improve, expand, rank
from models.decoding.params import (
    DecodingParams,
    Emission,
    FinishReason,
    GeneratedToken,
    Hypothesis,
    collect_hypotheses,
    complete_hypothesis,
    emit_hypotheses,
)
from models.decoding.sampling import choose_tokens, uniform_number
from models.encoder_decoder import StepModel
from models.state import DecodeState
from models.tokenizers import EOS_ID


@dataclass(frozen=True)
class DecodingTask:
    """One request for the decoder.

    Attributes:
        key: the caller's name for it, unique among those in the decoder.
        prompt: token ids as :meth:`StepModel.start` reads them.
        params: how to choose tokens.
    """

    key: int
    prompt: Sequence[int]
    params: DecodingParams


@dataclass
class _Row:
    """One row of the batch: a running output, or a live hypothesis of a beam search."""

    output_index: int
    text: list[int]
    tokens: tuple[GeneratedToken, ...] = ()
    cumulative: float = 0.0


@dataclass
class _Running:
    task: DecodingTask
    rows: list[_Row]
    length: int = 0
    finished: list[Hypothesis] = field(default_factory=list)


@dataclass
class StepResult:
    """What one step settled.

    Attributes:
        emissions: tokens by request key.
        complete: keys of the requests that ended with this step.
    """

    emissions: dict[int, list[Emission]] = field(default_factory=dict)
    complete: list[int] = field(default_factory=list)


class _Outputs:
    """A model step's tensors, read row by row."""

    def __init__(self, logits: Tensor, attention: Tensor | None) -> None:
        self.logprobs = torch.log_softmax(logits.float(), dim=-1)
        self.attention = attention

    def token(self, row: int, token: int, task: DecodingTask) -> GeneratedToken:
        weights = None
        if task.params.return_attention and self.attention is not None:
            # Behind the source's own positions the batch is padded to its longest source.
            weights = tuple(self.attention[row, : len(task.prompt)].tolist())
        return GeneratedToken(token, float(self.logprobs[row, token]), weights)


class BatchedDecoder:
    """One batch of rows over one model.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._running: list[_Running] = []
        self._state: DecodeState | None = None
        self._inputs = torch.empty(0, dtype=torch.int64)

    @property
    def rows(self) -> int:
        """Rows in the batch."""
        return sum(len(running.rows) for running in self._running)

    @torch.inference_mode()
    def admit(self, tasks: Sequence[DecodingTask]) -> None:
        """Read the prompts in one batch and let their rows join.

        Raises:
            ValueError: a key is in use already.
        """
        if not tasks:
            return
        keys = [*(running.task.key for running in self._running), *(task.key for task in tasks)]
        if len(set(keys)) < len(keys):
            raise ValueError("each request in the decoder needs a key of its own")
        tokens, state = self._model.start([task.prompt for task in tasks])
        copies = [1 if t.params.is_beam else t.params.num_outputs for t in tasks]
        for task, count in zip(tasks, copies, strict=True):
            text = list(task.prompt) if self._model.continues_prompt else []
            rows = [_Row(index, list(text)) for index in range(count)]
            self._running.append(_Running(task, rows))
        index = torch.arange(len(tasks)).repeat_interleave(torch.tensor(copies)).to(tokens.device)
        joined = state.select(index)
        self._inputs = torch.cat([self._inputs.to(tokens.device), tokens[index]])
        self._state = joined if self._state is None else DecodeState.concat([self._state, joined])

    @torch.inference_mode()
    def remove(self, keys: Collection[int]) -> None:
        """Drop requests, whatever they are at; unknown keys are ignored."""
        keep: list[int] = []
        first = 0
        for running in self._running:
            if running.task.key not in keys:
                keep.extend(range(first, first + len(running.rows)))
            first += len(running.rows)
        self._running = [r for r in self._running if r.task.key not in keys]
        self._select(keep, [int(self._inputs[row]) for row in keep])

    @torch.inference_mode()
    def step(self) -> StepResult:
        """Advance every row by one token."""
        result = StepResult()
        if self._state is None:
            return result
        logits, self._state, attention = self._model.step(self._inputs, self._state)
        outputs = _Outputs(logits, attention)
        chosen = self._choose(logits)
        parents: list[int] = []
        inputs: list[int] = []
        first = 0
        for running in self._running:
            count = len(running.rows)
            advance = _advance_beam if running.task.params.is_beam else _advance_rows
            emissions, kept = advance(running, first, outputs, chosen)
            parents.extend(parent for parent, _ in kept)
            inputs.extend(token for _, token in kept)
            if emissions:
                result.emissions[running.task.key] = emissions
            if not running.rows:
                result.complete.append(running.task.key)
            first += count
        self._running = [running for running in self._running if running.rows]
        self._select(parents, inputs)
        return result

    def _choose(self, logits: Tensor) -> dict[int, int]:
        """The chosen token of every row that belongs to no beam search."""
        rows = [(running, row) for running in self._running for row in running.rows]
        index = [i for i, (running, _) in enumerate(rows) if not running.task.params.is_beam]
        if not index:
            return {}
        picked = [rows[i] for i in index]
        tokens = choose_tokens(
            logits[index],
            [running.task.params for running, _ in picked],
            [
                uniform_number(running.task.params.output_seed(row.output_index), running.length)
                for running, row in picked
            ],
            [row.text for _, row in picked],
        )
        return dict(zip(index, tokens.tolist(), strict=True))

    def _select(self, parents: list[int], inputs: list[int]) -> None:
        device = self._inputs.device
        self._inputs = torch.tensor(inputs, dtype=torch.int64, device=device)
        if not parents:
            self._state = None
        elif self._state is not None and parents != list(range(self._state.rows)):
            self._state = self._state.select(torch.tensor(parents, device=device))


_Kept = list[tuple[int, int]]
"""Rows that go on: (row of this step whose state it takes, token to feed next)."""


def _advance_rows(
    running: _Running, first: int, outputs: _Outputs, chosen: dict[int, int]
) -> tuple[list[Emission], _Kept]:
    """One step of a greedy or sampled request, whose rows begin at ``first``."""
    running.length += 1
    emissions: list[Emission] = []
    kept: _Kept = []
    going: list[_Row] = []
    for index, row in enumerate(running.rows, start=first):
        token = chosen[index]
        reason = _finish_reason(token, running)
        generated = outputs.token(index, token, running.task)
        emissions.append(Emission(row.output_index, generated, reason))
        if reason is None:
            row.text.append(token)
            going.append(row)
            kept.append((index, token))
    running.rows = going
    return emissions, kept


def _advance_beam(
    running: _Running, first: int, outputs: _Outputs, chosen: dict[int, int]
) -> tuple[list[Emission], _Kept]:
    """One step of a beam search, whose rows begin at ``first``; nothing was chosen for it."""
    params = running.task.params
    running.length += 1
    before = running.rows
    best: Expansion = expand(
        outputs.logprobs[first : first + len(before)],
        [row.cumulative for row in before],
        params.beam_size - len(running.finished),
    )
    kept: _Kept = []
    running.rows = []
    for cumulative, parent, token in zip(*best, strict=True):
        generated = outputs.token(first + parent, token, running.task)
        tokens = (*before[parent].tokens, generated)
        reason = _finish_reason(token, running)
        if reason is not None:
            running.finished.append(complete_hypothesis(tokens, reason, params.length_penalty))
            continue
        running.rows.append(_Row(0, [], tokens, cumulative))
        kept.append((first + parent, token))
    if running.rows and can_improve(running.rows[0].cumulative, running.finished, params):
        return [], kept
    running.rows = []
    return emit_hypotheses(rank(running.finished, params.num_outputs)), []


def _finish_reason(token: int, running: _Running) -> FinishReason | None:
    if token == EOS_ID:
        return FinishReason.END
    at_limit = running.length == running.task.params.max_new_tokens
    return FinishReason.LENGTH if at_limit else None


def decode_corpus(
    model: StepModel,
    prompts: Sequence[Sequence[int]],
    params: DecodingParams,
    *,
    max_rows: int = 64,
) -> Iterator[tuple[int, list[Hypothesis]]]:
    """Decode many prompts by continuous batching.

    Args:
        model: in evaluation mode.
        prompts: token ids as :meth:`StepModel.start` reads them.
        params: of all of them.
        max_rows: rows to run at most (at least one request runs all the same).

    Yields:
        The index of a prompt and its outputs, in the order in which they end.
    """
    decoder = BatchedDecoder(model)
    # Long ones first: the last to run would otherwise leave most of the batch empty.
    waiting = iter(sorted(range(len(prompts)), key=lambda index: -len(prompts[index])))
    width = max(params.beam_size, params.num_outputs)
    emitted: dict[int, list[Emission]] = {}
    while True:
        room = max((max_rows - decoder.rows) // width, 0 if decoder.rows else 1)
        joining = list(islice(waiting, room))
        decoder.admit([DecodingTask(index, prompts[index], params) for index in joining])
        if not decoder.rows:
            return
        result = decoder.step()
        for key, emissions in result.emissions.items():
            emitted.setdefault(key, []).extend(emissions)
        for key in result.complete:
            yield key, collect_hypotheses(emitted.pop(key), params.length_penalty)
