"""Which pairs come together in a batch."""

from collections import Counter

import pytest
import torch

from training.batches import PAIRS_TOGETHER, SORTED_POOL_BATCHES, Batch, TokenPair, plan_batches
from training.preset import Optimization


def _pairs(count: int) -> list[TokenPair]:
    lengths = torch.randint(1, 31, (count, 2), generator=torch.Generator().manual_seed(1))
    return [
        TokenPair((number,) * int(source), (number,) * int(target))
        for number, (source, target) in enumerate(lengths.tolist())
    ]


def _settings(**values: int) -> Optimization:
    return Optimization.model_validate({"steps": 10, "learning_rate": 0.1, **values})


@pytest.mark.parametrize("batching", [{"batch_rows": 7}, {"batch_tokens": 100}])
def test_every_pair_comes_exactly_once_an_epoch(batching: dict[str, int]) -> None:
    pairs = _pairs(1003)
    for epoch in range(3):
        batches = plan_batches(pairs, _settings(**batching), epoch)
        assert Counter(pair for batch in batches for pair in batch) == Counter(pairs)
        assert all(batches)


def test_batches_keep_to_their_size_and_use_it() -> None:
    pairs = _pairs(1003)
    by_tokens = plan_batches(pairs, _settings(batch_tokens=100), 0)
    padded = [len(batch) * max(len(pair.target) for pair in batch) for batch in by_tokens]
    assert max(padded) <= 100
    assert sum(padded) / len(padded) > 75
    by_rows = plan_batches(pairs, _settings(batch_rows=7), 0)
    sizes = [len(batch) for batch in by_rows]
    assert max(sizes) == 7
    assert sizes.count(7) >= len(sizes) - 3, "only a pool's last batch is smaller"


def test_a_batch_may_be_as_large_as_it_is_allowed_to_be() -> None:
    pairs = [TokenPair((number,), (number,) * 5) for number in range(300)]
    by_tokens = plan_batches(pairs, _settings(batch_tokens=10), 0)
    assert [len(batch) for batch in by_tokens] == [2] * 150
    # A number of rows is as it was asked for, however odd.
    by_rows = plan_batches(pairs, _settings(batch_rows=100), 0)
    assert [len(batch) for batch in by_rows] == [100] * 3


def test_a_second_pass_has_the_same_targets() -> None:
    targets = torch.tensor([[5, 6, 2], [7, 2, 0]])
    lengths = torch.tensor([3, 2])
    real = torch.tensor([0, 1, 2, 3, 4])
    twice = Batch(targets, lengths, targets, lengths, real).twice()
    assert twice.targets.flatten()[twice.real_targets].tolist() == [5, 6, 2, 7, 2] * 2
    assert twice.sources.tolist() == [*targets.tolist()] * 2
    assert twice.source_lengths.tolist() == twice.target_lengths.tolist() == [3, 2] * 2


def test_large_batches_have_few_shapes() -> None:
    pairs = _pairs(30_000)
    batches = plan_batches(pairs, _settings(batch_tokens=1600), 0)
    large = [len(batch) for batch in batches if len(batch) > 8 * PAIRS_TOGETHER]
    odd = [size for size in large if size % PAIRS_TOGETHER]
    pools = -(-30_000 // (int(1600 / 15.5) * SORTED_POOL_BATCHES))
    assert len(large) > 100
    assert len(odd) <= pools, "only a pool's last batch has another size"
    padded = [len(batch) * max(len(pair.target) for pair in batch) for batch in batches]
    assert max(padded) <= 1600
    assert sum(padded) / len(padded) > 1450
    assert Counter(pair for batch in batches for pair in batch) == Counter(pairs)


def test_a_pair_longer_than_a_batch_has_one_of_its_own() -> None:
    pairs = [TokenPair((1,), (1,) * 9), TokenPair((1,), (1,)), TokenPair((2,), (1,))]
    batches = plan_batches(pairs, _settings(batch_tokens=4), 0)
    assert sorted(len(batch) for batch in batches) == [1, 2]


def test_batches_hold_pairs_of_similar_lengths() -> None:
    batches = plan_batches(_pairs(1003), _settings(batch_tokens=100), 0)
    lengths = [[len(pair.target) for pair in batch] for batch in batches]
    waste = sum(max(batch) * len(batch) - sum(batch) for batch in lengths)
    assert waste / sum(map(sum, lengths)) < 0.05


def test_the_order_is_repeatable_and_new_in_each_epoch_and_with_each_seed() -> None:
    pairs = _pairs(300)
    first = plan_batches(pairs, _settings(batch_rows=7), 0)
    assert plan_batches(list(pairs), _settings(batch_rows=7), 0) == first
    assert plan_batches(pairs, _settings(batch_rows=7), 1) != first
    assert plan_batches(pairs, _settings(batch_rows=7, seed=2), 0) != first
    sizes = [len(batch[0].target) for batch in first]
    assert sizes != sorted(sizes), "short sentences do not come first"
