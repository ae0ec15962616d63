"""Evaluations with a known truth: judged prompts, paired policies and trained policies, made by chance."""

from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
from scipy.stats import t as student
from slime_ray.analysis.judging import Votes

from slime_ray.runs.results import Run
from slime_ray.runs.schema import PAIR_SCHEMA
from slime_ray.runs.stability_v1 import StabilityParts, stability_score

EASE = (2.0, 1.5)
"""Beta distribution of the prompts' chances to be won."""
GRID = (np.arange(20_000) + 0.5) / 20_000
DENSITY = GRID ** (EASE[0] - 1) * (1 - GRID) ** (EASE[1] - 1)
TIES, MISSING, SAME = 0.15, 0.03, 0.6
"""Shares: of verdicts that are ties, that are invalid, and of second orders that repeat what the first one drew."""


def expected(values: np.ndarray) -> float:
    """Mean over prompts of what stands at their chance to be won, on GRID."""
    return float((values * DENSITY).sum() / DENSITY.sum())


def two_orders(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """(..., 2) uniform numbers of both orders, of which the second often repeats the first."""
    drawn = rng.random((*shape, 2))
    drawn[..., 1] = np.where(rng.random(shape) < SAME, drawn[..., 0], drawn[..., 1])
    return drawn


def missing(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """`points` with some verdicts invalid, whatever they say."""
    return np.where(rng.random(points.shape) < MISSING, np.nan, points)


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on one policy: ties, invalid ones, decisive ones that are strong where a prompt is far from even."""

    prompts: int
    seeds: int

    @property
    def win_rate(self) -> float:
        """W in the long run."""
        return expected((1 - TIES) * GRID + TIES / 2)

    @property
    def arena_hard(self) -> float:
        """W_AH in the long run: a decisive verdict is strong with probability |2p - 1|."""
        weight = 1 + 2 * np.abs(2 * GRID - 1)
        votes = (1 - TIES) * weight
        return expected(votes * GRID + TIES / 2) / expected(votes + TIES)

    def draw(self, rng: np.random.Generator) -> Votes:
        """One evaluation. Its answers are ordered by seed, then by prompt."""
        chance = np.broadcast_to(rng.beta(*EASE, self.prompts), (self.seeds, self.prompts)).reshape(-1, 1)
        drawn, tied = two_orders(rng, len(chance)), two_orders(rng, len(chance)) < TIES
        strong = ~tied & (two_orders(rng, len(chance)) < np.abs(2 * chance - 1))
        points = missing(rng, np.where(tied, 0.5, drawn < chance))
        return Votes(
            points=points,
            weights=np.where(np.isnan(points), 0.0, np.where(strong, 3.0, 1.0)),
            prompts=np.tile(np.arange(self.prompts), self.seeds),
            more_tokens=np.zeros(len(points)),
        )

    def outcomes(self, votes: Votes) -> np.ndarray:
        """(seeds, prompts)."""
        return votes.outcomes.reshape(self.seeds, self.prompts)


@dataclass(frozen=True)
class Lengths:
    """Verdicts that favour the longer answer: the chance to win is sigmoid(b0 + b1 tanh(d / sd)) on average."""

    prompts: int
    b0: float = 0.2
    b1: float = 1.0
    mean: float = 20.0
    deviation: float = 40.0

    @property
    def length_controlled(self) -> float:
        """LC in the long run."""
        return float(_sigmoid(np.array(self.b0)))

    def draw(self, rng: np.random.Generator) -> Votes:
        """One evaluation. How hard a prompt is scatters around what its lengths say."""
        more = rng.normal(self.mean, self.deviation, self.prompts)
        mean = _sigmoid(self.b0 + self.b1 * np.tanh(more / self.deviation))
        chance = rng.beta(4 * mean, 4 * (1 - mean))[:, None]
        points = missing(rng, (two_orders(rng, self.prompts) < chance).astype(float))
        return Votes(points, np.ones_like(points), np.arange(self.prompts), more)


@dataclass(frozen=True)
class Paired:
    """Two policies on the same prompts. A seed shifts the log-odds of either by chance, the better one's by more.

    spread: standard deviation of a seed's shift.
    """

    prompts: int
    seeds: int
    spread: float
    better: float = 0.15

    def shifts(self, rng: np.random.Generator) -> np.ndarray:
        """(2, seeds) of the better policy and of the other."""
        return rng.normal([[self.better], [0.0]], self.spread, (2, self.seeds))

    def draw(self, rng: np.random.Generator, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Outcomes of both, (seeds, prompts)."""
        odds = _log_odds(rng.beta(*EASE, self.prompts))
        chance = _sigmoid(odds + shifts[:, :, None])[..., None]
        points = missing(rng, (two_orders(rng, 2, self.seeds, self.prompts) < chance).astype(float))
        valid = ~np.isnan(points)
        with np.errstate(invalid="ignore"):
            better, other = np.where(valid, points, 0).sum(axis=-1) / valid.sum(axis=-1)
        return better, other

    def of_checkpoints(self, shifts: np.ndarray) -> float:
        """The difference of just these seeds in the long run over prompts."""
        better, other = (np.mean([expected(_sigmoid(_log_odds(GRID) + shift)) for shift in row]) for row in shifts)
        return float(better - other)

    def of_method(self) -> float:
        """The difference in the long run over seeds and prompts, by Gauss-Hermite quadrature over shifts."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(9)
        means = self.spread * nodes + np.array([[self.better], [0.0]])
        found = [[expected(_sigmoid(_log_odds(GRID) + shift)) for shift in row] for row in means]
        better, other = np.array(found) @ weights / weights.sum()
        return float(better - other)


@dataclass(frozen=True)
class Trained:
    """A policy that drifted: pairs, answers and a training curve with known parts of stability.

    drift: mean and deviation of the change of a pair's mean log-probability. rejected: mean share of collapsed tokens.
    entropy: ratio. broken: shares, of its answers and of the baseline's. longer: mean log ratio of lengths. spikes: of
    updates; they come in runs of two on average. freedom: of Student's t, by which drifts scatter; None is the normal.
    """

    pairs: int
    prompts: int
    updates: int
    drift: tuple[float, float] = (-0.05, 0.08)
    rejected: float = 0.025
    entropy: float = 0.8
    broken: tuple[float, float] = (0.06, 0.02)
    longer: float = 0.15
    spikes: float = 0.01
    freedom: float | None = None

    def parts(self) -> StabilityParts:
        """The parts in the long run."""
        mean, deviation = self.drift
        fall = max(0.0, -mean)
        if deviation:
            normal = NormalDist(-mean, deviation)
            # Of a normal number, the mean of what is above 0.
            fall = -mean * (1 - normal.cdf(0)) + deviation**2 * normal.pdf(0)
        if self.freedom:
            t, at = student(self.freedom), -mean / deviation
            fall = deviation * (at * t.cdf(at) + (self.freedom + at**2) / (self.freedom - 1) * t.pdf(at))
        return StabilityParts(
            unlearning=fall,
            rejected_collapse=self.rejected,
            entropy_shift=abs(float(np.log(self.entropy))),
            broken_outputs=max(0.0, self.broken[0] - self.broken[1]),
            length_shift=abs(self.longer),
            training_spikes=self.spikes,
        )

    def stability(self) -> float:
        """S of the parts in the long run."""
        return stability_score(self.parts(), healthy=True)

    def draw(self, rng: np.random.Generator) -> Run:
        """One evaluation, as the run of one trial; `stability` and the parts of its row are not filled in."""
        about = {"trial_id": "t", "label": "t", "phase": "arm", "seed": 0}
        chosen, rejected = rng.integers(20, 200, (2, self.pairs))
        before = rng.gamma(4, 0.25, self.pairs)
        scatter = rng.lognormal(-0.02, 0.2, self.pairs)
        share = rng.beta(1, 1 / self.rejected - 1, self.pairs) if self.rejected else np.zeros(self.pairs)
        pairs = pd.DataFrame(
            {
                **dict.fromkeys(PAIR_SCHEMA.names, 0.0),
                **about,
                "pair": np.arange(self.pairs),
                "chosen_tokens": chosen,
                "rejected_tokens": rejected,
                "chosen_logp": self._drifts(rng),
                "rejected_collapsed": rng.binomial(rejected, share),
                "entropy0": before,
                "entropy": before * scatter * self.entropy,
            }
        )
        old = rng.integers(50, 400, self.prompts)
        answers = pd.DataFrame(
            {
                **about,
                "prompt_id": np.arange(self.prompts),
                "broken": rng.random(self.prompts) < self.broken[0],
                "baseline_broken": rng.random(self.prompts) < self.broken[1],
                "baseline_tokens": old,
                "answer_tokens": old * np.exp(rng.normal(self.longer, 0.5, self.prompts)),
            }
        )
        # Far above the noise of a steady loss, which is too even ever to look like a spike.
        losses = rng.uniform(0.9, 1.1, self.updates) + 9 * self._spiking(rng)
        curves = pd.concat(
            pd.DataFrame({**about, "step": np.arange(self.updates), "source": "train", "metric": name, "value": series})
            for name, series in (("loss", losses), ("grad_norm", np.ones(self.updates)))
        )
        trials = pd.DataFrame({**about, "status": "completed", "stability": 0.0, **vars(self.parts())}, index=[0])
        return Run(Path("simulated"), trials, answers, curves, pairs, {})

    def _drifts(self, rng: np.random.Generator) -> np.ndarray:
        mean, deviation = self.drift
        if self.freedom:
            return mean + deviation * rng.standard_t(self.freedom, self.pairs)
        return rng.normal(mean, deviation, self.pairs)

    def _spiking(self, rng: np.random.Generator) -> np.ndarray:
        """(updates,) 1 where a spike is on: it goes on with probability 1/2."""
        begins = self.spikes / (2 * (1 - self.spikes))
        drawn, on, flags = rng.random(self.updates), False, np.zeros(self.updates)
        for step, value in enumerate(drawn):
            on = value < (0.5 if on else begins)
            flags[step] = on
        return flags


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-values)))


def _log_odds(chance: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(chance) - np.log1p(-chance))
