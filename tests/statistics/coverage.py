"""How often 95 % intervals cover a known truth, over many simulated evaluations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from slime_ray.analysis import effects, rows, stability
from slime_ray.analysis.statistics import (
    FEWEST_SEEDS,
    Interval,
    interval,
    resample_means,
    win_rate_interval,
)

from slime_ray.planning.tables import table

from .simulated import Lengths, Paired, Trained, Verdicts

PROMISED = (0.93, 0.97)
"""What a 95 % interval that this package prints has to keep."""
Draw = Callable[[np.random.Generator], tuple[float, Interval | None]]
"""Makes one evaluation; returns the truth and the interval that was computed from it."""


@dataclass(frozen=True)
class Case:
    """One kind of interval on one kind of evaluation. promised: whether it has to cover within PROMISED."""

    name: str
    size: str
    draw: Draw
    promised: bool = True


@dataclass(frozen=True)
class Coverage:
    """How often a case's intervals covered the truth, and how wide they were on average, of `evaluations`."""

    name: str
    size: str
    promised: bool
    evaluations: int
    covered: float
    width: float

    @property
    def kept(self) -> bool:
        """Whether what was promised was kept."""
        return not self.promised or PROMISED[0] <= self.covered <= PROMISED[1]


def measure(case: Case, *, evaluations: int) -> Coverage:
    """Draw evaluations with seeds 0, 1, ... and count."""
    covered, width, known = 0, 0.0, 0
    for seed in range(evaluations):
        truth, found = case.draw(np.random.default_rng(seed))
        if found is not None:
            known += 1
            covered += found.covers(truth)
            width += found.high - found.low
    return Coverage(case.name, case.size, case.promised, known, covered / known, width / known)


def verdict_cases(prompts: int, seeds: int, *, resamples: int) -> list[Case]:
    """Win rate, W_AH, and what resampling single votes would give."""
    world = Verdicts(prompts, seeds)

    def win_rate(rng: np.random.Generator) -> tuple[float, Interval | None]:
        return world.win_rate, win_rate_interval(world.outcomes(world.draw(rng)), resamples=resamples)

    def arena_hard(rng: np.random.Generator) -> tuple[float, Interval | None]:
        return world.arena_hard, world.draw(rng).arena_hard(resamples=resamples)

    def naive(rng: np.random.Generator) -> tuple[float, Interval | None]:
        points = world.draw(rng).points.ravel()
        points = points[~np.isnan(points)]
        return world.win_rate, interval(points.mean(), resample_means(points, resamples=resamples), units=points.size)

    size = f"{prompts} prompts, {seeds} seed{'s' * (seeds > 1)}"
    return [
        Case("win rate", size, win_rate),
        Case("W_AH", size, arena_hard),
        Case("single votes (not used)", size, naive, promised=False),
    ]


def length_case(prompts: int, *, resamples: int) -> Case:
    """The length-controlled rate."""
    world = Lengths(prompts)

    def draw(rng: np.random.Generator) -> tuple[float, Interval | None]:
        return world.length_controlled, world.draw(rng).length_controlled(resamples=resamples)

    return Case("LC", f"{prompts} prompts, 1 seed", draw)


def paired_cases(prompts: int, seeds: int, spread: float, *, resamples: int) -> list[Case]:
    """The paired difference as printed, and, from two seeds on, the crossed bootstrap (Owen 2007)."""
    world = Paired(prompts, seeds, spread)
    of_method = world.of_method()

    def printed(rng: np.random.Generator) -> tuple[float, Interval | None]:
        shifts = world.shifts(rng)
        # Below five seeds the interval is of these checkpoints: their own difference is what it has to cover.
        truth = of_method if seeds >= FEWEST_SEEDS else world.of_checkpoints(shifts)
        policy, other = (([*range(seeds)], outcomes) for outcomes in world.draw(rng, shifts))
        d = rows.difference(policy, other)
        return truth, None if d is None else effects.interval(d, resamples=resamples)

    def crossed(rng: np.random.Generator) -> tuple[float, Interval | None]:
        policy, other = world.draw(rng, world.shifts(rng))
        values = (policy - other)[:, ~np.isnan(policy - other).any(axis=0)]
        by_seed = resample_means(values, resamples=resamples)
        drawn = np.random.default_rng(1).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
        return of_method, interval(values.mean(), (by_seed * drawn).sum(axis=1) / seeds, units=values.shape[1])

    size = f"{prompts} prompts, {seeds} seed{'s' * (seeds > 1)} that differ by {spread:.2f}"
    of = "method" if seeds >= FEWEST_SEEDS else "checkpoints"
    # Where seeds do not differ at all, chance alone makes them seem to: the interval of a method is too wide there.
    cases = [Case(f"paired difference, {of}", size, printed, promised=of == "checkpoints" or spread > 0)]
    if seeds > 1:
        cases.append(Case("crossed bootstrap (not used), method", size, crossed, promised=False))
    return cases


def stability_case(name: str, world: Trained, *, resamples: int, promised: bool = True) -> Case:
    """S of one trial."""
    truth = world.stability()

    def draw(rng: np.random.Generator) -> tuple[float, Interval | None]:
        run = world.draw(rng)
        return truth, stability.intervals(run, run.trials, resamples=resamples)["stability"]

    return Case(f"S, {name}", f"{world.pairs} pairs, {world.prompts} prompts, {world.updates} updates", draw, promised)


def all_cases(*, resamples: int) -> list[Case]:
    """Every kind of interval that the tables print, at several sizes."""
    cases = []
    for prompts, seeds in ((64, 1), (256, 1), (256, 3), (1000, 1)):
        cases += verdict_cases(prompts, seeds, resamples=resamples)
    cases += [length_case(prompts, resamples=resamples) for prompts in (64, 256)]
    for prompts in (64, 256, 1000):
        cases += paired_cases(prompts, 1, 0.15, resamples=resamples)
    for seeds, spread in ((3, 0.15), (5, 0.0), (5, 0.15), (5, 0.4), (10, 0.15)):
        cases += paired_cases(256, seeds, spread, resamples=resamples)
    drifted = Trained(256, 256, 200, spikes=0.0)
    little = replace(drifted, drift=(0.0, 0.03), rejected=0.004, entropy=0.95, broken=(0.03, 0.02), longer=0.05)
    none = replace(drifted, drift=(0.0, 0.0), rejected=0.0, entropy=1.0, broken=(0.02, 0.02), longer=0.0)
    for name, world, promised in (
        ("drifted", drifted, True),
        ("drifted a little", little, True),
        ("drifted, 1 % spikes", replace(drifted, spikes=0.01), False),
        ("unchanged", none, False),
    ):
        truth = f"{name}, true S {world.stability():.2f}"
        cases.append(stability_case(truth, world, resamples=resamples, promised=promised))
    return cases


def coverage_table(coverages: Sequence[Coverage]) -> str:
    """Render coverages as the table of docs/benchmarks/statistics.md."""
    rows = [
        (
            at.name,
            at.size,
            f"{at.evaluations:,}",
            f"{at.covered:.1%}",
            f"{at.width:.3f}",
            "" if not at.promised else "pass" if at.kept else "FAIL",
        )
        for at in coverages
    ]
    return table(("interval", "size", "evaluations", "covered", "mean width", ""), rows)
