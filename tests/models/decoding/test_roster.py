"""Who has which row, and who is told of a step."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from models.decoding.choice import Choices
from models.decoding.draws import uniform_number
from models.decoding.params import (
    REPETITION_WINDOW,
    DecodingParams,
    Emission,
    FinishReason,
    StateReturn,
)
from models.decoding.roster import Roster, run
from models.decoding.running import Running
from models.decoding.task import DecodingTask
from models.several_steps import SearchSteps, SeveralSteps
from models.state import DecodeState
from models.tokenizers import EOS_ID


def roster_of(running: Sequence[Running]) -> Roster:
    roster = Roster()
    for one in running:
        roster.join(one)
    roster.renew(running)
    return roster


def running(params: DecodingParams, *, stream: bool = False) -> Running:
    return run(DecodingTask(0, (8, 9), params, stream), continues_prompt=True)


def choices(tokens: Sequence[int], logprob: float = -1.0) -> Choices:
    return Choices(tokens, [logprob] * len(tokens), beams=(), attention={})


def several_steps(
    tokens: Sequence[Sequence[int]], counts: Sequence[int], nan: tuple[int, int] | None = None
) -> SeveralSteps:
    """Tokens ``[K, N]`` of which each row has so many, and the place of what is no number."""
    logprobs = np.full(np.shape(tokens), -1.0, np.float32)
    if nan is not None:
        logprobs[nan] = math.nan
    rows = [sum(count > step for count in counts) for step in range(len(tokens))]
    none, no_sums = np.zeros(0, np.int64), np.zeros(0)
    nothing = SearchSteps(none, none, none, none, none, no_sums, no_sums)
    return SeveralSteps(
        np.array(tokens), logprobs, np.array(counts), np.array(rows), nothing, DecodeState(())
    )


def test_rows_are_numbered_in_order() -> None:
    every = [
        running(DecodingParams(9)),
        running(DecodingParams(9, temperature=1.0, num_outputs=3)),
        running(DecodingParams(9, beam_size=4)),
    ]
    roster = roster_of(every)
    assert [one.rows for one in every] == [range(1), range(1, 4), range(4, 5)]
    assert roster.searches == [every[2]]


def test_who_goes_on_is_left_alone() -> None:
    every = [running(DecodingParams(9)), running(DecodingParams(9, temperature=1.0, num_outputs=2))]
    roster = roster_of(every)
    assert list(roster.note(choices([5, 6, 7]))) == []
    assert list(roster.note(choices([5, 6, EOS_ID]))) == [every[1]]
    assert every[0].length == 2
    (emission,) = every[1].advance(choices([5, 6, EOS_ID]))
    assert [token.token for token in emission.tokens] == [7, EOS_ID]


@pytest.mark.parametrize(
    ("params", "stream"),
    [
        (DecodingParams(9), True),
        (DecodingParams(9, beam_size=2), False),
        (DecodingParams(9, return_attention=True), False),
        (DecodingParams(9, return_beam_trace=True), False),
        (DecodingParams(9, return_state=StateReturn.AT_END), False),
    ],
)
def test_who_wants_every_step_is_told_of_it(params: DecodingParams, stream: bool) -> None:
    quiet, watched = running(DecodingParams(9)), running(params, stream=stream)
    roster = roster_of([quiet, watched])
    assert list(roster.note(choices([5, 6]))) == [watched]
    assert list(roster.note(choices([EOS_ID, 6]))) == [watched, quiet]


@pytest.mark.parametrize(
    ("other", "stream", "are_plain"),
    [
        (DecodingParams(9), False, True),
        (DecodingParams(9, temperature=1.0, seed=1), False, True),
        (DecodingParams(9, temperature=1.0, top_p=0.9, repetition_penalty=1.5), False, True),
        (DecodingParams(9, num_outputs=2), False, True),
        (DecodingParams(9, num_outputs=2), True, False),
        (DecodingParams(9), True, False),
        (DecodingParams(9, beam_size=2), False, True),
        (DecodingParams(9, beam_size=2, return_beam_trace=True), False, True),
        (DecodingParams(9, beam_size=2, return_attention=True), False, False),
        (DecodingParams(9, beam_size=2, return_state=StateReturn.AT_END), False, False),
        (DecodingParams(9, return_attention=True), False, False),
        (DecodingParams(9, return_beam_trace=True), False, False),
        (DecodingParams(9, return_state=StateReturn.AT_END), False, False),
    ],
)
def test_several_steps_are_for_rows_of_which_nobody_wants_more_than_tokens(
    other: DecodingParams, stream: bool, are_plain: bool
) -> None:
    roster = roster_of([running(DecodingParams(9)), running(other, stream=stream)])
    assert roster.are_plain == are_plain


def test_a_stream_makes_several_steps_behind_its_first_token() -> None:
    stream, sampled = (
        running(DecodingParams(9), stream=True),
        running(DecodingParams(9, temperature=0.5, top_k=4, top_p=0.75, seed=3)),
    )
    roster = roster_of([stream, sampled])
    assert not roster.are_plain
    assert list(roster.note(choices([5, 6]))) == [stream]
    assert len(stream.advance(choices([]))) == 1
    assert roster.are_plain
    rules = roster.rules(2)
    assert rules.limits.tolist() == [8, 8]
    assert [values.tolist() for values in rules.settings] == [[0, 0.5], [0, 4], [1, 0.75], [1, 1]]
    assert rules.uniforms.tolist() == [[0, uniform_number(3, 1)], [0, uniform_number(3, 2)]]
    several = several_steps([[7, 7], [EOS_ID, 8]], [2, 2])
    assert list(roster.note_several(several)) == [stream]
    one, other = stream.advance(choices([]))
    assert [token.token for token in one.tokens] == [7]
    assert [token.token for token in other.tokens] == [EOS_ID]
    assert (one.finish_reason, other.finish_reason) == (None, FinishReason.END)


def test_a_stream_that_fails_in_several_steps_gets_what_came_before() -> None:
    stream = running(DecodingParams(9), stream=True)
    roster = roster_of([stream])
    roster.note(choices([5]))
    stream.advance(choices([]))
    several = several_steps([[6], [7], [8]], [3], nan=(2, 0))
    assert list(roster.note_several(several)) == [stream]
    told = stream.advance(choices([]))
    assert [[token.token for token in emission.tokens] for emission in told] == [[6], [7]]
    assert all(emission.finish_reason is None for emission in told)
    assert stream.failure


def told_tokens(emissions: Sequence[Emission]) -> list[tuple[int, list[int]]]:
    return [(one.output_index, [token.token for token in one.tokens]) for one in emissions]


def test_outputs_of_a_stream_are_told_step_by_step() -> None:
    stream = running(DecodingParams(9, temperature=1.0, num_outputs=2), stream=True)
    roster = roster_of([stream])
    roster.note(choices([5, 6]))
    stream.advance(choices([]))
    several = several_steps([[7, 8], [9, EOS_ID], [10, 0]], [3, 2])
    assert list(roster.note_several(several)) == [stream]
    told = stream.advance(choices([]))
    assert told_tokens(told) == [(0, [7]), (1, [8]), (0, [9]), (1, [EOS_ID]), (0, [10])]
    assert [one.finish_reason for one in told] == [None] * 3 + [FinishReason.END, None]
    assert stream.row_count == 1


@pytest.mark.parametrize("stream", [True, False])
def test_an_output_that_fails_in_several_steps_takes_the_others_with_it(stream: bool) -> None:
    """What was settled before is told, as if the steps had been made one by one."""
    params = DecodingParams(9, temperature=1.0, num_outputs=3)
    one = running(params, stream=stream)
    roster = roster_of([one])
    roster.note(choices([5, 5, 5]))
    one.advance(choices([]))
    several = several_steps([[6, 7, EOS_ID], [8, 9, 0], [0, EOS_ID, 0]], [2, 3, 1], nan=(1, 0))
    assert list(roster.note_several(several)) == [one]
    told = told_tokens(one.advance(choices([])))
    assert told == ([(0, [6]), (1, [7]), (2, [EOS_ID])] if stream else [(2, [5, EOS_ID])])
    assert one.failure
    assert one.row_count == 0


def test_who_has_a_penalty_sees_the_last_of_prompt_and_output() -> None:
    one = running(DecodingParams(900, repetition_penalty=1.5))
    roster = roster_of([running(DecodingParams(9)), one])
    for step in range(REPETITION_WINDOW):
        rules = roster.rules(3)
        starts, counts, tokens = rules.seen
        assert counts[0] == 0
        text = [8, 9, *(10 + before for before in range(step))][-REPETITION_WINDOW:]
        assert tokens[starts[1] : starts[1] + counts[1]].tolist() == text
        assert len(tokens) - starts[1] == len(text) + 3, "room for three more"
        roster.note(choices([5, 10 + step]))


def test_of_several_steps_those_are_told_who_ended() -> None:
    every = [running(DecodingParams(limit)) for limit in (9, 9, 2, 9)]
    roster = roster_of(every)
    tokens = [[5, 6, 7, 8], [5, EOS_ID, 7, 8], [5, 0, 0, 0]]
    several = several_steps(tokens, [3, 2, 2, 2], nan=(1, 3))
    told = list(roster.note_several(several))
    assert told == every[1:]
    assert [one.length for one in every] == [3, 2, 2, 2]
    (emission,) = every[1].advance(choices([]))
    assert [token.token for token in emission.tokens] == [6, EOS_ID]
    assert every[3].advance(choices([])) == []
    assert every[3].failure


def test_steps_that_are_made_at_once_count_to_the_limit() -> None:
    one = running(DecodingParams(4))
    roster = roster_of([one])
    assert list(roster.note_several(several_steps([[5], [6], [7]], [3]))) == []
    assert list(roster.note(choices([8]))) == [one]


def test_all_are_told_at_the_first_limit() -> None:
    short, long = running(DecodingParams(2)), running(DecodingParams(3))
    roster = roster_of([long, short])
    assert list(roster.note(choices([5, 5]))) == []
    told = list(roster.note(choices([6, 6])))
    assert told == [long, short]
    assert [len(one.advance(choices([6, 6]))) for one in told] == [0, 1]
    assert long.stays
    assert not short.stays


def test_all_are_told_where_something_is_no_number() -> None:
    every = [running(DecodingParams(9)), running(DecodingParams(9))]
    roster = roster_of(every)
    bad = Choices([5, 6], [-1.0, math.nan], beams=(), attention={})
    assert list(roster.note(bad)) == every
    for one in every:
        one.advance(bad)
    assert [bool(one.failure) for one in every] == [False, True]


def test_who_leaves_is_told_of_nothing_more() -> None:
    every = [
        running(DecodingParams(9)),
        running(DecodingParams(9, beam_size=2)),
        running(DecodingParams(9)),
    ]
    roster = roster_of(every)
    every[1].drop()
    stay = [every[2], every[0]]  # which takes the place of the one that left
    roster.renew(stay)
    assert [one.rows for one in stay] == [range(1), range(1, 2)]
    assert roster.searches == []
    assert list(roster.note(choices([EOS_ID, 5]))) == [every[2]]
    assert [one.length for one in stay] == [1, 1]


def test_who_joins_later_reaches_its_limit_later() -> None:
    first, second = running(DecodingParams(3)), running(DecodingParams(3))
    roster = roster_of([first])
    roster.note(choices([5]))
    roster.join(second)
    roster.renew([first, second])
    assert list(roster.note(choices([5, 5]))) == []
    assert list(roster.note(choices([5, 5]))) == [first, second]
    assert [len(one.advance(choices([5, 5]))) for one in (first, second)] == [1, 0]
    roster.renew([second])
    assert list(roster.note(choices([5]))) == [second]
    assert second.advance(choices([5]))
