"""Who has which row, and who is told of a step."""

import math
from collections.abc import Sequence

import pytest

from models.decoding.choice import Choices
from models.decoding.params import DecodingParams, StateReturn
from models.decoding.roster import Roster
from models.decoding.running import DecodingTask, Running
from models.tokenizers import EOS_ID


def running(params: DecodingParams, *, stream: bool = False) -> Running:
    return Running(DecodingTask(0, (8, 9), params, stream), continues_prompt=True)


def choices(tokens: Sequence[int], logprob: float = -1.0) -> Choices:
    return Choices(tokens, [logprob] * len(tokens), beams=(), attention={})


def test_rows_are_numbered_in_order() -> None:
    every = [
        running(DecodingParams(9)),
        running(DecodingParams(9, temperature=1.0, num_outputs=3)),
        running(DecodingParams(9, beam_size=4)),
    ]
    roster = Roster(every)
    assert [one.rows for one in every] == [range(1), range(1, 4), range(4, 5)]
    assert roster.rows == 5
    assert roster.searches == [every[2]]


def test_who_goes_on_is_left_alone() -> None:
    every = [running(DecodingParams(9)), running(DecodingParams(9, temperature=1.0, num_outputs=2))]
    roster = Roster(every)
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
        (DecodingParams(9, repetition_penalty=1.5), False),
        (DecodingParams(9, return_state=StateReturn.AT_END), False),
    ],
)
def test_who_wants_every_step_is_told_of_it(params: DecodingParams, stream: bool) -> None:
    quiet, watched = running(DecodingParams(9)), running(params, stream=stream)
    roster = Roster([quiet, watched])
    assert list(roster.note(choices([5, 6]))) == [watched]
    assert list(roster.note(choices([EOS_ID, 6]))) == [quiet, watched]


def test_all_are_told_at_the_first_limit() -> None:
    short, long = running(DecodingParams(2)), running(DecodingParams(3))
    roster = Roster([long, short])
    assert list(roster.note(choices([5, 5]))) == []
    told = list(roster.note(choices([6, 6])))
    assert told == [long, short]
    assert [len(one.advance(choices([6, 6]))) for one in told] == [0, 1]
    assert long.stays
    assert not short.stays


def test_all_are_told_where_something_is_no_number() -> None:
    every = [running(DecodingParams(9)), running(DecodingParams(9))]
    roster = Roster(every)
    bad = Choices([5, 6], [-1.0, math.nan], beams=(), attention={})
    assert list(roster.note(bad)) == every
    for one in every:
        one.advance(bad)
    assert [bool(one.failure) for one in every] == [False, True]


def test_nobody_has_no_rows() -> None:
    assert Roster().rows == 0
    assert Roster().searches == []
