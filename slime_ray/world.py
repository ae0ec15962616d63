"""The processes that work on one trial together, seen from one of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from slime_ray.errors import SlimeRayError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Rank and number of the processes of a trial. Every rank has to make the same calls in the same order.

    What is exchanged travels through torch.distributed, from process to process of one trial.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "World":
        """Return the ranks of the process group that was joined, or one process alone."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which reports and writes."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Send rank 0's value to every rank."""
        if self.size == 1:
            return value
        values = [value if self.main else None]
        distributed.broadcast_object_list(values, src=0, device=_device())
        return values[0]  # type: ignore[return-value]

    def from_main(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0, and return its result or raise its SlimeRayError on every rank."""
        result: T | SlimeRayError | None = None
        if self.main:
            try:
                result = work()
            except SlimeRayError as error:
                result = error
        result = self.broadcast(result)
        if isinstance(result, SlimeRayError):
            raise result
        return result  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in order of rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def share(self, items: Sequence[T], work: Callable[[T], Any]) -> list[Any]:
        """Divide `work` of the items among the ranks; return all results, in the items' order, on each.

        Every rank calls `work` equally often, some of them for nothing: a forward pass of a sharded model is an
        exchange between all ranks.
        """
        if self.size == 1 or not items:
            return [work(item) for item in items]
        rounds = -(-len(items) // self.size)
        local_results = [
            work(items[min(round_index * self.size + self.rank, len(items) - 1)]) for round_index in range(rounds)
        ]
        gathered = self.gather(local_results)
        return [gathered[index % self.size][index // self.size] for index in range(len(items))]


def _device() -> torch.device | None:
    return torch.device("cuda") if distributed.get_backend() == "nccl" else None
