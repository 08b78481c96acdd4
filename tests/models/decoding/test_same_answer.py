"""The same answer at any load: requests of every kind that join and leave change no other's.

In int8 this holds bit for bit. In float32 a product's rounding depends on how many rows it has,
so there the same tokens come wherever the choice was not closer than rounding: wherever a model
whose logits are moved by a hundred times the rounding chooses the same.
"""

import functools
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.config import CellName
from models.decoding.arrivals import ReadingThread
from models.decoding.params import DecodingParams, Emission, Hypothesis, collect_hypotheses
from models.decoding.reference import decode_reference
from models.decoding.step import BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import Reading, StepModel, StepOutput
from models.precision import Precision, set_precision
from models.state import DecodeState
from models.tokenizers import BOS_ID, EOS_ID
from tests.models.decoding.toy_models import FORMS, make_model
from tests.models.teams import team_of

CELL_NAMES: list[CellName] = ["gru", "gru_textbook", "lstm", "rnn"]


@functools.cache
def served_model(
    form: str,
    cell: CellName,
    vocabulary_size: int,
    precision: Precision = "int8",
    *,
    hidden_size: int = 30,
    sharpness: float = 4,
) -> StepModel:
    model = make_model(form, cell, vocabulary_size, hidden_size=hidden_size, sharpness=sharpness)
    return set_precision(model, precision)


# ---------------------------------------------------------------- requests that come and go


@dataclass(frozen=True)
class Visit:
    """A request, the step before which it joins, and that before which it is dropped, if any."""

    task: DecodingTask
    joins: int = 0
    leaves: int | None = None


def make_prompt(form: str, length: int, seed: int) -> tuple[int, ...]:
    """A prompt of this length, or a source of up to 40 tokens."""
    generator = random.Random(seed)
    if "decoder" in FORMS[form]:
        return (*(generator.randint(4, 22) for _ in range(min(length, 40) - 1)), EOS_ID)
    return (BOS_ID, *(generator.randint(4, 28) for _ in range(length - 1)))


def run(
    model: StepModel,
    visits: Sequence[Visit],
    executor: ReadingThread | None = None,
    max_steps: int = 1,
) -> dict[int, list[Emission]]:
    """What the batched decoder says to each, by key."""
    decoder = BatchedDecoder(model, executor=executor)
    emitted: dict[int, list[Emission]] = {visit.task.key: [] for visit in visits}
    ended: list[int] = []
    last = max(visit.joins for visit in visits)
    for step in itertools.count():
        decoder.admit([visit.task for visit in visits if visit.joins == step])
        leaving = {visit.task.key for visit in visits if visit.leaves == step}
        decoder.remove(leaving)
        assert not leaving & set(decoder.keys)
        rows_before = decoder.rows
        result = decoder.step(max_steps)
        assert not result.failed
        assert max(result.rows, default=0) <= rows_before
        ended += result.complete
        for key, emissions in result.emissions.items():
            emitted[key] += emissions
        if step >= last and not decoder.rows:
            break
    assert decoder.keys == []
    # Everyone ends once, unless dropped first.
    assert len(set(ended)) == len(ended)
    assert {v.task.key for v in visits} - set(ended) <= {
        v.task.key for v in visits if v.leaves is not None
    }
    return emitted


def by_reference(model: StepModel, task: DecodingTask) -> list[Emission]:
    return [*itertools.chain.from_iterable(decode_reference(model, task.prompt, task.params))]


def outputs(emissions: Sequence[Emission]) -> dict[int, tuple[str, ...]]:
    """Of each output its tokens and how it ended, to the last bit: the text of a float is exact."""
    found: dict[int, tuple[str, ...]] = {}
    for index, tokens, reason, _ in emissions:
        end = () if reason is None else (str(reason),)
        found[index] = (*found.get(index, ()), *map(repr, tokens), *end)
    return found


def assert_undisturbed(
    model: StepModel,
    visits: Sequence[Visit],
    executor: ReadingThread | None = None,
    max_steps: int = 1,
) -> None:
    """Everyone is told what would have been told without the others, as long as they stay."""
    emitted = run(model, visits, executor, max_steps)
    for visit in visits:
        task = visit.task
        alone = run(model, [Visit(task)])[task.key]
        expected = by_reference(model, task)
        assert outputs(alone) == outputs(expected)
        if task.stream and not task.params.is_beam:
            assert all(len(emission.tokens) == 1 for emission in alone)
        else:
            assert all(emission.finish_reason is not None for emission in alone)
        if visit.leaves is None:
            assert repr(emitted[task.key]) == repr(alone)
        else:
            assert repr(emitted[task.key]) == repr(alone[: len(emitted[task.key])])


# ---------------------------------------------------------------- requests of every kind


def random_params(generator: random.Random) -> DecodingParams:
    kind = generator.choice(["greedy", "sampled", "beam"])
    values: dict[str, Any] = {
        "max_new_tokens": generator.randint(1, 8),
        "return_attention": generator.random() < 0.5,
    }
    if kind == "beam":
        width = generator.randint(2, 5)
        return DecodingParams(
            beam_size=width,
            num_outputs=generator.randint(1, width),
            length_penalty=generator.choice([0.0, 0.75, 1.5]),
            **values,
        )
    values |= {
        "num_outputs": generator.randint(1, 3),
        "repetition_penalty": generator.choice([1.0, 1.0, 1.4]),
    }
    if kind == "sampled":
        values |= {
            "temperature": generator.choice([0.5, 1.0, 3.0]),
            "top_k": generator.choice([0, 3, 40]),
            "top_p": generator.choice([0.6, 0.95, 1.0]),
            "seed": generator.randrange(2**40),
        }
    return DecodingParams(**values)


def random_visits(form: str, seed: int, count: int) -> list[Visit]:
    generator = random.Random(seed)
    visits = []
    for key in range(count):
        length = generator.choice([1, 2, generator.randint(1, 40), generator.randint(1, 90)])
        prompt = make_prompt(form, length, generator.randrange(1000))
        task = DecodingTask(key, prompt, random_params(generator), generator.random() < 0.5)
        joins = generator.randint(0, 6)
        leaves = joins + generator.randint(0, 6) if generator.random() < 0.3 else None
        visits.append(Visit(task, joins, leaves))
    return visits


@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_model_answers_in_a_crowd_as_alone(form: str, cell: CellName) -> None:
    seed = list(FORMS).index(form) + 10 * CELL_NAMES.index(cell)
    vocabulary_size = 8003 if seed % 4 == 0 else 29
    model = served_model(form, cell, vocabulary_size, sharpness=4 if seed % 2 else 1.5)
    assert_undisturbed(model, random_visits(form, seed, 7))


lengths = st.integers(1, 90) | st.sampled_from([1, 2, 32, 33, 40, 65])
common = {
    "max_new_tokens": st.integers(1, 10),
    "return_attention": st.booleans(),
}
greedy = st.builds(
    DecodingParams,
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    num_outputs=st.integers(1, 2),
    **common,
)
sampled = st.builds(
    DecodingParams,
    temperature=st.sampled_from([0.3, 1.0, 3.0]),
    top_k=st.sampled_from([0, 3, 100]),
    top_p=st.sampled_from([0.4, 0.95, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    seed=st.integers(0, 2**53 - 1),
    num_outputs=st.integers(1, 3),
    **common,
)
beams = st.integers(2, 6).flatmap(
    lambda width: st.builds(
        DecodingParams,
        beam_size=st.just(width),
        num_outputs=st.integers(1, width),
        length_penalty=st.sampled_from([0.0, 0.75, 1.5]),
        **common,
    )
)


@st.composite
def crowds(draw: Callable[..., Any]) -> tuple[StepModel, list[Visit]]:
    form = draw(st.sampled_from(sorted(FORMS)))
    # Half of 30 is 15; 64 takes the path of sizes that fill the processor's vectors.
    hidden_size = draw(st.sampled_from([30, 30, 64]))
    vocabulary_size = draw(st.sampled_from([29, 29, 8003]))
    cell = draw(st.sampled_from(CELL_NAMES))
    # Sharp models choose clearly; in others a last bit that differs soon shows.
    sharpness = draw(st.sampled_from([1.5, 4]))
    event(f"{form}, {cell}, {vocabulary_size}")
    visits = []
    for key in range(draw(st.integers(2, 7))):
        prompt = make_prompt(form, draw(lengths), draw(st.integers(0, 999)))
        task = DecodingTask(key, prompt, draw(greedy | sampled | beams), draw(st.booleans()))
        joins = draw(st.integers(0, 6))
        leaves = draw(st.none() | st.none() | st.integers(joins, joins + 6))
        visits.append(Visit(task, joins, leaves))
    model = served_model(form, cell, vocabulary_size, hidden_size=hidden_size, sharpness=sharpness)
    return model, visits


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(crowd=crowds())
def test_no_company_changes_a_bit(crowd: tuple[StepModel, list[Visit]]) -> None:
    assert_undisturbed(*crowd)


@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(crowd=crowds())
def test_no_company_changes_a_bit_with_two_threads(crowd: tuple[StepModel, list[Visit]]) -> None:
    with team_of(2):
        assert_undisturbed(*crowd)


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(crowd=crowds())
def test_no_company_changes_a_bit_whoever_reads(crowd: tuple[StepModel, list[Visit]]) -> None:
    with ReadingThread() as executor:
        assert_undisturbed(*crowd, executor)


@st.composite
def greedy_crowds(draw: Callable[..., Any]) -> tuple[StepModel, list[Visit]]:
    """Mostly requests of which several steps are made at once."""
    form = draw(st.sampled_from(["embedded", "one-hot", "parallel dot", "parallel additive"]))
    cell = draw(st.sampled_from(["gru", "lstm"]))
    model = served_model(form, cell, draw(st.sampled_from([29, 8003])), sharpness=1.5)
    visits = []
    for key in range(draw(st.integers(1, 12))):
        prompt = make_prompt(form, draw(lengths), draw(st.integers(0, 999)))
        params = DecodingParams(draw(st.integers(1, 20)))
        if draw(st.integers(0, 9)) == 0:
            params = draw(sampled | beams)
        task = DecodingTask(key, prompt, params)
        joins = draw(st.integers(0, 4))
        leaves = draw(st.none() | st.none() | st.integers(joins, joins + 3))
        visits.append(Visit(task, joins, leaves))
    return model, visits


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(crowd=greedy_crowds(), max_steps=st.integers(2, 9), threads=st.integers(1, 2))
def test_steps_that_are_made_at_once_change_no_bit(
    crowd: tuple[StepModel, list[Visit]], max_steps: int, threads: int
) -> None:
    with team_of(threads), ReadingThread() as executor:
        assert_undisturbed(*crowd, executor if threads == 1 else None, max_steps)


@pytest.mark.parametrize(
    ("form", "thread_count"),
    [("embedded", 1), ("context", 1), ("additive", 1), ("embedded", 2), ("parallel dot", 2)],
)
def test_a_request_among_64_others(form: str, thread_count: int) -> None:
    """So many rows that threads share out every tensor."""
    model = served_model(form, "gru", 8003, sharpness=1.5)
    visits = random_visits(form, seed=7, count=65)
    with team_of(thread_count), ReadingThread() as executor:
        emitted = run(model, visits, executor if thread_count == 1 else None)
    # Alone on one thread, whatever the number of threads was.
    staying = [visit for visit in visits if visit.leaves is None]
    for visit in staying[::9]:
        alone = by_reference(model, visit.task)
        assert outputs(emitted[visit.task.key]) == outputs(alone)


def test_a_key_may_come_again_while_its_first_prompt_is_still_read() -> None:
    model = served_model("embedded", "gru", 29)
    decoder = BatchedDecoder(model)
    long = DecodingTask(5, make_prompt("embedded", 900, 0), DecodingParams(4))
    again = DecodingTask(5, make_prompt("embedded", 3, 1), DecodingParams(4))
    decoder.admit([long, replace(long, key=6)])
    decoder.step()
    decoder.remove([5, 6])
    assert (decoder.rows, decoder.keys) == (0, [])
    decoder.admit([again])
    emissions: list[Emission] = []
    while decoder.rows:
        emissions += decoder.step().emissions.get(5, [])
    assert outputs(emissions) == outputs(by_reference(model, again))


# ---------------------------------------------------------------- float32


class Moved:
    """A model whose logits are moved at random, much further than float32 rounds."""

    MOST = 1e-3

    def __init__(self, model: StepModel, seed: int) -> None:
        self.vocabulary_size = model.vocabulary_size
        self.prompt_vocabulary_size = model.prompt_vocabulary_size
        self.continues_prompt = model.continues_prompt
        self._model = model
        self._generator = torch.Generator().manual_seed(seed)

    def read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        return self._model.read(prompts)

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        output = self._model.step(tokens, state)
        noise = torch.rand(output.logits.shape, generator=self._generator)
        return output._replace(logits=output.logits + (2 * noise - 1) * self.MOST)


def hypotheses(model: StepModel, task: DecodingTask) -> list[Hypothesis]:
    return collect_hypotheses(by_reference(model, task), task.params.length_penalty)


def token_ids(found: Sequence[Hypothesis]) -> list[tuple[int, ...]]:
    return [hypothesis.token_ids for hypothesis in found]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_float32_gives_the_same_tokens_where_the_margin_is_above_rounding(
    form: str, cell: CellName
) -> None:
    model = served_model(form, cell, 29, "float32")
    visits = [replace(visit, leaves=None) for visit in random_visits(form, seed=3, count=12)]
    emitted = run(model, visits)
    clear = 0
    for task in (visit.task for visit in visits):
        alone = hypotheses(model, task)
        moved = [hypotheses(Moved(model, seed), task) for seed in range(2)]
        if any(token_ids(other) != token_ids(alone) for other in moved):
            continue
        clear += 1
        together = collect_hypotheses(emitted[task.key], task.params.length_penalty)
        assert token_ids(together) == token_ids(alone)
        for one, other in zip(together, alone, strict=True):
            assert one.finish_reason is other.finish_reason
            assert one.score == pytest.approx(other.score, abs=1e-4)
            for token, other_token in zip(one.tokens, other.tokens, strict=True):
                assert token.logprob == pytest.approx(other_token.logprob, abs=1e-4)
                assert (token.attention or ()) == pytest.approx(
                    other_token.attention or (), abs=1e-4
                )
    assert clear >= len(visits) // 2
