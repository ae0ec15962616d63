"""Log-probabilities of the held-out pairs under a policy: what unlearning, collapse and accuracy are computed from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from slime_ray.data.packing import Rows, fill_rows, pack, row_length
from slime_ray.data.pairs import TokenPair
from slime_ray.model.logprobs import Policy
from slime_ray.model.memory import in_rows_that_fit
from slime_ray.world import World


@dataclass(frozen=True)
class HeldOut:
    """Token log-probabilities (nats) of the held-out pairs under one policy, in pair order.

    chosen, rejected: (tokens,) float64. chosen_lengths, rejected_lengths: (pairs,). entropy, top_probability: (chosen
    tokens,) of the next-token distribution at the chosen positions, the latter that of its likeliest token.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    chosen_lengths: np.ndarray
    rejected_lengths: np.ndarray
    entropy: np.ndarray
    top_probability: np.ndarray

    @property
    def chosen_means(self) -> np.ndarray:
        """(pairs,) mean log-probability per chosen token: lbar_w."""
        return _means(self.chosen, self.chosen_lengths)

    @property
    def rejected_means(self) -> np.ndarray:
        """(pairs,) mean log-probability per rejected token: lbar_l."""
        return _means(self.rejected, self.rejected_lengths)

    @property
    def entropy_means(self) -> np.ndarray:
        """(pairs,) mean next-token entropy at the chosen positions."""
        return _means(self.entropy, self.chosen_lengths)

    @property
    def margins(self) -> np.ndarray:
        """(pairs,) lbar_w - lbar_l."""
        return self.chosen_means - self.rejected_means

    @property
    def accuracy(self) -> float:
        """Share of pairs whose chosen completion has the higher mean log-probability; a tie counts half."""
        return float(np.mean((self.margins > 0) + 0.5 * (self.margins == 0)))

    @property
    def finite(self) -> bool:
        """Whether every number is finite."""
        return bool(np.isfinite(self.chosen).all() and np.isfinite(self.rejected).all())

    def of(self, pairs: Sequence[int]) -> "HeldOut":
        """The same measurement on these pairs only, by their numbers."""

        def part(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            ends = np.cumsum(lengths)
            return np.concatenate([values[:0], *(values[ends[pair] - lengths[pair] : ends[pair]] for pair in pairs)])

        chosen, rejected = self.chosen_lengths, self.rejected_lengths
        return HeldOut(
            part(self.chosen, chosen),
            part(self.rejected, rejected),
            chosen[list(pairs)],
            rejected[list(pairs)],
            part(self.entropy, chosen),
            part(self.top_probability, chosen),
        )

    def save(self, path: Path) -> None:
        """Write as .npz without pickles."""
        with path.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "HeldOut":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def measure_held_out(policy: Policy, pairs: Sequence[TokenPair], *, row_tokens: int) -> HeldOut:
    """Run the policy over held-out pairs, packed into rows of `row_tokens`; the result is in the order given.

    Rows are halved where memory runs out. The ranks of a process group divide the rows among themselves, and all get
    the whole result.
    """
    chosen = np.array([len(pair.chosen_ids) for pair in pairs])
    rejected = np.array([len(pair.rejected_ids) for pair in pairs])
    sides = (chosen, rejected, chosen, chosen)
    columns = [np.empty(int(lengths.sum())) for lengths in sides]
    starts = [np.cumsum(lengths) - lengths for lengths in sides]

    def measure(rows: Rows) -> list[torch.Tensor | None]:
        logps = policy(rows, statistics=True)
        return [logps.chosen, logps.rejected, logps.chosen_entropy, logps.chosen_top_probability]

    def store(members: Sequence[int], arrays: Sequence[np.ndarray]) -> None:
        for column, start, values, lengths in zip(columns, starts, arrays, sides, strict=True):
            parts = np.split(values, np.cumsum(lengths[members])[:-1])
            for member, part in zip(members, parts, strict=True):
                column[start[member] : start[member] + len(part)] = part

    _over_rows(policy, pairs, measure, store, row_tokens=row_tokens)
    return HeldOut(columns[0], columns[1], chosen, rejected, columns[2], columns[3])


def sum_logps(policy: Policy, pairs: Sequence[TokenPair], *, row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed log-probabilities (nats) of chosen and rejected, (pairs,) float64 each, as the above does."""
    sums = np.empty((2, len(pairs)))

    def measure(rows: Rows) -> list[torch.Tensor | None]:
        logps = policy(rows)
        sides = ((logps.chosen, rows.chosen_lengths), (logps.rejected, rows.rejected_lengths))
        return [
            torch.stack([part.sum() for part in values.double().split(lengths.tolist())]) for values, lengths in sides
        ]

    def store(members: Sequence[int], row_sums: Sequence[np.ndarray]) -> None:
        sums[:, members] = row_sums

    _over_rows(policy, pairs, measure, store, row_tokens=row_tokens)
    return sums[0], sums[1]


def _over_rows(
    policy: Policy,
    pairs: Sequence[TokenPair],
    measure: Callable[[Rows], Sequence[torch.Tensor | None]],
    store: Callable[[Sequence[int], Sequence[np.ndarray]], None],
    *,
    row_tokens: int,
) -> None:
    """Measure every row in evaluation mode, and store what it gives with the indices of its pairs.

    Stored at once, in arrays that are there before: small ones that stayed between the large ones of each row would
    keep an allocator from using that memory again.
    """
    world, shared, was_training = World.current(), policy.shares_prompts, policy.training
    policy.eval()

    def measured(members: Sequence[int]) -> list[np.ndarray]:
        rows = pack([pairs[i] for i in members], shared_prompt=shared)
        return [value.double().cpu().numpy() for value in measure(rows.to(policy.device)) if value is not None]

    def measure_all(row_tokens: int) -> None:
        rows_of = fill_rows(pairs, row_tokens=row_tokens, shared_prompt=shared)
        results = map(measured, rows_of) if world.size == 1 else world.share(rows_of, measured)
        for members, values in zip(rows_of, results, strict=True):
            store(members, values)

    with torch.no_grad():
        in_rows_that_fit(measure_all, row_tokens, longest=max(map(row_length, pairs), default=1))
    policy.train(was_training)


def _means(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.add.reduceat(values, starts) / lengths
