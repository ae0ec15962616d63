"""The updates of a training run: which pairs make one, and how a rank's share of them is cut into micro-batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from slime_ray.data.order import examples_by_update
from slime_ray.data.packing import Rows, copy_to, fill_rows, pack, row_length
from slime_ray.data.pairs import TokenPair
from slime_ray.objectives import ReferenceLogps


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch. `counted` false: it only keeps a rank busy that an update has no pair for."""

    rows: Rows
    reference: ReferenceLogps | None
    counted: bool = True

    def to(self, device: torch.device | str) -> "MicroBatch":
        """The same batch on another device."""
        reference = self.reference and ReferenceLogps(
            copy_to(self.reference.chosen, device), copy_to(self.reference.rejected, device)
        )
        return replace(self, rows=self.rows.to(device), reference=reference)


@dataclass(frozen=True)
class Update:
    """One optimizer step: its pairs, this rank's micro-batches, and what the pairs of all ranks together count."""

    pairs: Sequence[TokenPair]
    batches: tuple[MicroBatch, ...]
    counts: Mapping[str, int]


@dataclass
class Updates:
    """All updates of a training run, epoch after epoch, each in an order that follows from `seed` and the epoch alone.

    Which pairs make an update depends neither on the number of ranks nor on `row_tokens`: every rank draws the same
    order, takes its share of each update and packs that into rows. Iterating gives `Update`s; the last one of an epoch
    holds what is left of the pairs. pairs_per_row: put exactly this many pairs in each row, for objectives whose value
    depends on the micro-batch; None fills rows up to `row_tokens`. done: updates to leave out, because they were made
    before an interruption. even: give all ranks equally many micro-batches, some of which do not count: a pass through
    a sharded model is an exchange between all ranks.
    """

    dataset: Sequence[TokenPair]
    pairs_per_update: int
    row_tokens: int
    shared_prompt: bool
    reference: bool
    seed: int
    rank: int
    ranks: int
    total: int
    pairs_per_row: int | None = None
    done: int = 0
    even: bool = False

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Update]:
        for members in examples_by_update(
            len(self.dataset), self.pairs_per_update, seed=self.seed, updates=self.total, done=self.done
        ):
            yield self.update([self.dataset[index] for index in members])

    def update(self, pairs: Sequence[TokenPair]) -> Update:
        """Build the update of these pairs, cut as `row_tokens` says."""
        size = self.pairs_per_row or 1
        groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        assignment = shares([sum(map(row_length, group)) for group in groups], self.ranks)
        batches = [self._batch(row) for row in self._rows(groups, assignment[self.rank])]
        batch_count = max(len(self._rows(groups, indices)) for indices in assignment) if self.even else 1
        idle = [self._batch(pairs[:1], counted=False)] * (batch_count - len(batches))
        return Update(
            pairs=pairs,
            batches=(*batches, *idle),
            counts={
                "pairs": len(pairs),
                "chosen_tokens": sum(len(pair.chosen_ids) for pair in pairs),
                "rejected_tokens": sum(len(pair.rejected_ids) for pair in pairs),
            },
        )

    def _rows(self, groups: Sequence[Sequence[TokenPair]], indices: Sequence[int]) -> Sequence[Sequence[TokenPair]]:
        """Arrange one rank's pairs as rows: a group each with `pairs_per_row`, else as many pairs as fit."""
        if self.pairs_per_row:
            return [groups[index] for index in indices]
        share = [pair for index in indices for pair in groups[index]]
        rows = fill_rows(share, row_tokens=self.row_tokens, shared_prompt=self.shared_prompt) if share else []
        return [[share[index] for index in members] for members in rows]

    def _batch(self, pairs: Sequence[TokenPair], *, counted: bool = True) -> MicroBatch:
        reference = None
        if self.reference:
            reference = ReferenceLogps(
                torch.tensor([pair.reference_chosen for pair in pairs], dtype=torch.float64),
                torch.tensor([pair.reference_rejected for pair in pairs], dtype=torch.float64),
            )
        return MicroBatch(pack(pairs, shared_prompt=self.shared_prompt), reference, counted)


def shares(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Divide pairs, or groups of them, among ranks so that tokens are about equal.

    lengths: tokens of each. Returns the indices of what each rank gets: the longest first, each to the rank that has
    the fewest tokens so far. With fewer than there are ranks some get none.
    """
    assignment: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        rank = load.index(min(load))
        assignment[rank].append(index)
        load[rank] += lengths[index]
    return assignment
