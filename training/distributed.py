"""Training by several processes, which ``torchrun`` starts; without it there is one.

Each process takes its share of every batch. The gradients are summed over the processes and
divided by the target tokens of all of them, so that an update is the one that a single process
makes of the whole batch, up to rounding. Gradients meet in one flat buffer rather than in
``DistributedDataParallel``, which averages over processes whatever their tokens, and sees only
what goes through a model's ``forward``.
"""

import importlib
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.interruption import InterruptedRunError

TIMEOUT = timedelta(hours=1)
"""How long the others wait for the first process while it validates or writes."""

CPU = torch.device("cpu")
T = TypeVar("T")


class LostProcessError(Exception):
    """Another process of the run has ended or does not answer."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together, as one of them sees them.

    The first one alone validates, logs and writes. Every method that speaks with the others is
    called by all of them, in the same order; a process that is alone just goes on.

    Attributes:
        rank: this one's number, from 0.
        count: how many there are.
        device: where this one computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        """Whether this one validates, logs and writes."""
        return self.rank == 0

    def deal(self, items: Sequence[T]) -> Sequence[T]:
        """This one's share of a batch's items, dealt out like cards; may be empty."""
        return items[self.rank :: self.count]

    def rows(self, number: int) -> slice:
        """This one's share of so many rows that carry a state: a stretch of them."""
        return slice(self.rank * number // self.count, (self.rank + 1) * number // self.count)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, in float64.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        _all_reduce(tensor, dist.ReduceOp.SUM)
        sums: list[float] = tensor.tolist()
        return sums

    def sum_gradients(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        """Replace every gradient by the weighted sum over the processes.

        Args:
            parameters: of the model; one without a gradient has zeros here.
            share: this process's weight: its part of the batch's target tokens.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients]).mul_(share)
        _all_reduce(flat, dist.ReduceOp.SUM)
        first = 0
        for parameter in parameters:
            last = first + parameter.numel()
            parameter.grad = flat[first:last].view_as(parameter)
            first = last

    def agree_on_signal(self, received: signal.Signals | None) -> signal.Signals | None:
        """The signal that any process has received, so that all stop at the same step.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return received
        tensor = torch.tensor(received or 0, device=self.device)
        _all_reduce(tensor, dist.ReduceOp.MAX)
        number = int(tensor)
        return signal.Signals(number) if number else None

    def gather(self, value: T) -> list[T]:
        """What every process has, by rank. Tensors in it lie in the host's memory.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return [value]
        values: list[T] = [value] * self.count
        with _others():
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Go on when every process has come here.

        Raises:
            LostProcessError: another process is gone.
        """
        self.sum([0.0])


@contextmanager
def join_processes(device: torch.device) -> Iterator[Processes]:
    """Join the other processes that ``torchrun`` has started, if it has.

    Args:
        device: to train on. Of several processes on ``cuda`` each takes a GPU of its own.

    Yields:
        The processes; their ``device`` is this one's own.

    Raises:
        ValueError: there are more processes than GPUs, or one GPU is asked for by its number.
        LostProcessError: the others cannot be reached.
    """
    if not dist.is_torchelastic_launched():
        yield Processes(device=device)
        return
    own = _own_gpu(device) if device.type == "cuda" else device
    _import_keepers_of_the_group()
    with _others():
        if own.type == "cuda":
            torch.cuda.set_device(own)
            dist.init_process_group("nccl", timeout=TIMEOUT, device_id=own)
        else:
            dist.init_process_group("gloo", timeout=TIMEOUT)
    processes = Processes(dist.get_rank(), dist.get_world_size(), own)
    try:
        yield processes
    except InterruptedRunError:  # all have stopped after the same step
        # The first may still have been writing, and torchrun ends all as soon as one has ended.
        processes.wait()
        dist.destroy_process_group()
        raise
    # Not after another error: the others may be in the middle of something that never comes.
    dist.destroy_process_group()


def _import_keepers_of_the_group() -> None:
    """Import what would keep the processes' group alive behind its end.

    ``torch.distributed.nn.functional`` has the default group in the defaults of its functions:
    imported while there is one (by the first optimizer, by way of ``torch._dynamo``), it holds
    that one for good. Destroying the group then leaves gloo's threads running, and one that
    frees a tensor while Python shuts down aborts the process with "terminate called without an
    active exception" (https://github.com/pytorch/pytorch/issues/190489). Imported before, it
    holds none.
    """
    importlib.import_module("torch.distributed.nn.functional")


def global_rank() -> int:
    """This process's number among all of ``torchrun``, on every machine; 0 without it.

    Known before the processes have joined, and after they have parted.
    """
    if not dist.is_torchelastic_launched():
        return 0
    # torchrun's own word to its processes, no setting.
    return int(os.environ["RANK"])  # noqa: TID251


def local_rank() -> int:
    """This process's number among those of ``torchrun`` on this machine; 0 without it."""
    return dist.get_node_local_rank(fallback_rank=0)


def _own_gpu(device: torch.device) -> torch.device:
    if device.index is not None:
        raise ValueError(f"{device} is one GPU: under torchrun give --device cuda, one for each")
    found = torch.cuda.device_count()
    if local_rank() >= found:
        raise ValueError(f"there are more processes than GPUs ({found}): lower --nproc-per-node")
    return torch.device("cuda", local_rank())


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    with _others():
        dist.all_reduce(tensor, operation)


@contextmanager
def _others() -> Iterator[None]:
    """Say in a sentence what torch says in a page."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(
            "another process of this run has ended or does not answer; its own words say why"
        ) from error
