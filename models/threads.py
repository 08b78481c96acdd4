"""Work shared out to as many threads as PyTorch takes for an operation.

For kernels and PyTorch's operations, which run without the interpreter's lock.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_THREADS = ThreadPoolExecutor(thread_name_prefix="kernels")
"""They wait until there is something to do."""


def run_shares(work: Callable[..., Result], shares: Sequence[tuple[Any, ...]]) -> list[Result]:
    """Do the first share of some work here, and each other one on another thread.

    Args:
        work: takes what is in a share.
        shares: at least one.

    Returns:
        What came of them, in their order.
    """
    own, *others = shares
    pending = [_THREADS.submit(work, *share) for share in others]
    return [work(*own), *(future.result() for future in pending)]


def share_rows(work: Callable[..., Result], parts: Sequence[Tensor]) -> list[Result]:
    """Do work on the rows of some tensors, a stretch of them on each thread.

    Args:
        work: takes a stretch of each tensor.
        parts: tensors with as many rows each, at least one.

    Returns:
        What came of the stretches, in their order.
    """
    rows = -(-len(parts[0]) // torch.get_num_threads())
    return run_shares(work, [*zip(*(torch.split(part, rows) for part in parts), strict=True)])
