"""One process among several, as torchrun starts them, or alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from model.engines.cpu import available_cpus
from model.training.run import RunError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistributedContext:
    """Where this process stands."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @property
    def cpus(self) -> int:
        """This process's share of the processors."""
        return max(1, available_cpus() // self.local_size)

    def all_max(self, *values: float) -> list[float]:
        """The largest of each value over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return [float(value) for value in tensor.tolist()]

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a scalar over all processes."""
        if self.size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return float(value) / self.size


def require_divisible(batch_size: int, place: DistributedContext) -> None:
    """Raises RunError unless every process gets the same number of images."""
    if batch_size % place.size:
        raise RunError(f"--batch-size {batch_size} cannot be shared evenly by {place.size} processes")


@contextmanager
def joined() -> Iterator[DistributedContext]:
    """Joins the other processes, if torchrun started some (RANK, WORLD_SIZE): nccl on CUDA, gloo elsewhere."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    place = DistributedContext(rank, size, local_rank, local_size, device)
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield place
        return
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield place
    finally:
        distributed.destroy_process_group()
