"""A day's requests: a slow wave, bursts on top of it, and noise from minute to minute."""

import math
import random

import numpy as np
from numpy.typing import NDArray

DAY_SECONDS = 86_400
NIGHT_SHARE = 0.3
"""Of the rate at the busiest hour, at the quietest."""
PEAK_HOUR = 16
BURSTS = 12
"""In a day."""
RISE_SECONDS = 30.0
"""In which a burst reaches its height."""
NOISE = 0.05
"""Standard deviation of a minute's rate, as a share."""


def day(peak: float, seed: int, step_seconds: int = 1) -> NDArray[np.float64]:
    """Rates of a day in requests/s, one for each step.

    Args:
        peak: at the busiest hour, before bursts and noise.
        seed: of bursts and noise.
        step_seconds: length of a step; a divisor of 60.
    """
    seconds = np.arange(0, DAY_SECONDS, step_seconds, dtype=np.float64)
    turn = np.cos(2 * math.pi * (seconds / 3600 - PEAK_HOUR) / 24)
    wave = NIGHT_SHARE + (1 - NIGHT_SHARE) * (1 + turn) / 2
    draw = random.Random(seed)
    rates = peak * wave
    for _ in range(BURSTS):
        start, height = draw.uniform(0, DAY_SECONDS), draw.uniform(0.2, 1.0)
        rates *= 1 + height * _burst(seconds - start, draw.uniform(180, 1200))
    minutes = [max(0.0, draw.gauss(1, NOISE)) for _ in range(DAY_SECONDS // 60)]
    return np.asarray(rates * np.repeat(minutes, 60 // step_seconds), dtype=np.float64)


def steepest(rates: NDArray[np.float64], length: int) -> int:
    """Where the window of so many steps begins in which the rate doubles or so the fastest.

    A third of the window lies before the rise.
    """
    before = length // 3
    minute = np.convolve(rates, np.full(30, 1 / 30), mode="same")
    rise = minute[90:] / np.maximum(minute[:-90], 1e-9)
    best = int(np.argmax(rise[before : len(rise) - length])) + before
    return best - before + 45


def _burst(since: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """From 0 to 1 in :data:`RISE_SECONDS`, ``length`` seconds at 1, and gone as slowly again."""
    up = np.clip(since / RISE_SECONDS, 0, 1)
    down = np.clip((since - RISE_SECONDS - length) / length, 0, 1)
    return np.asarray(up - down, dtype=np.float64)
