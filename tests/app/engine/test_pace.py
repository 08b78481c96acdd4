"""How fast a model is, by its last turn."""

import pytest

from app.engine.pace import Pace
from models.decoding.step import MOST_STEPS


def test_before_a_turn_a_few_tokens_are_expected_to_be_in_time() -> None:
    assert (Pace().steps_at_once, Pace().tokens_at_once) == (MOST_STEPS, 128)


@pytest.mark.parametrize(
    ("seconds", "rows", "steps", "tokens"),
    [
        (0.006, [30, 30], MOST_STEPS, 300),
        (0.05, [70, 60], 1, 78),
        (0.016, [40], 1, 75),
        (0.0145, [40], 2, 82),
    ],
)
def test_a_turn_tells_how_much_will_be_in_time(
    seconds: float, rows: list[int], steps: int, tokens: int
) -> None:
    """By steps, where rows have become fewer since, or by tokens, where they are more."""
    pace = Pace()
    pace.note(9.0, [1])
    assert (pace.steps_at_once, pace.tokens_at_once) == (1, 0)
    pace.note(seconds, rows)
    assert pace.steps_at_once == steps
    assert pace.tokens_at_once == pytest.approx(tokens, abs=1)


@pytest.mark.parametrize(("seconds", "rows"), [(0.0, [5]), (0.5, [])])
def test_a_turn_without_time_or_steps_tells_nothing(seconds: float, rows: list[int]) -> None:
    pace = Pace()
    pace.note(seconds, rows)
    assert (pace.steps_at_once, pace.tokens_at_once) == (MOST_STEPS, 128)
