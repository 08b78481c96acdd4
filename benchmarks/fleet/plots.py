"""The charts of docs/capacity.md, as SVG that is the same whenever it is drawn from the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.fleet.curve import Curve
from benchmarks.fleet.fluid import Day

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#b04a00", "#0a57c2", "#1a7f37")
CHARTS = Path(__file__).parents[2] / "docs" / "charts"
MINUTE = 60
NONE_SHED = 1e-4
"""Percent, where nothing was shed: a logarithm has no place for that."""

Simulated = Sequence[tuple[float, float, float, float]]
"""Share of the saturation, and the simulated p50, p97 and p99 in milliseconds."""


def draw_curve(curve: Curve, simulated: Simulated) -> "Figure":
    """One replica: measured latencies, and simulated ones."""
    figure, axes = _figure(1, 4.2)
    shares = [load.share for load in curve.loads]
    rows = [(load.p50_ms, load.p97_ms, load.p99_ms) for load in curve.loads]
    for number, name in enumerate(("p50", "p97", "p99")):
        colour = COLOURS[number]
        line = [(row[0], row[number + 1]) for row in simulated]
        axes[0].plot(*zip(*line, strict=True), color=colour, label=f"{name}, simulated")
        measured = [row[number] for row in rows]
        axes[0].plot(shares, measured, "o", color=colour, label=f"{name}, measured")
    axes[0].plot(
        [curve.limit_rate / curve.saturation], [curve.limit_ms], "s", color="#1f2328",
        label="highest rate with p97 within 250 ms, measured",
    )  # fmt: skip
    axes[0].set(
        xlabel=f"offered, of {curve.saturation:g} requests/s", ylabel="milliseconds", ylim=(0, None)
    )
    axes[0].xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes[0].legend(fontsize=8)
    return figure


def draw_day(days: Mapping[str, Day], step: int) -> "Figure":
    """A day of a fleet: the rate, the replicas of each way to have them, and what was shed.

    Args:
        days: of the same rates, by the name of the way.
        step: seconds of a step.
    """
    figure, axes = _figure(3, 7.5)
    first = next(iter(days.values()))
    per_minute = MINUTE // step
    hours = np.arange(len(first.rates) // per_minute) / 60
    axes[0].plot(hours, _minutes(first.rates, per_minute), color="#1f2328", linewidth=1)
    axes[0].set(ylabel="requests/s", ylim=(0, None))
    for colour, (name, one) in zip(COLOURS, days.items(), strict=False):
        replicas = _minutes(one.replicas, per_minute)
        axes[1].plot(hours, replicas, color=colour, linewidth=1.2, label=name)
        shed = _minutes(one.shed, per_minute) / _minutes(one.rates, per_minute)
        axes[2].plot(hours, 100 * shed, color=colour, linewidth=1.2)
    axes[1].set(ylabel="replicas that are ready", ylim=(0, None))
    axes[1].legend(fontsize=8, loc="upper left")
    axes[2].set(ylabel="% of a minute shed", xlabel="hour", ylim=(0, None), xlim=(0, 24))
    axes[2].set_xticks(range(0, 25, 3))
    return figure


def draw_trade(points: Mapping[str, Sequence[tuple[float, float, str]]]) -> "Figure":
    """What autoscaling costs and sheds.

    Args:
        points: by the name of a way: replica-hours a day as a share of a fixed fleet's, percent
            shed, and what the point is called. The last of each stands alone.
    """
    figure, axes = _figure(1, 4.2)
    for colour, (name, line) in zip(COLOURS, points.items(), strict=False):
        *rows, alone = [(x, max(y, NONE_SHED), label) for x, y, label in line]
        axes[0].plot(*zip(*((x, y) for x, y, _ in rows), strict=True), "o-", color=colour,
                     label=name, linewidth=1.2)  # fmt: skip
        axes[0].plot(alone[0], alone[1], "s", color=colour)
        for x, y, label in (*rows, alone):
            axes[0].annotate(
                label, (x, y), xytext=(6, 6), textcoords="offset points", fontsize=8, color=colour
            )
    axes[0].set(
        xlabel="replica-hours, of those of a fixed fleet",
        ylabel="% of the day's requests shed",
        yscale="log",
    )
    axes[0].xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes[0].yaxis.set_major_formatter(lambda y, _: f"{y:g}" if y > NONE_SHED else "none")
    axes[0].margins(x=0.12)
    axes[0].legend(fontsize=8)
    return figure


def save(figures: Mapping[str, "Figure"], folder: Path = CHARTS) -> None:
    """Write each as NAME.svg, without the time of drawing."""
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "gatehouse", "svg.fonttype": "none"}):
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")


def _figure(rows: int, height: float) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)
    for one in axes[:, 0]:
        one.grid(visible=True, color="#d0d7de", linewidth=0.6)
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[:, 0])


def _minutes(values: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    return np.asarray(values.reshape(-1, steps).mean(axis=1))
