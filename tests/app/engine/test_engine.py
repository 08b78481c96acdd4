"""Several models in turn, and the same answer at any load."""

import functools
import itertools
import random
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from app.engine.engine import Engine
from app.engine.request import (
    DecodeRequest,
    DecodingParams,
    EndEvent,
    EndReason,
    Event,
    TokensEvent,
)
from app.engine.runner import Runner
from app.engine.scheduler import ADMISSION_INTERVAL_STEPS
from models.config import CellName
from models.decoding.arrivals import PIECES_PER_STEP
from models.encoder_decoder import StepModel
from models.language_model import LanguageModel
from models.precision import set_precision
from models.recurrent import PIECE_POSITIONS
from models.vocabulary import BOS_ID, EOS_ID
from tests.app.engine.scripted_models import (
    FIRST,
    CountingModel,
    ManualClock,
    counting_request,
    endless_model,
    ends_of,
    tokens_of,
)
from tests.models.decoding.toy_models import make_model


def make_engine(
    models: Mapping[str, StepModel], row_budget: int = 16, clock: ManualClock | None = None
) -> Engine:
    clock = clock or ManualClock()
    return Engine(
        [
            Runner(name, model, heartbeat_prompt=(FIRST,), row_budget=row_budget, clock=clock)
            for name, model in models.items()
        ]
    )


def run_to_end(engine: Engine) -> list[Event]:
    events: list[Event] = []
    for _ in range(10_000):
        if engine.is_idle:
            return events
        events += engine.step().events
    raise AssertionError("the engine does not come to an end")


# ---------------------------------------------------------------- models in turn


def test_models_take_equal_turns_whatever_their_load() -> None:
    busy, quiet = CountingModel(), CountingModel()
    engine = make_engine({"busy": busy, "quiet": quiet})
    engine.submit([counting_request(number, 20, model="busy") for number in range(50)])
    engine.submit([counting_request(50, 20, model="quiet")])
    for turn in range(1, 21):
        progress = engine.step()
        assert [(step.model, step.rows) for step in progress.steps] == [("busy", 16), ("quiet", 1)]
        assert len(busy.step_rows) == len(quiet.step_rows) == turn
    # A model without work takes no turn.
    progress = engine.step()
    assert [step.model for step in progress.steps] == ["busy"]
    assert progress.rows_running == {"busy": 16, "quiet": 0}
    ends = ends_of(run_to_end(engine))
    assert ends.keys() == set(range(16, 50))


def test_an_idle_engine_has_nothing_to_tell() -> None:
    engine = make_engine({"model": CountingModel()})
    assert engine.is_idle
    progress = engine.step()
    assert (progress.started, progress.events, progress.steps) == ((), (), ())
    assert progress.rows_running == {"model": 0}
    engine.submit([counting_request(1, 2)])
    engine.step()
    assert not engine.is_idle
    engine.cancel([1])
    assert not engine.is_idle  # its end is still to be told
    assert ends_of(engine.step().events)[1].reason is EndReason.CANCELLED
    assert engine.is_idle


def test_models_that_both_have_work_make_a_step_each() -> None:
    """One that is alone may make several at once."""
    engine = make_engine({"one": endless_model(), "other": endless_model()})
    engine.submit([DecodeRequest(1, "one", (BOS_ID, 5), DecodingParams(30))])
    assert [step.model for step in engine.step().steps] == ["one"] * 8
    engine.submit([DecodeRequest(2, "other", (BOS_ID, 5), DecodingParams(4))])
    turns = [[step.model for step in engine.step().steps] for _ in range(5)]
    assert turns == [["one", "other"]] * 4 + [["one"] * 8]


def test_a_revision_that_is_retired_ends_with_its_last_request() -> None:
    old, new, clock = CountingModel(), CountingModel(), ManualClock()
    engine = make_engine({"model": old}, clock=clock)
    engine.submit([counting_request(1, 4), replace(counting_request(2, 4), revision=1)])
    assert ends_of(engine.step().events)[2].reason is EndReason.FAILED  # it is not there yet
    engine.add(
        Runner("model", new, heartbeat_prompt=(FIRST,), row_budget=16, clock=clock, revision=1)
    )
    engine.submit([replace(counting_request(3, 9), revision=1)])
    engine.retire("model", 0)
    engine.retire("model", 7)
    progress = engine.step()
    assert progress.rows_running == {"model": 2}
    assert [step.model for step in progress.steps] == ["model", "model"]
    alive = weakref.ref(old)
    del old
    events = list(progress.events)
    while 1 not in ends_of(events):
        assert alive() is not None
        events += engine.step().events
    assert ends_of(events)[1].reason is EndReason.FINISHED
    assert alive() is None
    engine.submit([counting_request(4)])
    events += run_to_end(engine)
    assert ends_of(events)[3].reason is EndReason.FINISHED
    assert ends_of(events)[4].message == "the engine has no model 'model' (revision 0)"
    assert tokens_of(events, 3) == {0: list(range(5, 14))}
    engine.retire("model", 1)
    assert engine.step().rows_running == {}


def test_a_request_for_an_unknown_model_fails_alone() -> None:
    engine = make_engine({"model": CountingModel()})
    engine.submit([counting_request(1, model="modle"), counting_request(2)])
    events = run_to_end(engine)
    ends = ends_of(events)
    assert (ends[1].reason, ends[1].message) == (
        EndReason.FAILED,
        "the engine has no model 'modle' (revision 0)",
    )
    assert tokens_of(events, 2) == {0: [5, 6, 7]}
    engine.submit([counting_request(3, model="modle")])
    assert not engine.is_idle
    assert ends_of(engine.step().events).keys() == {3}
    assert engine.is_idle


def test_requests_are_cancelled_in_whatever_model_they_are() -> None:
    engine = make_engine({"one": CountingModel(), "other": CountingModel()})
    engine.submit([counting_request(1, 9, model="one"), counting_request(2, 9, model="other")])
    engine.submit([counting_request(3, 9, model="other")])
    engine.step()
    engine.cancel([2, 1, 99])
    ends = ends_of(run_to_end(engine))
    assert {number: end.reason for number, end in ends.items()} == {
        1: EndReason.CANCELLED,
        2: EndReason.CANCELLED,
        3: EndReason.FINISHED,
    }


def test_a_model_that_raises_leaves_the_others_alone() -> None:
    broken, sound = CountingModel(), CountingModel()
    engine = make_engine({"broken": broken, "sound": sound})
    engine.submit([counting_request(n, 9, model="broken", stream=True) for n in range(3)])
    engine.submit([counting_request(n, 9, model="sound", stream=True) for n in range(3, 6)])
    events = list(engine.step().events)
    broken.failure = MemoryError("boom")
    progress = engine.step()
    events += progress.events
    assert progress.rows_running == {"broken": 0, "sound": 3}
    events += run_to_end(engine)
    reasons = {number: end.reason for number, end in ends_of(events).items()}
    assert reasons == {n: EndReason.FAILED if n < 3 else EndReason.FINISHED for n in range(6)}
    for number in range(3, 6):
        assert tokens_of(events, number) == {0: list(range(5, 14))}
    assert sound.step_rows == [3] * 9


def test_a_beat_takes_a_step_of_every_model() -> None:
    models = {"one": CountingModel(), "other": CountingModel()}
    engine = make_engine(models)
    engine.beat()
    assert engine.is_idle
    assert [model.step_rows for model in models.values()] == [[1], [1]]
    models["other"].reading_failure = RuntimeError("boom")
    with pytest.raises(RuntimeError, match="boom"):
        engine.beat()


# ---------------------------------------------------------------- long prompts


def test_a_long_prompt_holds_up_nobody() -> None:
    model = make_model("embedded", "rnn", 29)
    assert isinstance(model, LanguageModel)
    with torch.no_grad():
        model.output.bias[EOS_ID] = -1e4  # nobody stops
    engine = make_engine({"model": model})
    steps = 100
    running = list(range(8))
    engine.submit([counting_request(n, 2 * steps, stream=True) for n in running])
    engine.step()
    prompt = (BOS_ID, *(4 + n % 25 for n in range(4_999)))
    engine.submit([DecodeRequest(100, "model", prompt, DecodingParams(5))])
    cells = [c.weight_ih.numel() + c.weight_hh.numel() for c in model.stack.trained_cells()]
    a_step = 2 * (len(running) + 2) * (sum(cells) + model.output.weight.numel())
    most = a_step + PIECES_PER_STEP * PIECE_POSITIONS * 2 * max(cells)
    told: dict[int, int] = {}
    for step in range(steps):
        if step == 20:
            engine.submit([counting_request(101, 2, stream=True)])
        # Counting takes longer than computing: every third step speaks for the others.
        with FlopCounterMode(display=False) if step % 3 == 0 else nullcontext() as counter:
            events = engine.step().events
        if counter is not None:
            assert 0 < counter.get_total_flops() <= most
        tokens = [event for event in events if isinstance(event, TokensEvent)]
        assert {event.request_id for event in tokens} >= set(running)
        for event in tokens:
            told.setdefault(event.request_id, step)
    assert 20 <= told[101] <= 20 + 2 * ADMISSION_INTERVAL_STEPS
    pieces = -(-len(prompt) // PIECE_POSITIONS) * len(cells)
    assert pieces / PIECES_PER_STEP <= told[100] < steps


# ---------------------------------------------------------------- the same answer at any load


@dataclass(frozen=True)
class Visit:
    """A request, when it comes, and when its client goes away, if it does; in engine steps."""

    request: DecodeRequest
    comes_at: int
    goes_at: int | None = None


@functools.cache
def served_model(form: str, vocabulary_size: int) -> StepModel:
    cell: CellName = "lstm" if form == "additive" else "gru"
    return set_precision(make_model(form, cell, vocabulary_size, sharpness=2), "int8")


def random_params(generator: random.Random, *, attention: bool) -> DecodingParams:
    length = generator.randint(1, 14)
    with_attention = attention and generator.random() < 0.5
    kind = generator.choice(["greedy", "penalised", "sampled", "sampled", "beam", "beam"])
    if kind == "greedy":
        return DecodingParams(length, return_attention=with_attention)
    if kind == "penalised":
        return DecodingParams(length, repetition_penalty=1.4, return_attention=with_attention)
    if kind == "beam":
        width = generator.choice([2, 3, 4, 4, 5, 16])
        return DecodingParams(
            length,
            beam_size=width,
            num_outputs=generator.randint(1, width),
            length_penalty=generator.choice([0.0, 0.75, 1.3]),
            return_attention=with_attention,
        )
    return DecodingParams(
        length,
        temperature=generator.choice([0.3, 1.0, 1.7]),
        top_k=generator.choice([0, 0, 5, 100]),
        top_p=generator.choice([1.0, 0.9, 0.4]),
        repetition_penalty=generator.choice([1.0, 1.0, 1.2]),
        seed=generator.randrange(2**53),
        num_outputs=generator.choice([1, 1, 2, 5]),
        return_attention=with_attention,
    )


def random_visits(generator: random.Random, count: int) -> list[Visit]:
    visits = []
    for number in range(count):
        translates = generator.random() < 0.5
        length = generator.choice([1, 2, 3, 5, 8, 13, 17, 33, 40, 70 if translates else 150])
        words = tuple(generator.randint(4, 22) for _ in range(length - 1))
        request = DecodeRequest(
            number,
            "translator" if translates else "writer",
            (*words, EOS_ID) if translates else (BOS_ID, *words),
            random_params(generator, attention=translates),
            timeout_seconds=generator.choice([1e9, 1e9, 1e9, 1e9, generator.randint(0, 20)]),
            stream=generator.random() < 0.5,
        )
        comes_at = generator.randint(0, 60)
        goes_at = comes_at + generator.randint(0, 20) if generator.random() < 0.15 else None
        visits.append(Visit(request, comes_at, goes_at))
    return visits


def serve(models: Mapping[str, StepModel], visits: Sequence[Visit]) -> dict[int, list[Event]]:
    """All that each request was told, by its id."""
    clock = ManualClock()
    engine = make_engine(models, row_budget=24, clock=clock)
    told: dict[int, list[Event]] = {visit.request.request_id: [] for visit in visits}
    last = max(visit.comes_at for visit in visits)
    for step in itertools.count():
        engine.submit([visit.request for visit in visits if visit.comes_at == step])
        engine.cancel([visit.request.request_id for visit in visits if visit.goes_at == step])
        for event in engine.step().events:
            told[event.request_id].append(event)
        clock.now += 1
        if step >= last and engine.is_idle:
            return told
    raise AssertionError


def split_end(events: Sequence[Event]) -> tuple[list[Event], EndReason]:
    """What came before the one end."""
    *tokens, end = events
    assert isinstance(end, EndEvent)
    assert all(isinstance(event, TokensEvent) for event in tokens)
    return tokens, end.reason


@settings(max_examples=3)
@given(
    seed=st.integers(0, 2**32),
    translator=st.sampled_from(["additive", "dot", "parallel dot", "context"]),
    vocabulary_size=st.sampled_from([29, 1_031]),
)
@example(seed=0, translator="parallel additive", vocabulary_size=8_003)
def test_answers_do_not_depend_on_who_shares_the_engine(
    seed: int, translator: str, vocabulary_size: int
) -> None:
    """Bit for bit: tokens, log-probabilities, attention, and how they are cut into events."""
    models = {
        "translator": served_model(translator, 29),
        "writer": served_model("embedded", vocabulary_size),
    }
    visits = random_visits(random.Random(seed), 72)
    told = serve(models, visits)
    fates = set()
    for visit in visits:
        request = visit.request
        tokens, reason = split_end(told[request.request_id])
        fates.add(reason)
        if reason is EndReason.FINISHED or tokens:
            patient = replace(request, timeout_seconds=float("inf"))
            alone, _ = split_end(serve(models, [Visit(patient, 0)])[request.request_id])
            # What was told before a request left early is the beginning of the whole.
            assert tokens == (alone if reason is EndReason.FINISHED else alone[: len(tokens)])
    assert fates == {EndReason.FINISHED, EndReason.CANCELLED, EndReason.EXPIRED}
