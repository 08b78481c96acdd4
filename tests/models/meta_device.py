"""A device that holds no numbers, and refuses whoever asks it for one: a GPU, for placement.

Meta tensors have shapes and a device and nothing else, so that a computation which gets through
with them asks for no value. :func:`meta_device` also refuses what meta tensors let pass and a
GPU would not, or only after waiting for all its work. (torch can fake CUDA tensors too, but a
build for processors not every operation on them.)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")


class PlacementError(AssertionError):
    """Something would fail on a GPU, or wait for it."""


@dataclass
class Traffic:
    """What went between host and device.

    Attributes:
        sent: tensors to the device.
        brought: tensors to the host.
    """

    sent: int = 0
    brought: int = 0


@contextmanager
def meta_device(answer: float | None = None) -> Iterator[Traffic]:
    """Refuse what mixes devices or waits for the device.

    Args:
        answer: what every number is of tensors that are brought to the host as a list; without
            it this is refused too.
    """
    traffic = Traffic()
    with _Operations(traffic), _Calls(traffic, answer):
        yield traffic


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Watches over operations on tensors."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._traffic = traffic

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # A number of the host may stand beside the tensors of any device.
        inputs = {tensor.device.type for tensor in _tensors((args, kwargs)) if tensor.dim()}
        outputs = {tensor.device.type for tensor in _tensors(result) if tensor.numel()}
        if len(inputs | outputs) > 1:
            is_sent = inputs == {"cpu"} and outputs == {"meta"}
            if not is_sent or not kwargs.get("non_blocking"):
                raise PlacementError(f"{func} makes {outputs} of {inputs}: {kwargs}")
            self._traffic.sent += 1
        return result


class _Calls(TorchFunctionMode):
    """Watches over calls that turn lists into tensors and back, out of sight of operations."""

    def __init__(self, traffic: Traffic, answer: float | None) -> None:
        super().__init__()
        self._traffic = traffic
        self._answer = answer

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and "device" in kwargs and torch.device(kwargs["device"]) == META:
            raise PlacementError("a list is sent to the device, which waits")
        is_there = args and isinstance(args[0], Tensor) and args[0].device == META
        if func in {torch.Tensor.__getitem__, torch.Tensor.__setitem__} and is_there:
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(index, list) for index in indices):
                raise PlacementError("a list is an index, which is sent to the device and waits")
        if func is torch.Tensor.tolist and is_there and self._answer is not None:
            self._traffic.brought += 1
            return torch.full(args[0].shape, self._answer, dtype=torch.float64).tolist()
        return func(*args, **kwargs)
