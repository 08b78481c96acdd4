"""States of single rows as bytes, and back: see :class:`models.decoding.params.SavedState`.

Shape legend: ``N`` rows, ``F`` size of all layers' parts of one row together.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.encoder_decoder import ResumableModel
from models.state import DecodeState

_STORED = numpy.dtype("<f4")


class StateCapture:
    """The states of all rows around one step.

    They are brought to the host when the first one is asked for: all rows at once, which takes
    hardly longer than one.

    Args:
        before: the step.
        after: the step; its rows are those of before. It must not be overwritten meanwhile.
    """

    def __init__(self, before: DecodeState, after: DecodeState) -> None:
        self._before = before
        self._after = after

    def before(self, row: int) -> bytes:
        """A row's vectors before the step."""
        return bytes(self._rows_before[row].tobytes())

    def after(self, row: int) -> bytes:
        """A row's vectors after the step."""
        return bytes(self._rows_after[row].tobytes())

    @cached_property
    def _rows_before(self) -> NDArray[numpy.float32]:
        return _on_host(self._before)

    @cached_property
    def _rows_after(self) -> NDArray[numpy.float32]:
        return _on_host(self._after)


def _on_host(state: DecodeState) -> NDArray[numpy.float32]:
    # Every precision's numbers are numbers of float32, too.
    return state.flat().float().cpu().numpy().astype(_STORED, copy=False)


def read_vectors(vectors: bytes) -> Tensor:
    """The numbers of a :class:`SavedState`: ``[F]`` float32, on the CPU."""
    return torch.from_numpy(numpy.frombuffer(vectors, _STORED).astype(numpy.float32))


def starting_state(model: ResumableModel, starts: Sequence[Tensor | None]) -> DecodeState:
    """The state of rows that begin in different places.

    Args:
        model: whose state it is.
        starts: of each row its numbers ``[F]``; None: it begins with no text.

    Raises:
        RuntimeError: the numbers are those of another model.
    """
    state = model.initial_state(len(starts))
    flat = state.flat()
    for row, start in enumerate(starts):
        if start is not None:
            flat[row] = start
    return state.with_layers(flat)
