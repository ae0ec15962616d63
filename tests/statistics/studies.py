"""Simulated ablations with a planted truth: cells that share their seeds and prompts, outcomes of an exact judge."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True)
class Study:
    """An ablation whose cells win a prompt by chance, all in log-odds; standard deviations unless said otherwise.

    shifts: (cells,) what each cell adds, the reference first. seeds_differ: what a seed adds in one cell. together:
    what it adds in all cells, by the order of its data for one. hardness: of prompts. own: what a prompt adds in one
    cell, that is, how differently prompts answer to it; 0 on average. ties: share of the outcomes. alike: share of the
    answers for which all cells draw the same random numbers, as policies do that are sampled with one seed.
    """

    shifts: tuple[float, ...]
    seeds: int
    prompts: int
    seeds_differ: float
    own: float
    together: float = 0.0
    hardness: float = 1.0
    ties: float = 0.2
    alike: float = 0.0

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(cells, seeds, prompts) outcomes: 1 win, 0.5 tie, 0 loss."""
        cells = len(self.shifts)
        odds = (
            np.array(self.shifts)[:, None, None]
            + rng.normal(0, self.hardness, (1, 1, self.prompts))
            + rng.normal(0, self.own, (cells, 1, self.prompts))
            + rng.normal(0, self.together, (1, self.seeds, 1))
            + rng.normal(0, self.seeds_differ, (cells, self.seeds, 1))
        ).astype(np.float32)
        of_outcome, of_tie = rng.random((2, *odds.shape), dtype=np.float32)
        if self.alike:
            same = rng.random(odds.shape[1:]) < self.alike
            of_outcome[:, same], of_tie[:, same] = of_outcome[0, same], of_tie[0, same]
        return np.where(of_tie < self.ties, 0.5, of_outcome * (1 + np.exp(-odds)) < 1)

    def rates(self) -> np.ndarray:
        """(cells,) win rates over all seeds and prompts, by Gauss-Hermite quadrature."""
        return self._rate(np.array(self.shifts))

    def _rate(self, shifts: np.ndarray) -> np.ndarray:
        spread = np.sqrt(self.hardness**2 + self.own**2 + self.together**2 + self.seeds_differ**2)
        won = (1 / (1 + np.exp(-(shifts[:, None] + spread * NODES)))) @ WEIGHTS
        return np.asarray((1 - self.ties) * won + self.ties / 2)

    def with_rates(self, rates: Sequence[float]) -> "Study":
        """The same with cells of these win rates."""
        grid = np.linspace(-6, 6, 4001)
        return replace(self, shifts=tuple(np.interp(rates, self._rate(grid), grid).tolist()))
