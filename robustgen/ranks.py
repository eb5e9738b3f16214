"""Several processes that share one run, as torchrun starts them; alone, a process is rank 0 of 1."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from robustgen.errors import SpecError
from robustgen.spec import RunSpec

__all__ = ["Ranks", "joined_ranks"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which process of how many this is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process merges and speaks for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on every rank; each waits for the slowest."""
        if self.size == 1:
            return [value]
        held: list[Any] = [None] * self.size
        dist.all_gather_object(held, value)
        return held

    def from_first(self, value: T) -> T:
        """The value of rank 0, on every rank."""
        return self.gather(value)[0]

    def agree(self, spec: RunSpec) -> None:
        """Refuse to go on where ranks were given different things.

        Raises:
            SpecError: names the rank and the fields.
        """
        first, *others = self.gather(spec)
        for rank, theirs in enumerate(others, 1):
            if theirs != first:
                differing = "; ".join(theirs.differences(first))
                raise SpecError(
                    f"rank {rank} was given something else than rank 0 ({differing}): every rank needs the same "
                    "classifier, weights, data and options."
                )


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks that torchrun started this process with, joined by gloo (and nccl where there is CUDA)."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not dist.is_available():
        yield Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        ranks = Ranks(dist.get_rank(), size)
        yield ranks
        ranks.gather(0)  # a rank that leaves while another still works can take the process group down with it
    finally:
        dist.destroy_process_group()
        gc.collect()  # what still holds the group holds its threads, which abort the process if they outlive it
