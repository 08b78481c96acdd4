"""The cache of prefix states holds what was used last, within its memory."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.decoding.prefixes import _ENTRY_BYTES, PrefixCache

SIZE = 4
ENTRY_BYTES = 4 * SIZE + _ENTRY_BYTES

texts = st.lists(st.integers(4, 6), min_size=1, max_size=6).map(tuple)


def vector(tokens: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([hash(tokens) % 1000] * SIZE, dtype=torch.float32)


@given(
    calls=st.lists(st.tuples(st.sampled_from(["put", "longest"]), texts), max_size=60),
    room=st.integers(1, 5),
)
def test_it_is_a_plain_list_of_texts_the_last_used_last(
    calls: list[tuple[str, tuple[int, ...]]], room: int
) -> None:
    cache = PrefixCache(room * ENTRY_BYTES)
    known: list[tuple[int, ...]] = []
    hits = misses = positions = 0
    for name, tokens in calls:
        used: tuple[int, ...] | None = tokens
        if name == "put":
            cache.put(tokens, vector(tokens))
        else:
            used = max(
                (text for text in known if tokens[: len(text)] == text), key=len, default=None
            )
            length, found = cache.longest(tokens)
            assert length == len(used or ())
            hits, misses = hits + (used is not None), misses + (used is None)
            positions += length
            if used is not None:
                assert found is not None
                assert torch.equal(found, vector(used))
            else:
                assert found is None
        if used is not None:
            known = [text for text in known if text != used] + [used]
        known = known[-room:]
        assert len(cache) == len(known)
        assert cache.size_bytes == len(known) * ENTRY_BYTES <= room * ENTRY_BYTES
    counts = cache.take_counts()
    assert (counts.hits, counts.misses, counts.positions) == (hits, misses, positions)
    assert cache.take_counts().hits == 0


def test_nothing_is_known_of_no_text() -> None:
    cache = PrefixCache(10 * ENTRY_BYTES)
    assert cache.longest(()) == (0, None)
    assert cache.take_counts().misses == 0


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = PrefixCache(ENTRY_BYTES - 1)
    cache.put((4,), vector((4,)))
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_an_entry_is_a_copy() -> None:
    """A row of a large tensor would keep all of it in memory."""
    cache = PrefixCache(10 * ENTRY_BYTES)
    many = torch.zeros(100, SIZE)
    cache.put((4,), many[5])
    _, kept = cache.longest((4,))
    assert kept is not None
    assert kept.untyped_storage().nbytes() == 4 * SIZE
