"""How fast a model is, by its last turn."""

import pytest

from app.engine.pace import Pace


def test_before_a_turn_a_few_tokens_are_expected_to_be_in_time() -> None:
    assert Pace().tokens_at_once == 128


@pytest.mark.parametrize(("seconds", "tokens", "expected"), [(0.006, 60, 300), (0.05, 64, 38)])
def test_a_turn_tells_how_many_will_be_in_time(seconds: float, tokens: int, expected: int) -> None:
    pace = Pace()
    pace.note(9.0, 1)
    assert pace.tokens_at_once == 0
    pace.note(seconds, tokens)
    assert pace.tokens_at_once == expected


@pytest.mark.parametrize(("seconds", "tokens"), [(0.0, 5), (0.5, 0)])
def test_a_turn_without_time_or_tokens_tells_nothing(seconds: float, tokens: int) -> None:
    pace = Pace()
    pace.note(seconds, tokens)
    assert pace.tokens_at_once == Pace().tokens_at_once
