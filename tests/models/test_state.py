"""What decoding remembers: rows, their sources in a pool, and who looks at which."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.state import (
    AttentionMemory,
    DecodeState,
    MemoryPool,
    RowLayout,
    join_memories,
    stored_size,
)


def make_state(rows: int, source_length: int | None = None, first: float = 0.0) -> DecodeState:
    """A state whose every number tells its row."""
    row = torch.arange(rows, dtype=torch.float32) + first

    def filled(*shape: int) -> Tensor:
        return row.view(-1, *[1] * len(shape)).expand(rows, *shape).clone()

    memory = None
    if source_length is not None:
        memory = AttentionMemory(
            keys=filled(source_length, 2),
            values=filled(source_length, 5),
            mask=torch.ones(rows, source_length, dtype=torch.bool),
            key_scales=filled(source_length),
            value_scales=filled(),
        )
    return DecodeState(
        layers=((filled(3), filled(3)), (filled(3), filled(3))),
        context=filled(4),
        memory=memory,
    )


def rows_of(state: DecodeState) -> list[float]:
    """The row numbers, after checking that all parts agree on them."""
    assert state.context is not None
    numbers: list[float] = state.context[:, 0].tolist()
    for part in [*state.layers[0], *state.layers[1]]:
        assert part[:, 0].tolist() == numbers
    if state.memory is not None:
        assert sources_of(state.memory) == numbers
    return numbers


def sources_of(memory: AttentionMemory) -> list[float]:
    numbers: list[float] = memory.values[:, 0, 0].tolist()
    assert memory.keys[:, 0, 0].tolist() == numbers
    for scales in (memory.key_scales, memory.value_scales):
        if scales is not None:
            assert scales.view(len(scales), -1)[:, 0].tolist() == numbers
    return numbers


def test_select_reorders_repeats_and_drops() -> None:
    state = make_state(4, 6).select(torch.tensor([2, 2, 0]))
    assert rows_of(state) == [2, 2, 0]
    assert state.rows == 3


def test_select_layers_leaves_the_memory_behind() -> None:
    state = make_state(4, 6).select_layers(torch.tensor([3, 0]))
    assert rows_of(state) == [3, 0]
    assert state.memory is None


@given(data=st.data(), count=st.integers(1, 9))
def test_gaps_are_closed_as_if_rows_were_selected(data: st.DataObject, count: int) -> None:
    rows = data.draw(
        st.lists(st.integers(0, count - 1), min_size=1, max_size=12)
        | st.lists(st.sampled_from(range(count)), min_size=1, unique=True).map(sorted)
    )
    expected = make_state(count).select_layers(torch.tensor(rows))
    found = make_state(count).close_gaps(rows)
    assert rows_of(found) == rows_of(expected) == rows
    assert found.memory is None


def test_rows_that_do_not_move_are_not_copied() -> None:
    state = make_state(5)
    closed = state.close_gaps([0, 4, 2, 3])
    assert rows_of(closed) == [0, 4, 2, 3]
    assert closed.layers[0][0].data_ptr() == state.layers[0][0].data_ptr()
    moved = make_state(5)
    assert rows_of(moved.close_gaps([4, 3, 2])) == [4, 3, 2]


def test_concat_joins_all_rows_in_order() -> None:
    state = DecodeState.concat([make_state(2), make_state(1, first=7)])
    assert rows_of(state) == [0, 1, 7]


def test_concat_then_select_gives_each_back() -> None:
    parts = [make_state(2), make_state(3, first=2)]
    whole = DecodeState.concat(parts)
    for part, rows in zip(parts, ([0, 1], [2, 3, 4]), strict=True):
        again = whole.select(torch.tensor(rows))
        assert rows_of(again) == rows
        for layer, expected in zip(again.layers, part.layers, strict=True):
            for one, other in zip(layer, expected, strict=True):
                assert torch.equal(one, other)


def test_sources_are_not_joined_row_by_row() -> None:
    with pytest.raises(ValueError, match="MemoryPool"):
        DecodeState.concat([make_state(2, 3), make_state(1, 5)])


def test_states_of_different_models_do_not_mix() -> None:
    plain = DecodeState(layers=make_state(1).layers)
    for states in ([], [plain, make_state(1)], [plain, DecodeState(plain.layers[:1])]):
        with pytest.raises(ValueError, match="concat needs"):
            DecodeState.concat(states)


# ---------------------------------------------------------------- which row looks where


def layout_of(counts: Sequence[int]) -> RowLayout:
    """The layout of sources with these numbers of rows."""
    width = max(counts)
    cells = [line * width + i for line, count in enumerate(counts) for i in range(count)]
    return RowLayout(width, torch.tensor(cells), len(counts))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
def test_a_grid_holds_each_sources_rows_in_its_line(counts: list[int]) -> None:
    rows = torch.arange(1, sum(counts) + 1)[:, None] * torch.ones(1, 3)
    layout = layout_of(counts)
    grid = layout.spread(rows)
    assert grid.shape == (len(counts), max(counts), 3)
    lines = iter(rows.tolist())
    for line, count in zip(grid.tolist(), counts, strict=True):
        assert line[:count] == [next(lines) for _ in range(count)]
        assert line[count:] == [[0.0] * 3] * (max(counts) - count)
    assert torch.equal(layout.gather(grid), rows)


@pytest.mark.parametrize("width", [1, 3])
def test_a_full_grid_needs_no_cells(width: int) -> None:
    rows = torch.randn(4 * width, 7)
    short, long = RowLayout(width), layout_of([width] * 4)
    assert torch.equal(short.spread(rows), long.spread(rows))
    assert torch.equal(short.gather(short.spread(rows)), rows)


def test_selecting_rows_takes_each_ones_source() -> None:
    memory = make_state(3, 2).memory
    assert memory is not None
    shared = dataclasses.replace(memory, layout=layout_of([2, 0, 3]))
    assert sources_of(shared.select(torch.tensor([1, 4, 2, 0]))) == [0, 2, 2, 0]
    full = dataclasses.replace(memory, layout=RowLayout(2))
    assert sources_of(full.select(torch.tensor([5, 0, 3]))) == [2, 0, 1]
    assert sources_of(memory.select(torch.tensor([2, 0]))) == [2, 0]
    assert full.select(torch.tensor([5])).layout == RowLayout()


# ---------------------------------------------------------------- the pool

KEY_SIZE, VALUE_SIZE = 2, 3


def make_memory(lengths: Sequence[int], first: int, *, with_scales: bool) -> AttentionMemory:
    """Sources whose every number tells the source (from ``first``) and the position."""
    size = max(lengths)
    number = torch.arange(first, first + len(lengths), dtype=torch.float32)
    position = torch.arange(size, dtype=torch.float32)
    mask = position < torch.tensor(lengths)[:, None]
    cell = (number[:, None] + position / 1024) * mask
    return AttentionMemory(
        keys=cell[..., None].repeat(1, 1, KEY_SIZE),
        values=-cell[..., None].repeat(1, 1, VALUE_SIZE),
        mask=mask,
        key_scales=2 * cell if with_scales else None,
        value_scales=3 * number if with_scales else None,
    )


def assert_holds(pool: MemoryPool, sources: list[tuple[int, int]], *, with_scales: bool) -> None:
    """The pool holds these sources (number and length), and behind each nothing that counts."""
    assert len(pool) == len(sources)
    if not sources:
        return
    view = pool.view([2] * len(sources))
    assert view.rows == 2 * len(sources)
    longest = max(length for _, length in sources)
    lines = list(range(len(sources)))
    if with_scales:  # of integers all that is stored is seen, and each row knows its line
        assert view.mask.shape[1] >= stored_size(longest)
        assert view.layout.cells is not None
        lines = view.layout.cells.tolist()[::2]
        assert view.layout.cells.tolist() == [line for line in lines for _ in range(2)]
        assert len(set(lines)) == len(lines)
        assert max(lines) < view.layout.lines == len(view.mask)
    else:
        assert view.mask.shape == (len(sources), stored_size(longest))
        assert view.layout == RowLayout(2)
    assert (view.key_scales is not None) == (view.value_scales is not None) == with_scales
    for line, (number, length) in zip(lines, sources, strict=True):
        expected = make_memory([length], number, with_scales=with_scales)
        assert view.mask[line].nonzero()[:, 0].tolist() == list(range(length))
        for part, expected_part in zip(view.parts(), expected.parts(), strict=True):
            real = part[line] if part.dim() == 1 else part[line, :length]
            assert torch.equal(real, expected_part[0])
    # A weight of 0 times NaN would be NaN; of integers nobody looks at padding.
    assert with_scales or all(bool(part.isfinite().all()) for part in view.parts())


@given(data=st.data(), with_scales=st.booleans())
def test_the_pool_equals_a_list_of_sources(data: st.DataObject, with_scales: bool) -> None:
    pool = MemoryPool()
    sources: list[tuple[int, int]] = []
    number = 1
    for _ in range(data.draw(st.integers(1, 8))):
        shall_drop: bool = data.draw(st.booleans())
        if shall_drop and sources:
            order: list[int] = data.draw(st.permutations(list(range(len(sources)))))
            places = order[: data.draw(st.integers(0, len(sources)))]
            pool.keep(places)
            sources = [sources[place] for place in places]
        else:
            lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
            pool.append(make_memory(lengths, number, with_scales=with_scales), lengths)
            sources += enumerate(lengths, start=number)
            number += len(lengths)
        assert_holds(pool, sources, with_scales=with_scales)


def test_sources_are_padded_to_few_sizes() -> None:
    assert [stored_size(n) for n in (1, 16, 17, 32, 33, 40, 1000)] == [16, 16, 32, 32, 64, 64, 1024]


def test_memories_of_several_sizes_stand_one_behind_the_other() -> None:
    short, long = (make_memory([n, 2], n, with_scales=True) for n in (3, 40))
    long = dataclasses.replace(long, layout=layout_of([2, 3]))
    joined = join_memories([long, short])
    assert joined is not None
    assert joined.rest is not None
    assert (joined.rows, joined.rest.rows) == (5, 2)
    assert joined.keys is long.keys
    assert joined.rest.keys is short.keys
    assert joined.rest.rest is None
    assert join_memories([]) is None
    with pytest.raises(ValueError, match="one size"):
        joined.select(torch.tensor([0]))


@pytest.mark.parametrize("with_scales", [False, True])
def test_a_broken_source_harms_none_that_takes_its_place(with_scales: bool) -> None:
    """What overflowed in one request must not be multiplied by 0 in the next."""
    pool = MemoryPool()
    pool.append(make_memory([18], 1, with_scales=with_scales), [18])
    broken = make_memory([20], 2, with_scales=with_scales)
    for part in (broken.keys, broken.values, broken.key_scales, broken.value_scales):
        if part is not None:
            part.fill_(float("nan"))
    pool.append(broken, [20])
    pool.keep([0])
    pool.append(make_memory([5], 3, with_scales=with_scales), [5])
    assert_holds(pool, [(1, 18), (3, 5)], with_scales=with_scales)
