"""This process among the processes of a run: torchrun starts several; without it there is one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from model.engines.cpu import available_cpus
from model.training.run import RunError

T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """This process's rank and device, under torch.distributed's names."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the messages of the run."""
        return self.rank == 0

    @property
    def cpus(self) -> int:
        """This process's share of the CPUs."""
        return max(1, available_cpus() // self.local_world_size)

    @property
    def decode_threads(self) -> int:
        """Threads that decode images by default: all CPUs beside a GPU, else one, since the CPUs compute."""
        return self.cpus if self.device.type == "cuda" else 1

    def all_max(self, *values: float) -> list[float]:
        """The largest of each value over all processes."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return [float(value) for value in tensor.tolist()]

    def gather(self, value: T) -> list[T]:
        """The value of each process, by rank, in every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a scalar over all processes."""
        if self.world_size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return float(value) / self.world_size


def require_divisible(batch_size: int, context: DistributedContext) -> None:
    """Raises RunError unless every process gets the same number of images."""
    if batch_size % context.world_size:
        raise RunError(f"--batch-size {batch_size} cannot be shared evenly by {context.world_size} processes")


@contextmanager
def join_processes() -> Iterator[DistributedContext]:
    """Joins the other processes that torchrun started, if it did (RANK, WORLD_SIZE): by nccl on CUDA, else by gloo."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_world_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    context = DistributedContext(rank, world_size, local_rank, local_world_size, device)
    if cuda:
        torch.cuda.set_device(device)
    if world_size == 1:
        yield context
        return
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield context
    finally:
        distributed.destroy_process_group()
