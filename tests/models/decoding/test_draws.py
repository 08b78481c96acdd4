from collections import Counter

import pytest

from models.decoding.draws import uniform_number

GOLDEN = 0.0564663990004608


def test_uniform_numbers_are_uniform_and_reproducible() -> None:
    numbers = [uniform_number(7, position) for position in range(20_000)]
    assert all(0 <= number < 1 for number in numbers)
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.01)
    counts = Counter(int(number * 10) for number in numbers)
    assert all(abs(count - 2000) < 200 for count in counts.values())
    assert len(set(numbers)) == len(numbers)
    assert uniform_number(7, 3) != uniform_number(8, 3)
    # Written down, so that a change of the generator, which would break every stored seed, shows.
    assert uniform_number(0, 0) == pytest.approx(GOLDEN, abs=0)
