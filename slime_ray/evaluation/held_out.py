"""Log-probabilities of the held-out pairs under a policy: what unlearning, collapse and accuracy are computed from."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from slime_ray.data.packing import fill_rows, pack, row_length
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

    def first(self, pairs: int) -> "HeldOut":
        """The same measurement on the first so many pairs only."""
        chosen, rejected = int(self.chosen_lengths[:pairs].sum()), int(self.rejected_lengths[:pairs].sum())
        return HeldOut(
            self.chosen[:chosen],
            self.rejected[:rejected],
            self.chosen_lengths[:pairs],
            self.rejected_lengths[:pairs],
            self.entropy[:chosen],
            self.top_probability[:chosen],
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
    shared = policy.shares_prompts
    was_training = policy.training
    policy.eval()

    def measure(members: Sequence[int]) -> list[tuple[np.ndarray, ...]]:
        rows = pack([pairs[i] for i in members], shared_prompt=shared)
        logps = policy(rows.to(policy.device), statistics=True)
        chosen_lengths, rejected_lengths = rows.chosen_lengths.tolist(), rows.rejected_lengths.tolist()
        columns = (
            _split(logps.chosen, chosen_lengths),
            _split(logps.rejected, rejected_lengths),
            _split(logps.chosen_entropy, chosen_lengths),
            _split(logps.chosen_top_probability, chosen_lengths),
        )
        return list(zip(*columns, strict=True))

    def measure_all(row_tokens: int) -> list[tuple[np.ndarray, ...]]:
        rows_of = fill_rows(pairs, row_tokens=row_tokens, shared_prompt=shared)
        parts: list[tuple[np.ndarray, ...]] = [() for _ in pairs]
        for members, found in zip(rows_of, World.current().share(rows_of, measure), strict=True):
            for i, part in zip(members, found, strict=True):
                parts[i] = part
        return parts

    with torch.no_grad():
        parts = in_rows_that_fit(measure_all, row_tokens, longest=max(map(row_length, pairs), default=1))
    policy.train(was_training)
    chosen, rejected, entropy, top = (np.concatenate(column) for column in zip(*parts, strict=True))
    return HeldOut(
        chosen=chosen,
        rejected=rejected,
        chosen_lengths=np.array([len(part[0]) for part in parts]),
        rejected_lengths=np.array([len(part[1]) for part in parts]),
        entropy=entropy,
        top_probability=top,
    )


def _split(values: torch.Tensor | None, lengths: list[int]) -> list[np.ndarray]:
    assert values is not None
    return [part.numpy() for part in values.double().cpu().split(lengths)]


def _means(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.add.reduceat(values, starts) / lengths
