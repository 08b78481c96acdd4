"""One request in the batch, of outputs or a search, fed with choices written by hand."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from models.decoding.beam import BeamStep, LiveBeams, expand
from models.decoding.choice import Choices, RowKinds
from models.decoding.draws import uniform_number
from models.decoding.params import (
    REPETITION_WINDOW,
    DecodingParams,
    Emission,
    FinishReason,
    GeneratedToken,
    SavedState,
)
from models.decoding.roster import run
from models.decoding.running import Running
from models.decoding.searching import RunningSearch
from models.decoding.task import DecodingTask
from models.tokenizers import EOS_ID

FIRST = 10
"""Where the request's rows begin in the batch: others stand before them."""


def start(
    params: DecodingParams, *, stream: bool = False, continues_prompt: bool = True
) -> Running:
    task = DecodingTask(3, (1, 8, 9), params, stream)
    running = run(task, continues_prompt)
    running.place(FIRST)
    return running


def chosen(
    tokens: Sequence[int],
    attention: Sequence[Sequence[float]] = (),
    logprob: float | None = None,
) -> Choices:
    """Tokens of the request's rows, each with a log-probability of its own or all with this."""
    others = [0] * FIRST
    return Choices(
        tokens=[*others, *tokens],
        logprobs=[0.0] * FIRST
        + [-float(token) if logprob is None else logprob for token in tokens],
        beams=(),
        attention=dict(enumerate(attention, start=FIRST)),
    )


def tell(running: Running, choices: Choices) -> list[Emission]:
    """Number the rows, note these choices, as the roster does, and advance by them."""
    running.place(FIRST)
    for row, history in zip(running.rows, running.histories, strict=True):
        history.append((choices.tokens[row], choices.logprobs[row]))
    return running.advance(choices)


def offer(running: Running, rows: Sequence[Mapping[int, float]]) -> list[Emission]:
    """Advance by these candidates of the request's rows, best first."""
    kinds = RowKinds(beams=LiveBeams([0], [-1.0], [1], [2]))  # another search comes before
    running.place(FIRST)
    running.describe_rows(kinds)
    every = [dict.fromkeys(range(len(rows[0])), -1.0), *rows]
    tokens = np.array([list(row) for row in every])
    logprobs = np.array([list(row.values()) for row in every], np.float32)
    steps = expand(kinds.beams, tokens, logprobs)
    return running.advance(
        Choices(tokens=[], logprobs=[], beams=[[step] for step in steps], attention={})
    )


def inputs_of(running: Running) -> list[int]:
    return running.inputs if isinstance(running, RunningSearch) else []


def made(*tokens: int) -> tuple[GeneratedToken, ...]:
    return tuple(GeneratedToken(token, -float(token)) for token in tokens)


# ---------------------------------------------------------------- greedy and sampled outputs


def test_a_stream_tells_every_token() -> None:
    running = start(DecodingParams(3), stream=True)
    assert tell(running, chosen([5])) == [Emission(0, made(5), None)]
    assert running.parents == [FIRST]
    assert running.stays
    assert tell(running, chosen([6])) == [Emission(0, made(6), None)]
    assert tell(running, chosen([7])) == [Emission(0, made(7), FinishReason.LENGTH)]
    assert running.row_count == 0


def test_without_a_stream_an_output_is_told_as_a_whole() -> None:
    running = start(DecodingParams(9))
    assert tell(running, chosen([5])) == []
    assert tell(running, chosen([6])) == []
    assert tell(running, chosen([EOS_ID])) == [Emission(0, made(5, 6, 2), FinishReason.END)]
    assert running.row_count == 0


@pytest.mark.parametrize("stream", [False, True])
def test_outputs_leave_one_by_one(stream: bool) -> None:
    running = start(DecodingParams(3, temperature=1.0, num_outputs=3), stream=stream)
    assert running.reserved_rows == 3
    first = tell(running, chosen([5, EOS_ID, 7]))
    assert Emission(1, made(2), FinishReason.END) in first
    assert running.parents == [FIRST, FIRST + 2]
    assert not running.stays
    assert running.reserved_rows == 2
    second = tell(running, chosen([EOS_ID, 8]))
    assert second[0] == Emission(0, made(2) if stream else made(5, 2), FinishReason.END)
    assert running.parents == [FIRST + 1]
    (last,) = tell(running, chosen([9]))
    assert last == Emission(2, made(9) if stream else made(7, 8, 9), FinishReason.LENGTH)
    assert running.reserved_rows == 0


def test_attention_behind_the_source_is_cut_off() -> None:
    running = start(DecodingParams(2, return_attention=True))
    tell(running, chosen([5], [[0.5, 0.25, 0.25, 0.0, 0.0]]))
    (emission,) = tell(running, chosen([6], [[0.0, 0.0, 1.0, 0.0]]))
    assert [token.attention for token in emission.tokens] == [(0.5, 0.25, 0.25), (0.0, 0.0, 1.0)]


def test_a_stream_tells_each_tokens_attention_once() -> None:
    running = start(DecodingParams(3, return_attention=True), stream=True)
    for weights in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]):
        ((_, (token,), _, _),) = tell(running, chosen([5], [weights]))
        assert token.attention == tuple(weights)


def seen_by(running: Running) -> list[int]:
    """The text that the next token of the request's only row is chosen behind."""
    kinds = RowKinds()
    running.describe_rows(kinds)
    return list(kinds.special[FIRST].seen)


def test_a_penalty_looks_at_the_end_of_the_text_only() -> None:
    prompt = range(1_000, 1_000 + REPETITION_WINDOW)
    running = run(DecodingTask(3, prompt, DecodingParams(9, repetition_penalty=1.4)), True)
    running.place(FIRST)
    assert seen_by(running) == list(prompt)
    tell(running, chosen([5]))
    assert seen_by(running) == [*prompt[1:], 5]


def test_a_text_that_goes_on_has_each_token_of_its_window_once() -> None:
    resume = SavedState(b"", window=(7, 8, 9), position=4)
    params = DecodingParams(9, repetition_penalty=1.4)
    running = run(DecodingTask(3, (9, 5), params, resume=resume), True)
    running.place(FIRST)
    assert seen_by(running) == [7, 8, 9, 5]


def test_what_is_no_number_ends_the_request() -> None:
    running = start(DecodingParams(5, temperature=1.0, num_outputs=2))
    assert tell(running, chosen([5, 6], logprob=math.nan)) == []
    assert_failed(running)


@pytest.mark.parametrize("candidates", [{5: math.nan, 6: math.nan}, {0: -math.inf, 1: -math.inf}])
def test_what_is_no_number_ends_a_search(candidates: Mapping[int, float]) -> None:
    running = start(DecodingParams(5, beam_size=2))
    assert offer(running, [candidates]) == []
    assert_failed(running)


def assert_failed(running: Running) -> None:
    assert running.failure == "the model's probabilities are not numbers"
    assert running.row_count == 0
    assert running.parents == inputs_of(running) == []


def test_one_hypothesis_that_is_no_number_ends_the_whole_search() -> None:
    running = start(DecodingParams(5, beam_size=2))
    offer(running, [{5: -1.0, 6: -2.0}])
    assert not running.failure
    assert offer(running, [{7: -1.0, 8: -1.0}, {8: math.nan, 9: math.nan}]) == []
    assert running.failure


# ---------------------------------------------------------------- what rows need


def kinds_of(running: Running) -> RowKinds:
    kinds = RowKinds()
    running.place(FIRST)
    running.describe_rows(kinds)
    return kinds


def test_a_greedy_row_needs_nothing() -> None:
    assert kinds_of(start(DecodingParams(3))) == RowKinds()


def test_sampled_rows_need_a_number_each() -> None:
    params = DecodingParams(9, temperature=1.0, seed=41, num_outputs=3)
    running = start(params)
    tell(running, chosen([5, EOS_ID, 7]))
    needs = kinds_of(running).special
    assert {row: need.uniforms for row, need in needs.items()} == {
        FIRST: [uniform_number(41, 1)],
        FIRST + 1: [uniform_number(43, 1)],  # of output 2, which has moved up
    }
    assert all(need.params is params for need in needs.values())


@pytest.mark.parametrize(("continues_prompt", "before"), [(True, [1, 8, 9]), (False, [])])
def test_a_penalty_needs_the_text(continues_prompt: bool, before: list[int]) -> None:
    params = DecodingParams(9, repetition_penalty=1.2, num_outputs=2)
    running = start(params, continues_prompt=continues_prompt)
    tell(running, chosen([5, 6]))
    tell(running, chosen([7, 7]))
    needs = kinds_of(running).special
    assert {row: list(need.seen) for row, need in needs.items()} == {
        FIRST: [*before, 5, 7],
        FIRST + 1: [*before, 6, 7],
    }


def test_beam_rows_need_as_many_candidates_as_the_beam_is_wide() -> None:
    running = start(DecodingParams(9, beam_size=3, return_attention=True))
    assert kinds_of(running) == RowKinds(
        beams=LiveBeams([FIRST], [0.0], [1], [3]), attended=[FIRST]
    )
    offer(running, [{5: -1.0, 6: -2.0, 7: -3.0}])
    kinds = RowKinds(beams=LiveBeams([0], [-9.0], [1], [8]))
    running.place(FIRST)
    running.describe_rows(kinds)
    assert kinds.beams == LiveBeams(
        [0, FIRST, FIRST + 1, FIRST + 2], [-9.0, -1.0, -2.0, -3.0], [1, 3], [8, 3]
    )
    assert kinds.beams.width == 8


# ---------------------------------------------------------------- beams


def test_a_beam_by_hand() -> None:
    running = start(DecodingParams(3, beam_size=2, num_outputs=2, length_penalty=0.0))
    assert running.reserved_rows == 2
    assert offer(running, [{5: -0.5, 6: -1.0}]) == []
    assert (running.parents, inputs_of(running)) == ([FIRST, FIRST], [5, 6])
    # The second hypothesis ends at -1.125; the first goes on at -1.5.
    assert offer(running, [{7: -1.0, 8: -2.0}, {EOS_ID: -0.125, 8: -3.0}]) == []
    assert (running.parents, inputs_of(running)) == ([FIRST], [7])
    assert running.reserved_rows == 1
    best, second = offer(running, [{9: -0.25, 4: -9.0}])
    assert (best.output_index, best.finish_reason) == (0, FinishReason.END)
    assert best.tokens == (GeneratedToken(6, -1.0), GeneratedToken(EOS_ID, -0.125))
    assert (second.output_index, second.finish_reason) == (1, FinishReason.LENGTH)
    assert [token.token for token in second.tokens] == [5, 7, 9]
    assert running.row_count == 0


def test_several_steps_of_a_beam_by_hand() -> None:
    running = start(DecodingParams(9, beam_size=2))
    running.describe_rows(RowKinds())
    first = BeamStep([0, 0], [5, 6], [-1.0, -2.0], [-1.0, -2.0])
    second = BeamStep([1, 1], [7, EOS_ID], [-0.1, -0.2], [-2.1, -2.2])
    choices = Choices([], [], beams=[[first, second]], attention={}, places=[range(30, 31)])
    assert running.advance(choices) == []
    assert (running.row_count, running.parents) == (1, range(30, 31))
    assert inputs_of(running) == [7]
    assert running.length == 2


def test_a_search_that_others_went_on_with_otherwise_is_a_fault() -> None:
    running = start(DecodingParams(9, beam_size=2))
    running.describe_rows(RowKinds())
    step = BeamStep([0, 0], [5, EOS_ID], [-1.0, -2.0], [-1.0, -2.0])
    choices = Choices([], [], beams=[[step]], attention={}, places=[range(30, 32)])
    with pytest.raises(RuntimeError, match="otherwise"):
        running.advance(choices)


def test_a_beam_stops_when_none_can_win_any_more() -> None:
    running = start(DecodingParams(100, beam_size=2, length_penalty=0.0))
    (emission,) = offer(running, [{EOS_ID: -0.125, 5: -2.5}])
    assert emission == Emission(0, (GeneratedToken(EOS_ID, -0.125),), FinishReason.END)
    assert running.row_count == 0


def test_a_search_stays_where_each_hypothesis_goes_on_in_its_row() -> None:
    running = start(DecodingParams(9, beam_size=2))
    offer(running, [{5: -1.0, 6: -2.0}])
    assert not running.stays
    offer(running, [{7: -1.0, 8: -9.0}, {7: -1.0, 8: -9.0}])
    assert (running.parents, inputs_of(running)) == ([FIRST, FIRST + 1], [7, 7])
    assert running.stays
    offer(running, [{7: -9.0, 8: -9.0}, {7: -1.0, 8: -9.5}])
    assert (running.parents, inputs_of(running)) == ([FIRST + 1, FIRST], [7, 7])
    assert not running.stays


def test_rows_that_are_numbered_anew() -> None:
    running = start(DecodingParams(9, temperature=1.0, num_outputs=2))
    tell(running, chosen([5, 6]))
    running.place(4)
    assert running.rows == running.parents == range(4, 6)
    running.drop()
    assert running.row_count == 0
    assert list(running.parents) == inputs_of(running) == []


def test_a_dropped_task_takes_no_rows() -> None:
    task = DecodingTask(3, (1,), DecodingParams(9, beam_size=4, num_outputs=2))
    assert (task.rows, task.first_rows) == (4, 1)
    assert task.dropped().rows == 0
    assert task.dropped().key != 3
    sampled = DecodingTask(3, (1,), DecodingParams(9, temperature=1.0, num_outputs=3))
    assert (sampled.rows, sampled.first_rows) == (3, 3)
