"""A step in few kernels has the bits of the step of the modules."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.config import LanguageModelConfig, Seq2SeqConfig
from models.decoding import outputs, roster, running
from models.decoding.beam import LiveBeams, searches_ahead
from models.decoding.choice import RowKinds, choose
from models.decoding.corpus import decode_corpus
from models.decoding.params import DecodingParams, Emission
from models.decoding.sampling import NEVER_CHOSEN, joined, settings_of
from models.decoding.step import BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import StepModel, StepOutput, read_at_once
from models.language_model import LanguageModel
from models.precision import set_precision
from models.quantization import quantize
from models.seq2seq import ParallelAttentionDecoder, Seq2Seq
from models.several_steps import Rules, SeveralSteps, whole_step_of
from models.state import DecodeState, join_memories
from models.tokenizers import EOS_ID
from tests.models.teams import team_of

PROMPTS = [
    [5, 6, 7, 2],
    [8, 2],
    [9, 4] * 12 + [2],
    [7] * 40 + [2],
    *([4 + n, 5, 2] for n in range(14)),
]
FORMS: list[dict[str, Any]] = [
    {},
    {"decoder_layers": 3},
    {"attention": "additive", "tie_embeddings": True},
    {"bidirectional_encoder": False, "tie_embeddings": True, "hidden_size": 26},
]


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with team_of(request.param):
        yield


def make_model(form: dict[str, Any]) -> Seq2Seq:
    torch.manual_seed(0)
    settings = {
        "source_vocabulary_size": 29,
        "target_vocabulary_size": 29,
        "embedding_size": 12,
        "hidden_size": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "decoder": "parallel_attention",
        "attention": "dot",
        **form,
    }
    model = Seq2Seq(Seq2SeqConfig.model_validate(settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def both(form: dict[str, Any]) -> tuple[Seq2Seq, Seq2Seq]:
    """The model whose modules step, and the one with the whole step."""
    modules, whole = make_model(form), set_precision(make_model(form), "int8")
    quantize(modules)
    return modules, whole


def both_language_models(cell: str, **settings: object) -> tuple[LanguageModel, LanguageModel]:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        values = {"vocabulary_size": 29, "hidden_size": 30, "num_layers": 2, "cell": cell}
        config = LanguageModelConfig.model_validate({**values, **settings})
        models.append(LanguageModel(config).eval())
    modules, whole = models
    quantize(modules)
    return modules, set_precision(whole, "int8")


PAIRS: list[Callable[[], tuple[StepModel, StepModel]]] = [
    *(partial(both, form) for form in FORMS),
    partial(both_language_models, "gru"),
    partial(both_language_models, "gru", embedding_size=13, num_layers=1),
    partial(both_language_models, "lstm", num_layers=3),
    partial(both_language_models, "lstm", embedding_size=32, hidden_size=32),
]


def parts_of(output: StepOutput) -> list[torch.Tensor]:
    layers = [part for layer in output.state.layers for part in layer]
    attention = [] if output.attention is None else [output.attention]
    return [output.logits, *attention, *layers]


@pytest.mark.parametrize("make_both", PAIRS)
@torch.inference_mode()
def test_a_step_has_the_same_bits(make_both: Callable[[], tuple[StepModel, StepModel]]) -> None:
    modules, whole = make_both()
    tokens, expected = read_at_once(modules, PROMPTS)
    state = read_at_once(whole, PROMPTS)[1]
    for _ in range(3):
        one, other = modules.step(tokens, expected), whole.step(tokens, state)
        pairs = zip(parts_of(other), parts_of(one), strict=True)
        assert all(torch.equal(found, wanted) for found, wanted in pairs)
        tokens, expected, state = (tokens * 7 + 3) % 29, one.state, other.state


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("make_both", PAIRS)
def test_whole_decodings_are_the_same(
    make_both: Callable[[], tuple[StepModel, StepModel]], beam_size: int
) -> None:
    modules, whole = make_both()
    params = DecodingParams(11, beam_size=beam_size)
    assert dict(decode_corpus(whole, PROMPTS, params)) == dict(
        decode_corpus(modules, PROMPTS, params)
    )


@torch.inference_mode()
def test_a_step_leaves_the_state_before_it_alone() -> None:
    _, whole = both({})
    tokens, state = read_at_once(whole, PROMPTS)
    kept = [part.clone() for layer in state.layers for part in layer]
    whole.step(tokens, state)
    parts = (part for layer in state.layers for part in layer)
    assert all(torch.equal(part, before) for part, before in zip(parts, kept, strict=True))


# ---------------------------------------------------------------- several steps at once

STOPS, GOES_ON = np.ones(1, np.int64), np.zeros(1, np.int64)


def greedy_rules(limits: Sequence[int]) -> Rules:
    settings = settings_of([DecodingParams(1)] * len(limits))
    uniforms = np.zeros((40, len(limits)))
    nothing = joined([()] * len(limits))
    no_searches = searches_ahead(LiveBeams(), [], 40)
    return Rules(
        NEVER_CHOSEN, EOS_ID, np.array(limits), settings, nothing, 0, uniforms, no_searches
    )


@torch.inference_mode()
def decode_several(
    model: StepModel, limits: Sequence[int], steps: int, stop: NDArray[np.int64] = GOES_ON
) -> SeveralSteps:
    tokens, state = read_at_once(model, PROMPTS[: len(limits)])
    rules = greedy_rules(limits)
    whole_step = whole_step_of(model)
    assert whole_step is not None
    assert whole_step.can_decode(state)
    return whole_step.decode(tokens, state, rules, steps, stop.ctypes.data)


@torch.inference_mode()
def decode_by_steps(
    model: StepModel, limits: Sequence[int], steps: int
) -> tuple[list[list[tuple[int, float]]], DecodeState]:
    """What each row chooses, and the state after all steps, in which rows stay that have ended."""
    tokens, state = read_at_once(model, PROMPTS[: len(limits)])
    chosen: list[list[tuple[int, float]]] = [[] for _ in limits]
    for _ in range(steps):
        output = model.step(tokens, state)
        choices = choose(output.logits, None, RowKinds())
        for row, pair in enumerate(zip(choices.tokens, choices.logprobs, strict=True)):
            last = chosen[row][-1:]
            if len(chosen[row]) < limits[row] and not (last and last[0][0] == EOS_ID):
                chosen[row].append(pair)
        tokens, state = torch.tensor(choices.tokens), output.state
    return chosen, state


def rows_of(several: SeveralSteps) -> list[list[tuple[int, float]]]:
    columns = zip(several.tokens.T.tolist(), several.logprobs.T.tolist(), strict=True)
    pairs = zip(columns, several.counts.tolist(), strict=True)
    return [list(zip(*column, strict=True))[:count] for column, count in pairs]


SEVERAL: list[Callable[[], tuple[StepModel, StepModel]]] = [
    partial(both, {}),
    partial(both, {"decoder_layers": 3}),
    partial(both, {"bidirectional_encoder": False, "tie_embeddings": True, "hidden_size": 26}),
    partial(both_language_models, "gru"),
    partial(both_language_models, "lstm", num_layers=3),
]


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("make_both", SEVERAL)
@torch.inference_mode()
def test_several_steps_have_the_bits_of_each(
    make_both: Callable[[], tuple[StepModel, StepModel]], steps: int
) -> None:
    """Rows at their limit and rows that choose the last token leave, and disturb nobody."""
    _, whole = make_both()
    limits = [(5 * row) % 9 + 1 for row in range(len(PROMPTS))]
    expected, state = decode_by_steps(whole, limits, steps)
    several = decode_several(whole, limits, steps)
    assert rows_of(several) == expected
    going_on = [
        row
        for row, chosen in enumerate(expected)
        if len(chosen) < limits[row] and chosen[-1][0] != EOS_ID
    ]
    for layer, before in zip(several.state.layers, state.layers, strict=True):
        for part, wanted in zip(layer, before, strict=True):
            assert torch.equal(part[going_on], wanted[going_on])


@pytest.mark.parametrize("make_both", SEVERAL[::3])
@torch.inference_mode()
def test_several_steps_of_rows_that_sample_have_the_bits_of_each(
    make_both: Callable[[], tuple[StepModel, StepModel]],
) -> None:
    """Each by its own settings, random numbers and text, beside greedy ones; some leave."""
    _, whole = make_both()
    tasks = [
        DecodingTask(
            key,
            PROMPTS[key],
            DecodingParams(
                3 + 4 * (key % 3),
                temperature=(0.0, 0.8, 1.5)[key % 3],
                top_k=(0, 3, 0)[key % 3],
                top_p=(1.0, 1.0, 0.8)[key % 3],
                repetition_penalty=(1.0, 1.3)[key % 2],
                num_outputs=1 + (key % 5) // 3,
                seed=key,
            ),
            stream=key % 2 == 1,
        )
        for key in range(len(PROMPTS))
    ]

    def decode(max_steps: int) -> tuple[dict[int, list[Emission]], int]:
        decoder, calls = BatchedDecoder(whole), 0
        decoder.admit(tasks)
        told: dict[int, list[Emission]] = {task.key: [] for task in tasks}
        while decoder.rows:
            calls += 1
            for key, emissions in decoder.step(max_steps).emissions.items():
                told[key] += emissions
        return told, calls

    (single, many), (several, few) = decode(1), decode(6)
    assert repr(several) == repr(single)
    assert few < many


SEARCHES = [
    DecodingParams(
        1 + (5 * key) % 13,
        beam_size=2 + key % 5,
        num_outputs=1 + key % 2,
        length_penalty=(0.75, 0.0, 2.0)[key // 3 % 3],
        return_beam_trace=key % 4 == 1,
    )
    for key in range(len(PROMPTS))
]
COMPANY = [
    DecodingParams(9),
    DecodingParams(12, temperature=1.2, repetition_penalty=1.3, num_outputs=2, seed=3),
]


@pytest.mark.parametrize("steps", [2, 5, 8])
@pytest.mark.parametrize("company", [[], COMPANY])
@pytest.mark.parametrize("make_both", SEVERAL)
@torch.inference_mode()
def test_several_steps_of_searches_have_the_bits_of_each(
    make_both: Callable[[], tuple[StepModel, StepModel]],
    company: Sequence[DecodingParams],
    steps: int,
) -> None:
    """Of all widths, scores and limits; rows join, change places and leave."""
    _, whole = make_both()
    each = [*SEARCHES[: len(SEARCHES) - len(company)], *company]

    def decode(max_steps: int) -> tuple[dict[int, list[str]], int]:
        decoder, calls = BatchedDecoder(whole), 0
        order = sorted(range(len(each)), key=lambda key: key * 7 % len(each))
        decoder.admit([DecodingTask(key, PROMPTS[key], each[key]) for key in order[4:]])
        told: dict[int, list[str]] = {key: [] for key in range(len(each))}
        while decoder.rows:
            if calls == 1:  # who joins beside those that run, and who goes
                decoder.admit([DecodingTask(key, PROMPTS[key], each[key]) for key in order[:4]])
            calls += 1
            result = decoder.step(max_steps)
            for key, emissions in result.emissions.items():
                told[key] += map(repr, emissions)
            for key, trace in result.traces.items():
                told[key].append(repr(trace))
            assert not result.failed
        return told, calls

    (single, many), (several, few) = decode(1), decode(steps)
    assert several == single
    assert few < many


@torch.inference_mode()
def test_searches_that_grow_choose_no_more_tokens_than_they_may() -> None:
    _, whole = both({})
    decoder = BatchedDecoder(whole)
    decoder.admit(
        [DecodingTask(key, PROMPTS[key], DecodingParams(30, beam_size=8)) for key in (0, 1)]
    )
    result = decoder.step(8, 70)
    assert result.rows[0] == 2
    assert len(result.rows) == 4
    assert sum(result.rows) <= 70


@pytest.mark.parametrize(
    "params",
    [
        DecodingParams(8),
        DecodingParams(8, beam_size=4),
        DecodingParams(8, temperature=1.0, num_outputs=3),
    ],
)
@torch.inference_mode()
def test_positions_that_are_attended_are_as_many_in_several_steps(params: DecodingParams) -> None:
    _, whole = both({})
    found = []
    for steps in (1, 8):
        decoder, positions = BatchedDecoder(whole), 0
        decoder.admit([DecodingTask(key, PROMPTS[key], params) for key in range(5)])
        while decoder.rows:
            positions += decoder.step(steps).positions_attended
        found.append(positions)
    assert found[0] == found[1] > 0


@torch.inference_mode()
def test_the_text_that_is_looked_back_at_moves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (outputs, roster, running):
        monkeypatch.setattr(module, "REPETITION_WINDOW", 5)
    _, whole = both_language_models("gru")
    params = DecodingParams(20, repetition_penalty=4.0)
    found = []
    for steps in (1, 8):
        decoder = BatchedDecoder(whole)
        decoder.admit([DecodingTask(0, PROMPTS[0], params)])
        while decoder.rows:
            result = decoder.step(steps)
        found.append(result.emissions[0])
    assert found[0] == found[1]
    (emission,) = found[0]
    tokens = [token.token for token in emission.tokens]
    assert any(token in tokens[:place] for place, token in enumerate(tokens)), "none comes again"


def test_several_steps_end_with_the_last_row() -> None:
    _, whole = both({})
    several = decode_several(whole, [2, 3], 40)
    assert max(several.counts) <= 3
    assert all(1 <= count <= limit for count, limit in zip(several.counts, [2, 3], strict=True))


def test_several_steps_end_when_there_are_news() -> None:
    _, whole = both_language_models("gru")
    assert decode_several(whole, [9, 9], 5, STOPS).counts.tolist() == [1, 1]


@torch.inference_mode()
def test_a_row_of_no_numbers_ends_and_others_do_not_notice() -> None:
    _, whole = both_language_models("gru")
    tokens, state = read_at_once(whole, PROMPTS)
    expected = decode_by_steps(whole, [5] * len(PROMPTS), 5)[0]
    state.layers[0][0][3] = float("nan")
    rules = greedy_rules([5] * len(PROMPTS))
    whole_step = whole_step_of(whole)
    assert whole_step is not None
    found = rows_of(whole_step.decode(tokens, state, rules, 5, GOES_ON.ctypes.data))
    assert len(found[3]) == 1
    assert math.isnan(found[3][0][1])
    assert found[:3] + found[4:] == expected[:3] + expected[4:]


@torch.inference_mode()
def test_several_steps_leave_the_state_before_them_alone() -> None:
    for whole in (both({})[1], both_language_models("lstm")[1]):
        tokens, state = read_at_once(whole, PROMPTS)
        kept = [part.clone() for layer in state.layers for part in layer]
        rules = greedy_rules([5] * len(PROMPTS))
        whole_step = whole_step_of(whole)
        assert whole_step is not None
        whole_step.decode(tokens, state, rules, 5, GOES_ON.ctypes.data)
        parts = (part for layer in state.layers for part in layer)
        assert all(torch.equal(part, before) for part, before in zip(parts, kept, strict=True))
        assert tokens.tolist() == read_at_once(whole, PROMPTS)[0].tolist()


@torch.inference_mode()
def test_who_makes_no_several_steps() -> None:
    """Additive attention, sources of several sizes, and whatever has no whole step."""
    _, additive = both({"attention": "additive"})
    whole_step = whole_step_of(additive)
    assert whole_step is not None
    assert not whole_step.can_decode(read_at_once(additive, PROMPTS)[1])
    _, dot = both({})
    state = read_at_once(dot, PROMPTS[:1])[1]
    whole_step = whole_step_of(dot)
    assert whole_step is not None
    assert whole_step.can_decode(state)
    assert state.memory is not None
    memory = join_memories([state.memory, state.memory])
    assert not whole_step.can_decode(DecodeState(state.layers, None, memory))
    assert whole_step_of(both({"cell": "lstm"})[1]) is None


# ---------------------------------------------------------------- who does


@torch.inference_mode()
def test_who_makes_whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders of GRU cells with attention between them."""

    def refuse(*_: object) -> StepOutput:
        raise AssertionError

    _, whole = both({})
    decoder = whole.decoder
    assert isinstance(decoder, ParallelAttentionDecoder)
    assert decoder.whole_step is not None
    monkeypatch.setattr(decoder, "whole_step", refuse)
    tokens, state = read_at_once(whole, PROMPTS)
    with pytest.raises(AssertionError):
        whole.step(tokens, state)
    for form in ({"cell": "lstm"}, {"cell": "gru_textbook", "implementation": "equations"}):
        other = both(form)[1].decoder
        assert isinstance(other, ParallelAttentionDecoder)
        assert other.whole_step is None


@torch.inference_mode()
def test_which_language_models_make_whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of GRU and LSTM cells that generate text."""
    for cell in ("gru", "lstm"):
        _, whole = both_language_models(cell)
        tokens, state = read_at_once(whole, [[1, 5], [1]])
        expected = whole.step(tokens, state).logits
        monkeypatch.setattr(whole.stack, "step", None)
        assert torch.equal(whole.step(tokens, state).logits, expected)
    for cell, settings in (("rnn", {}), ("gru_textbook", {}), ("gru", {"bidirectional": True})):
        assert (
            both_language_models(cell, implementation="equations", **settings)[1].whole_step is None
        )
