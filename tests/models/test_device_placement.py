"""Everything is computed on the model's device, and the host waits for it once a step.

Shown with meta tensors: see :mod:`tests.models.meta_device`.
"""

from collections.abc import Callable
from itertools import chain

import pytest
import torch
from torch import Tensor

from models.config import CellName
from models.decoding.beam import LiveBeams
from models.decoding.choice import RowKinds, RowNeeds, compute_choices
from models.decoding.params import DecodingParams
from models.decoding.step import BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import StepModel, read_at_once
from models.placement import on_device, send
from models.precision import Precision, set_precision
from models.state import MemoryPool
from tests.models.decoding.toy_models import FORMS, make_model
from tests.models.meta_device import META, PlacementError, meta_device

CELL_NAMES: list[CellName] = ["gru", "gru_textbook", "lstm", "rnn"]
PROMPTS = [[5, 6, 7, 2], [8, 2], [9] * 40]


def meta_model(form: str, cell: CellName, precision: Precision, size: int = 29) -> StepModel:
    return set_precision(make_model(form, cell, size).to(META), precision)


# ---------------------------------------------------------------- what the device refuses


def mix(on_host: Tensor, there: Tensor) -> object:
    return there + on_host


@pytest.mark.parametrize(
    "operation",
    [
        mix,
        lambda host, there: there.index_select(0, torch.tensor([1])),
        lambda host, there: there[[0, 1]],
        lambda host, there: there.__setitem__((slice(None), [0, 1]), 0.0),
        lambda host, there: there[torch.tensor([True, False])],
        lambda host, there: torch.tensor([1.0], device=META),
        lambda host, there: there.copy_(host),
        lambda host, there: host.to(META),
        lambda host, there: there.to("cpu"),
        lambda host, there: there.cpu(),
    ],
)
def test_what_mixes_devices_or_waits_is_refused(
    operation: Callable[[Tensor, Tensor], object],
) -> None:
    host, there = torch.zeros(2, 2), torch.zeros(2, 2, device=META)
    with meta_device(), pytest.raises((PlacementError, RuntimeError)):
        operation(host, there)


@pytest.mark.parametrize(
    "operation",
    [
        lambda there: there.sum().item(),
        lambda there: bool(there.any()),
        lambda there: int(there[0, 0]),
        lambda there: there.nonzero(),
        lambda there: there[there > 0],
        lambda there: there.tolist(),
    ],
)
def test_who_asks_for_a_value_gets_none(operation: Callable[[Tensor], object]) -> None:
    there = torch.zeros(2, 2, device=META)
    with meta_device(), pytest.raises(RuntimeError):
        operation(there)


def test_lists_are_sent_without_waiting() -> None:
    with meta_device() as traffic:
        assert on_device([1, 2], META).dtype == torch.int64
        assert on_device([0.5], META, torch.float64).dtype == torch.float64
        assert send(torch.ones(2, 3), META).shape == (2, 3)
    assert traffic.sent == 3
    cpu = torch.device("cpu")
    assert on_device([[1, 2], [3, 4]], cpu).tolist() == [[1, 2], [3, 4]]
    assert send(torch.ones(2), cpu).tolist() == [1, 1]


# ---------------------------------------------------------------- the models


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_prompts_are_read_and_steps_made_on_the_device(
    form: str, cell: CellName, precision: Precision
) -> None:
    model = meta_model(form, cell, precision)
    with meta_device(), torch.inference_mode():
        tokens, state = read_at_once(model, PROMPTS)
        tensors = [tokens]
        for _ in range(3):
            logits, state, attention = model.step(tokens, state)
            assert logits.dtype == torch.float32
            tensors += [logits, *chain.from_iterable(state.layers)]
            tensors += [part for part in (attention, state.context) if part is not None]
            tensors += state.memory.parts() if state.memory else ()
            state = state.select(on_device([2, 0, 0, 1], META))
            tokens = on_device([5, 6, 7, 8], META)
        assert {tensor.device for tensor in tensors} == {META}
        assert (attention is None) == (state.memory is None)


@pytest.mark.parametrize("form", ["additive", "parallel dot"])
def test_rows_that_share_sources_are_computed_on_the_device(form: str) -> None:
    model = meta_model(form, "gru", "bfloat16")
    with meta_device(), torch.inference_mode():
        tokens, state = read_at_once(model, PROMPTS)
        assert state.memory is not None
        pool = MemoryPool()
        pool.append(state.memory, [len(prompt) for prompt in PROMPTS])
        pool.keep([2, 1])
        memory = pool.view([2, 1])
        rows = on_device([2, 2, 1], META)
        layers = state.select_layers(rows)
        output = model.step(tokens, type(state)(layers.layers, memory=memory))
        assert output.attention is not None
        assert output.attention.device == output.logits.device == META


# ---------------------------------------------------------------- choosing


ROW_NEEDS = [
    RowNeeds(params, [0.5], [4, 5])
    for params in (
        DecodingParams(5, temperature=0.8),
        DecodingParams(5, temperature=0.8, top_k=5),
        DecodingParams(5, temperature=0.8, top_p=0.9),
        DecodingParams(5, temperature=0.8, top_k=5, top_p=0.9, repetition_penalty=1.3),
        DecodingParams(5, repetition_penalty=1.3),
    )
]


@pytest.mark.parametrize("size", [29, 8003])
def test_choices_are_made_on_the_device(size: int) -> None:
    rows = len(ROW_NEEDS)
    beams = LiveBeams([rows, rows + 1], [-1.0, -2.0], [2], [4])
    all_kinds = RowKinds(dict(enumerate(ROW_NEEDS)), beams, [1, rows])
    for kinds, count in (
        (RowKinds(), 3),
        (RowKinds(beams=LiveBeams([0, 1], [-1.0, -2.0], [2], [4])), 2),
        (RowKinds(special={0: ROW_NEEDS[2]}), 1),
        (all_kinds, rows + 3),
    ):
        with meta_device(), torch.inference_mode():
            logits = torch.zeros(count, size, device=META)
            attention = torch.zeros(count, 16, device=META, dtype=torch.bfloat16)
            parts = compute_choices(logits, attention, kinds)
        assert {(part.device, part.dtype) for part in parts} == {(META, torch.float64)}
        candidates = [len(kinds.beams.rows) * kinds.beams.width] * 2 if kinds.beams.rows else []
        weights = [len(kinds.attended) * 16] if kinds.attended else []
        assert [len(part) for part in parts] == [count, count, *candidates, *weights]


# ---------------------------------------------------------------- the whole decoder


def tasks_of_every_kind(first_key: int) -> list[DecodingTask]:
    params = [
        DecodingParams(4),
        DecodingParams(6, temperature=0.9, top_p=0.8, num_outputs=2, repetition_penalty=1.2),
        DecodingParams(5, beam_size=3, return_attention=True),
        DecodingParams(7, temperature=0.9, top_k=5),
        DecodingParams(3, beam_size=2),
    ]
    return [
        DecodingTask(first_key + index, [5] * (1 + 9 * index), each)
        for index, each in enumerate(params)
    ]


@pytest.mark.parametrize("single_lane", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_host_waits_once_a_step(form: str, single_lane: bool) -> None:
    decoder = BatchedDecoder(meta_model(form, "lstm", "bfloat16"), single_lane=single_lane)
    steps, ended = 0, 0
    # Every token is 5, and so is its log-probability.
    with meta_device(answer=5.0) as traffic:
        for step in range(40):
            if step in {0, 2}:
                decoder.admit(tasks_of_every_kind(10 * step))
            if step == 4:
                decoder.remove([1, 23])
            result = decoder.step()
            assert not result.failed
            steps += bool(result.rows)
            ended += len(result.complete)
            assert traffic.brought == steps
    assert ended == 8
    assert decoder.rows == 0
    assert steps >= 7
