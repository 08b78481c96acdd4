"""Requests of every kind for models with graphs, and what CUDA graphs do, on a processor."""

import itertools
import random
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from app.engine.graphs import Capture, Compute, GraphedModel
from models.config import CellName
from models.decoding.params import DecodingParams, Emission
from models.decoding.step import BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import StepModel, StepOutput
from models.state import DecodeState
from models.tokenizers import BOS_ID, EOS_ID
from tests.models.decoding.toy_models import FORMS

CELL_NAMES: list[CellName] = ["gru", "gru_textbook", "lstm", "rnn"]


def cell_of(form: str) -> CellName:
    """Another cell for each form: which one does not matter to the padding."""
    return CELL_NAMES[list(FORMS).index(form) % len(CELL_NAMES)]


def make_tasks(form: str, count: int, seed: int) -> list[DecodingTask]:
    """Requests of every kind, beams of several widths among them."""
    generator = random.Random(seed)
    tasks = []
    for key in range(count):
        length = generator.randint(1, 40)
        tokens = [generator.randint(4, 22) for _ in range(length - 1)]
        prompt = (*tokens, EOS_ID) if "decoder" in FORMS[form] else (BOS_ID, *tokens)
        limit = generator.randint(2, 9)
        params = [
            DecodingParams(limit, num_outputs=2, repetition_penalty=1.3),
            DecodingParams(limit, temperature=0.9, top_p=0.8, num_outputs=3, seed=key),
            DecodingParams(limit, beam_size=3, num_outputs=2, return_attention=True),
            DecodingParams(limit, beam_size=5, length_penalty=0.0),
            DecodingParams(limit, return_attention=True),
        ]
        tasks.append(DecodingTask(key, prompt, params[key % len(params)]))
    return tasks


def decode(model: StepModel, tasks: Sequence[DecodingTask]) -> dict[int, list[Emission]]:
    """What each is told, where two join before every step and one leaves before its end."""
    decoder = BatchedDecoder(model, single_lane=True)
    waiting = list(tasks)
    emitted: dict[int, list[Emission]] = {}
    for step in itertools.count():
        decoder.admit([waiting.pop(0) for _ in range(min(2, len(waiting)))])
        if step == 3:
            decoder.remove([tasks[2].key])
        if not decoder.rows and not waiting:
            return emitted
        result = decoder.step()
        assert not result.failed
        for key, emissions in result.emissions.items():
            emitted.setdefault(key, []).extend(emissions)
    raise AssertionError


def at_once(compute: Compute) -> Compute:
    """Captures nothing: the step is computed anew."""
    return compute


def flatten(output: StepOutput) -> list[Tensor]:
    """What a step computes: logits, the state's layers, attention where there is any."""
    tensors = [output.logits, *chain.from_iterable(output.state.layers)]
    return tensors if output.attention is None else [*tensors, output.attention]


class RecordingCapture:
    """Records a step's tensor operations once and repeats these, not the code behind them.

    Results stand in the same tensors every time, and whoever reads those of another graph than
    the last one reads no numbers: graphs share their memory.

    Args:
        records: False runs the code again: of int8's kernels nothing can be recorded.
    """

    def __init__(self, *, records: bool = True) -> None:
        self._records = records
        self._results: list[list[Tensor]] = []

    def __call__(self, compute: Compute) -> Compute:
        like = compute()

        def run() -> list[Tensor]:
            return flatten(compute())

        recorded: Callable[[], list[Tensor]] = make_fx(run)() if self._records else run
        results = [torch.empty_like(tensor) for tensor in flatten(like)]
        output = _like(like, results)
        self._results.append(results)

        def replay() -> StepOutput:
            fresh = recorded()
            for tensor in chain.from_iterable(self._results):
                tensor.fill_(float("nan"))
            for result, tensor in zip(results, fresh, strict=True):
                result.copy_(tensor)
            return output

        return replay


def _like(output: StepOutput, tensors: list[Tensor]) -> StepOutput:
    """An output of the same form with other tensors, in the order of :func:`flatten`."""
    logits, *others = tensors
    parts = iter(others)
    layers = tuple(tuple(next(parts) for _ in layer) for layer in output.state.layers)
    attention = None if output.attention is None else next(parts)
    return StepOutput(logits, DecodeState(layers), attention)


class CheckedModel(GraphedModel):
    """Compares every step with that of the model itself."""

    def __init__(self, model: StepModel, capture: Capture, tolerance: float) -> None:
        super().__init__(model, capture)
        self.plain = model
        self.tolerance = tolerance
        self.steps = 0

    @torch.inference_mode()
    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        output, plain = super().step(tokens, state), self.plain.step(tokens, state)
        for one, other in zip(flatten(output), flatten(plain), strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, atol=self.tolerance, rtol=0)
        assert output.state.memory is plain.state.memory
        assert output.state.context is plain.state.context
        self.steps += 1
        return output
