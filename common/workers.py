"""Data parallelism: several processes train one network, each on its share of every batch.

Each process runs the same program, started by `torchrun --nproc_per_node=2 program.py`:

    with Workers.from_environment("auto") as workers:
        train_segmenter(net, train, val, config, run, seed, workers=workers)

`batch_size` is that of one process: W workers with batches of b rows take the gradient steps of one process with
batches of W * b rows, since each batch is divided among them and their gradients are averaged with the numbers of rows
as weights. That is exact, but for rounding, where the loss is a mean over rows. It is not where rows of a batch meet:
batch normalisation uses the statistics of the worker's own rows (running statistics: those of rank 0's rows) unless
`segmenters/norms.py:synchronise` makes it count all of them, a Dice that is pooled over the batch pools the worker's
own rows, and the shape prior's attribute term compares the pairs within them. Use GroupNorm, or shares large enough.
The presence classifier has no batch that is divided: each worker draws its own, with the classes in balance.

Dropout, jitter and codes are drawn apart: rank r seeds with seed + r, so that rank 0 draws what one process would.
Rank 0 decides the order of the rows, and it alone writes.
"""

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from .device import resolve_device

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """The place of this process among those that train together; by default it is alone, and no method costs anything.

    Every method but `shard` must be called by all of them, in the same order: each waits for the others.
    """

    rank: int = 0
    """Number of this process, from 0."""
    world_size: int = 1
    """Number of processes."""

    @classmethod
    @contextmanager
    def from_environment(cls, device: str = "auto") -> Iterator["Workers"]:
        """The workers that `torchrun` started, by its environment variables; one process where there are none.

        They talk through NCCL on CUDA, where device "cuda" then means a GPU of its own in each process of a machine,
        and through gloo on the CPU.

        Raises:
            ValueError: a device that this machine does not have.
        """
        if "RANK" not in os.environ:
            yield cls()
            return
        on_cuda = resolve_device(device).type == "cuda"
        if on_cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # This module binds the group of the moment to its defaults. Imported later, it keeps this group alive, whose
        # threads then outlive the interpreter and abort the process: https://github.com/pytorch/pytorch/pull/179291
        importlib.import_module("torch.distributed.nn.functional")
        distributed.init_process_group("nccl" if on_cuda else "gloo")
        try:
            yield cls(distributed.get_rank(), distributed.get_world_size())
        finally:
            distributed.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes for all: rank 0."""
        return self.rank == 0

    def shard(self, rows: Tensor) -> Tensor:
        """This worker's share of `rows` [N]: N / world_size of them, rounded up in the first ranks, down in the others.

        Raises:
            ValueError: fewer rows than workers.
        """
        if len(rows) < self.world_size:
            raise ValueError(
                f"a batch of {len(rows)} cannot be divided among {self.world_size} workers; raise batch_size, or start "
                f"fewer workers"
            )
        return rows.tensor_split(self.world_size)[self.rank]

    def gather(self, value: T) -> list[T]:
        """Each worker's `value`, by rank: numbers, text and tensors of the CPU."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's `value`: numbers, text and tensors of the CPU."""
        if self.world_size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def sum(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """Each scalar summed over the workers."""
        if self.world_size == 1:
            return dict(scalars)
        parts = self.gather(dict(scalars))
        return {key: sum(part[key] for part in parts) for key in scalars}

    def total(self, value: Tensor) -> Tensor:
        """`value` of any shape summed over the workers; its gradient is summed over them, too."""
        return value if self.world_size == 1 else _Total.apply(value)  # type: ignore[no-untyped-call]

    def mean(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """Each scalar's mean over the workers."""
        return {key: value / self.world_size for key, value in self.sum(scalars).items()}

    def average_gradients(self, parameters: Iterable[nn.Parameter], weight: float) -> None:
        """Make every worker's gradients the mean of all; `weight`: of its own in that mean, its number of rows."""
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), gradients[0].new_ones(1)]) * weight
        distributed.all_reduce(flat)  # the last element is the sum of the weights
        means = torch.split(flat[:-1] / flat[-1], [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view(gradient.shape))

    def share_weights(self, net: nn.Module) -> None:
        """Give every worker rank 0's parameters and buffers."""
        if self.world_size > 1:
            for value in net.state_dict().values():
                dense = value.contiguous()  # channels_last is not
                distributed.broadcast(dense, src=0)
                value.copy_(dense)


class _Total(torch.autograd.Function):
    """A sum over the workers, in which each worker's loss depends on the values of all."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


ONE_PROCESS = Workers()
"""No data parallelism."""
