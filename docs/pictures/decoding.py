"""The way of a request, beam search, and batching."""

from collections.abc import Sequence
from typing import Any

from docs.pictures.svg import Ink, Picture
from docs.pictures.translation import shown


def request() -> Picture:
    """The way of a request: the modules are those of docs/architecture.md."""
    picture = Picture(
        "The way of a request: the API checks it, the service makes tokens of it, the engine's "
        "queue and scheduler give it rows, every step writes a token for all rows, and the tokens "
        "go back the same way as text",
        1000,
        306,
    )
    names: tuple[tuple[str, str, Ink], ...] = (
        ("client", "HTTP", "muted"),
        ("app/api", "checks, answers", "ink"),
        ("app/service", "text and tokens", "ink"),
        ("engine client", "queue, books", "ink"),
        ("scheduler", "who gets rows", "orange"),
        ("runner", "one step, all rows", "orange"),
        ("models", "GRU, attention", "blue"),
    )
    places = [84.0 + 139 * index for index in range(len(names))]
    y = 150.0
    picture.rect(places[1] - 65, 108, places[3] - places[1] + 130, 84, stroke="var(--muted)")
    picture.rect(places[4] - 65, 108, places[6] - places[4] + 130, 84, stroke="var(--muted)")
    picture.text((places[2], 52), "HTTP process", ink="muted", bold=True)
    picture.text((places[5], 52), "engine's process", ink="muted", bold=True)
    for index, (x, (name, note, ink)) in enumerate(zip(places, names, strict=True)):
        if index:
            before = places[index - 1] + 58
            picture.wire([(before, y - 12), (x - 58, y - 12)], ink="green")
            picture.wire([(x - 58, y + 12), (before, y + 12)], ink="purple")
        picture.box((x, y), name, width=116, height=64, ink=ink, note=note)
    there = ("body", "request", "tokens", "messages", "rows", "tensors")
    back = ("JSON, events", "text", "tokens", "messages", "events", "logits")
    for index, (forth, answer) in enumerate(zip(there, back, strict=True)):
        middle = (places[index] + places[index + 1]) / 2
        picture.text((middle, 90), forth, ink="green", size=12)
        picture.text((middle, 210), answer, ink="purple", size=12)
    picture.text(
        (places[2], 244), "never waits for a step; refuses at once when full", ink="muted", size=13
    )
    picture.text(
        (places[5], 244), "a step: read, decode, choose; then the next", ink="muted", size=13
    )
    picture.text((places[0] - 58, 282), "forth", ink="green", anchor="start", size=13)
    picture.text((places[0] - 18, 282), "and back", ink="purple", anchor="start", size=13)
    return picture


def beam(trace: Sequence[Sequence[dict[str, Any]]], source: str, width: int) -> Picture:
    """How a search went.

    Args:
        trace: ``beam_trace`` of an answer of ``POST /translate``.
        source: what was translated.
        width: of the beam.
    """
    across, row, left, top = 158, 66, 120, 96
    picture = Picture(
        f"Beam search of width {width}: at each step the best continuations are kept, and lines "
        "lead from each to the one that it continues",
        left + across * len(trace) + 20,
        top + row * width + 24,
    )
    winner = _winner(trace)
    picture.text((24, 30), source, ink="green", anchor="start", bold=True)
    picture.text((left + 24, 30), f"beam of {width}; each column is a step", anchor="start")
    start = (52.0, top + row * (width - 1) / 2)
    picture.box(start, "<bos>", width=64, height=34, ink="green")
    boxes = []
    for step, candidates in enumerate(trace):
        for place, candidate in enumerate(candidates):
            x, y = left + across * (step + 0.5), top + row * place
            is_best = (step, place) in winner
            ink: Ink = "purple" if is_best else "muted"
            parent = candidate["parent"]
            if parent is None:
                begin = (start[0] + 32, start[1])
            else:
                begin = (left + across * (step - 0.5) + 54, top + row * parent)
            picture.wire([begin, (x - 54, y)], ink=ink, width=3 if is_best else 1.5)
            boxes.append(((x, y), candidate, ink))
        picture.text((left + across * (step + 0.5), 62), f"{step + 1}", ink="muted", size=13)
    for center, candidate, ink in boxes:
        picture.box(
            center,
            shown(candidate["token"]),
            width=108,
            height=48,
            ink="orange" if candidate["finish_reason"] else ink,
            note=f"{candidate['logprob']:.2f} | {candidate['score']:.2f}",
        )
    picture.text(
        (24, top + row * width),
        "log-probability of the token | score of all tokens so far. Orange: complete. "
        "Purple: the way to the best translation.",
        ink="muted",
        anchor="start",
        size=13,
    )
    return picture


def _winner(trace: Sequence[Sequence[dict[str, Any]]]) -> set[tuple[int, int]]:
    """Steps and places on the way to the complete candidate with the highest score."""
    ends = [
        (candidate["score"], -step, -place)
        for step, candidates in enumerate(trace)
        for place, candidate in enumerate(candidates)
        if candidate["finish_reason"]
    ]
    _, step, place = max(ends)
    step, place = -step, -place
    way = set()
    while True:
        way.add((step, place))
        parent = trace[step][place]["parent"]
        if parent is None:
            return way
        step, place = step - 1, parent


_ARRIVALS = (0, 0, 0, 1, 2, 3, 4, 6, 7, 9)
_LENGTHS = (4, 9, 3, 12, 5, 3, 7, 4, 6, 3)
_ROWS = 4


def batching() -> Picture:
    """Whole batches against continuous batching, of the same requests on as many rows."""
    static, continuous = _whole_batches(), _continuous()
    steps = max(end for _, _, end in static)
    cell, left = 26, 130
    picture = Picture(
        "The same ten requests on four rows: in whole batches rows stand idle until the longest "
        "request ends; with continuous batching the next request joins at once",
        left + cell * steps + 30,
        400,
    )
    for top, title, spans in (
        (64, "whole batches: all wait for the longest", static),
        (242, "continuous batching: rows join and leave at every step", continuous),
    ):
        last = max(end for _, _, end in spans)
        picture.text((24, top - 24), f"{title} ({last} steps)", anchor="start", bold=True)
        for row in range(_ROWS):
            y = top + 30 * row
            picture.text((left - 16, y + 13), f"row {row + 1}", ink="muted", anchor="end", size=13)
            picture.rect(left, y, cell * last, 26, fill="var(--box)", stroke="var(--edge)")
        for index, (row, begin, end) in enumerate(spans):
            ink: Ink = ("blue", "orange", "green", "purple", "red")[index % 5]
            x, y = left + cell * begin, top + 30 * row
            width = cell * (end - begin) - 2
            picture.rect(
                x + 1, y + 1, width, 24, fill=f"var(--{ink})", stroke=f"var(--{ink})", opacity=0.3
            )
            picture.text((x + width / 2, y + 13), f"{index + 1}", size=13, bold=True)
    picture.text((left, 384), "steps \N{RIGHTWARDS ARROW}", ink="muted", anchor="start", size=13)
    picture.text(
        (left + 80, 384),
        "request 1 to 10, in the order in which they come; empty: a row that does nothing",
        ink="muted",
        anchor="start",
        size=13,
    )
    return picture


def _whole_batches() -> list[tuple[int, int, int]]:
    """Row, first step and end of each request: a batch begins when the one before it is over."""
    spans: list[tuple[int, int, int]] = []
    begin, waiting = 0, list(range(len(_LENGTHS)))
    while waiting:
        there = [index for index in waiting if _ARRIVALS[index] <= begin][:_ROWS]
        for row, index in enumerate(there):
            spans.append((row, begin, begin + _LENGTHS[index]))
            waiting.remove(index)
        begin = max(begin + 1, *(begin + _LENGTHS[index] for index in there))
    return spans


def _continuous() -> list[tuple[int, int, int]]:
    """The same where a request begins as soon as it is there and a row is free."""
    free_at = [0] * _ROWS
    spans = []
    for arrival, length in zip(_ARRIVALS, _LENGTHS, strict=True):
        row = min(range(_ROWS), key=lambda row: max(free_at[row], arrival))
        begin = max(free_at[row], arrival)
        free_at[row] = begin + length
        spans.append((row, begin, begin + length))
    return spans
