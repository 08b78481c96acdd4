"""Steps on a GPU as CUDA graphs: recorded once for each shape, then started in one go.

A step of a recurrent model is many small kernels, and telling the GPU to start each of them
takes longer than running it. A graph repeats a recorded step on the same memory, so that its
shapes are fixed: rows and sources are padded to a bucket, copied to the graph's own tensors, and
the padding is cut off the results.

Shape legend: ``N`` rows, ``B`` sources, ``W`` rows of one source at most, ``S`` source positions.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.encoder_decoder import Reading, StepModel, StepOutput, require_resumable
from models.state import AttentionMemory, DecodeState, RowLayout, stored_size

logger = logging.getLogger(__name__)

SMALL_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
LARGE_BUCKET_STEP = 32
MAX_GRAPHS = 64
"""Graphs that one model keeps: each has inputs and results of its own."""
MAX_SOURCE_POSITIONS = 2**15
"""Padded source positions of a graph. Beyond these the GPU has so much to compute that starting
the kernels one by one costs nothing, and the graph's copy of the sources would be large."""
USES_BEFORE_REPLACING = 64
"""When all graphs are taken, a new shape must come so often before the graph that was not used
for longest makes room for it. Recording takes about as long as so many steps without a graph."""
WARM_UP_RUNS = 3

Compute = Callable[[], StepOutput]
"""One step over tensors that stay where they are."""
Capture = Callable[[Compute], Compute]
"""Makes a step repeatable: what it returns computes the same on the same tensors, and may
overwrite the results of everything that was captured before."""


class GraphKey(NamedTuple):
    """The shape of a step, padded. Without sources, all but ``rows`` is 0.

    Attributes:
        rows: rows.
        lines: sources.
        width: W.
        size: S.
        has_cells: whether rows are spread over cells, or row n has source n.
    """

    rows: int
    lines: int = 0
    width: int = 0
    size: int = 0
    has_cells: bool = False


def bucket(count: int) -> int:
    """The number of rows (or sources), at least ``count``, that a graph has."""
    for size in SMALL_BUCKETS:
        if count <= size:
            return size
    return -(-count // LARGE_BUCKET_STEP) * LARGE_BUCKET_STEP


def graph_key(state: DecodeState) -> GraphKey | None:
    """The shape of the graph for a step from this state, or None where there is none.

    There is none for sources of several sizes, nor beyond :data:`MAX_SOURCE_POSITIONS`.
    """
    rows, memory = bucket(state.rows), state.memory
    if memory is None:
        return GraphKey(rows)
    if memory.rest is not None:
        return None
    lines, width = rows, memory.layout.width
    has_cells = width > 1 or memory.layout.cells is not None
    if has_cells:
        # Rows that are padding stand in lines of their own.
        lines = bucket(len(memory.mask) + -(-(rows - state.rows) // width))
    size = stored_size(memory.mask.shape[1])
    if lines * size > MAX_SOURCE_POSITIONS:
        return None
    return GraphKey(rows, lines, width, size, has_cells)


def padded_cells(memory: AttentionMemory, rows: int) -> Tensor:
    """The cells ``[rows]`` int64 of a memory's rows and, behind them, of rows that are padding.

    A row of padding has a cell of its own behind the lines of the real sources, so that no two
    rows are ever written to one cell.
    """
    real, device = memory.rows, memory.mask.device
    first = len(memory.mask) * memory.layout.width
    padding = torch.arange(first, first + rows - real, device=device)
    cells = memory.layout.cells
    return torch.cat([torch.arange(real, device=device) if cells is None else cells, padding])


class StaticInputs:
    """The tensors that a graph reads.

    Rows and sources behind the real ones hold what was left there: numbers of an earlier step,
    with at least one position to attend to.

    Args:
        key: the shape.
        state: a state of this shape without its padding.
    """

    def __init__(self, key: GraphKey, state: DecodeState) -> None:
        self._key = key
        self.tokens = torch.zeros(key.rows, dtype=torch.int64, device=state.layers[0][0].device)
        context, memory = state.context, state.memory
        self.state = DecodeState(
            tuple(tuple(_zeros(part, key.rows) for part in layer) for layer in state.layers),
            None if context is None else _zeros(context, key.rows),
            None if memory is None else _empty_memory(key, memory),
        )

    def write(self, tokens: Tensor, state: DecodeState) -> None:
        """Put a step's inputs in place.

        Args:
            tokens: ``[N]`` int64.
            state: before the step.
        """
        self.tokens[: len(tokens)].copy_(tokens)
        for static, layer in zip(self.state.layers, state.layers, strict=True):
            for whole, part in zip(static, layer, strict=True):
                whole[: len(part)].copy_(part)
        if self.state.context is not None and state.context is not None:
            self.state.context[: state.rows].copy_(state.context)
        if self.state.memory is not None and state.memory is not None:
            self._write_memory(self.state.memory, state.memory)

    def _write_memory(self, static: AttentionMemory, memory: AttentionMemory) -> None:
        lines, size = memory.mask.shape
        if size < self._key.size:
            static.mask[:lines, size:] = False
        for whole, part in zip(static.parts(), memory.parts(), strict=True):
            place = whole[:lines] if part.dim() == 1 else whole[:lines, :size]
            place.copy_(part)
        if static.layout.cells is not None:
            static.layout.cells.copy_(padded_cells(memory, self._key.rows))


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros that begin with this shape and go on with the like's."""
    return like.new_zeros(*shape, *like.shape[len(shape) :])


def _empty_memory(key: GraphKey, like: AttentionMemory) -> AttentionMemory:
    parts = [
        _zeros(part, key.lines) if part.dim() == 1 else _zeros(part, key.lines, key.size)
        for part in like.parts()
    ]
    layout = RowLayout()
    if key.has_cells:
        cells = torch.zeros(key.rows, dtype=torch.int64, device=like.mask.device)
        layout = RowLayout(key.width, cells, key.lines)
    memory = like.with_parts(parts, layout)
    # A softmax over no position at all is not a number.
    memory.mask[:, 0] = True
    return memory


class CudaCapture:
    """Captures CUDA graphs, which share one memory pool: only one of them runs at a time.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        make_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream
        self._device = device
        self._stream = make_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        """See :data:`Capture`."""
        stream, caller = self._stream, torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            # Libraries set themselves up at their first use, which no graph must record.
            stream.wait_stream(caller)
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_RUNS):
                    compute()
            caller.wait_stream(stream)
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                outputs = compute()

        def replay() -> StepOutput:
            graph.replay()
            return outputs

        return replay


class _Graph(NamedTuple):
    inputs: StaticInputs
    replay: Compute


class GraphedModel:
    """A model whose steps are graphs, captured when a shape first comes.

    The results of a step are overwritten by the next one: select what is to be kept from them
    before.

    Args:
        model: in evaluation mode, on its device. Its step must compute the same tensor
            operations whatever the tensors hold.
        capture: makes a step repeatable: a :class:`CudaCapture`.
        max_graphs: graphs to keep.
    """

    def __init__(self, model: StepModel, capture: Capture, *, max_graphs: int = MAX_GRAPHS) -> None:
        self._model = model
        self._capture = capture
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[GraphKey, _Graph] = OrderedDict()  # last used last
        self._refused: Counter[GraphKey] = Counter()
        self._too_large: set[GraphKey] = set()

    @property
    def vocabulary_size(self) -> int:
        """See :class:`StepModel`."""
        return self._model.vocabulary_size

    @property
    def prompt_vocabulary_size(self) -> int:
        """See :class:`StepModel`."""
        return self._model.prompt_vocabulary_size

    @property
    def continues_prompt(self) -> bool:
        """See :class:`StepModel`."""
        return self._model.continues_prompt

    @property
    def keys(self) -> list[GraphKey]:
        """Of the graphs, the one that was not used for longest first."""
        return list(self._graphs)

    def read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        """See :class:`StepModel`: lengths differ too much for graphs."""
        return self._model.read(prompts)

    def initial_state(self, rows: int) -> DecodeState:
        """See :class:`models.encoder_decoder.ResumableModel`; only of a language model."""
        return require_resumable(self._model).initial_state(rows)

    def resume(self, prompts: Sequence[Sequence[int]], state: DecodeState) -> Reading:
        """See :class:`models.encoder_decoder.ResumableModel`; only of a language model."""
        return require_resumable(self._model).resume(prompts, state)

    @torch.inference_mode()
    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """See :class:`StepModel`. The next step overwrites the results."""
        key = graph_key(state)
        graph = None if key is None else self._graph(key, state)
        if graph is None:
            return self._model.step(tokens, state)
        graph.inputs.write(tokens, state)
        return _without_padding(graph.replay(), state)

    def _graph(self, key: GraphKey, state: DecodeState) -> _Graph | None:
        """The graph of this shape, captured if need be; None where there is no room for it."""
        if key not in self._graphs:
            if not self._has_room(key):
                return None
            try:
                inputs = StaticInputs(key, state)
                replay = self._capture(lambda: self._model.step(inputs.tokens, inputs.state))
            except torch.OutOfMemoryError:
                # The step alone takes less: no copy of the sources, no results that are kept.
                logger.warning("the GPU has no memory for a graph of %s: none is made", key)
                self._too_large.add(key)
                return None
            self._graphs[key] = _Graph(inputs, replay)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _has_room(self, key: GraphKey) -> bool:
        """Whether there is room for a graph of this shape, which is made where it is worth it."""
        if key in self._too_large:
            return False
        if len(self._graphs) < self._max_graphs:
            return True
        self._refused[key] += 1
        if self._refused[key] < USES_BEFORE_REPLACING:
            return False
        self._refused.clear()
        self._graphs.popitem(last=False)
        return True


def _without_padding(output: StepOutput, before: DecodeState) -> StepOutput:
    rows, attention = before.rows, output.attention
    if attention is not None and before.memory is not None:
        attention = attention[:rows, : before.memory.mask.shape[1]]
    layers = tuple(tuple(part[:rows] for part in layer) for layer in output.state.layers)
    after = DecodeState(layers, before.context, before.memory)
    return StepOutput(output.logits[:rows], after, attention)
