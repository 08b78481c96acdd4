"""The functions behind the gates; the cells are tested in ``test_quantization.py``."""

import numpy as np
import pytest

from models.kernels.gates import exponential, hyperbolic_tangent, sigmoid


def test_the_exponential_is_accurate_where_it_is_a_normal_number() -> None:
    inputs = np.concatenate([np.linspace(-87, 88.25, 5_001), np.linspace(-1e-3, 1e-3, 101)])
    for x in inputs.astype(np.float32):
        assert exponential(x) == pytest.approx(np.exp(np.float64(x)), rel=4e-7)
    assert exponential(np.float32(0)) == 1


@pytest.mark.parametrize(
    ("x", "expected"), [(-np.inf, 0), (-3e38, 0), (-200, 0), (200, 2.22e38), (np.inf, 2.22e38)]
)
def test_beyond_them_it_stays_at_their_ends(x: float, expected: float) -> None:
    assert exponential(np.float32(x)) == pytest.approx(expected, rel=0.01, abs=2e-38)


def test_no_number_stays_none() -> None:
    for function in (exponential, sigmoid, hyperbolic_tangent):
        assert np.isnan(function(np.float32(np.nan)))


def test_gates_are_open_and_shut_at_the_ends() -> None:
    assert sigmoid(np.float32(100)) == 1
    assert sigmoid(np.float32(-100)) == pytest.approx(0, abs=1e-37)
    assert sigmoid(np.float32(0)) == 0.5
    assert hyperbolic_tangent(np.float32(100)) == 1
    assert hyperbolic_tangent(np.float32(-100)) == -1
    assert hyperbolic_tangent(np.float32(0)) == 0
