"""How often 95 % intervals cover a known truth, over many simulated evaluations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from slime_ray.analysis import effects, rows, stability
from slime_ray.analysis.adjusted import Difficulties, alpaca_eval_rate
from slime_ray.analysis.statistics import (
    FEWEST_SEEDS,
    Interval,
    interval,
    resample_sums,
    win_rate_interval,
)

from slime_ray.planning.tables import table
from slime_ray.runs.results import Run
from slime_ray.runs.stability_v1 import StabilityParts, spike_flags, stability_score

from .simulated import Lengths, Paired, Trained, Verdicts

PROMISED = (0.93, 0.97)
"""What a 95 % interval that this package prints has to keep."""
Draw = Callable[[np.random.Generator], tuple[float, Interval | None]]
"""Makes one evaluation; returns the truth and the interval that was computed from it."""


@dataclass(frozen=True)
class Case:
    """One kind of interval on one kind of evaluation.

    promised: how often it has to cover; None promises nothing. most: evaluations of a kind that takes long.
    """

    name: str
    size: str
    draw: Draw
    promised: tuple[float, float] | None = PROMISED
    most: int = 1_000_000


@dataclass(frozen=True)
class Coverage:
    """How often a case's intervals covered the truth, and how wide they were on average, of `evaluations`."""

    name: str
    size: str
    promised: tuple[float, float] | None
    evaluations: int
    covered: float
    width: float

    @property
    def error(self) -> float:
        """Monte-Carlo standard error of `covered`."""
        return float(np.sqrt(self.covered * (1 - self.covered) / self.evaluations))

    @property
    def kept(self) -> bool:
        """Whether what was promised was kept."""
        return not self.promised or self.promised[0] <= self.covered <= self.promised[1]


def measure(case: Case, *, evaluations: int) -> Coverage:
    """Draw evaluations with seeds 0, 1, ... and count."""
    covered, width, known = 0, 0.0, 0
    for seed in range(min(evaluations, case.most)):
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
        return world.win_rate, win_rate_interval(world.outcomes(world.draw(rng)))

    def arena_hard(rng: np.random.Generator) -> tuple[float, Interval | None]:
        return world.arena_hard, world.draw(rng).arena_hard()

    def naive(rng: np.random.Generator) -> tuple[float, Interval | None]:
        points = world.draw(rng).points.ravel()
        points = points[~np.isnan(points)]
        drawn = resample_sums(points, resamples=resamples) / points.size
        return world.win_rate, interval(points.mean(), drawn, units=points.size)

    size = f"{prompts} prompts, {seeds} seed{'s' * (seeds > 1)}"
    return [
        Case("win rate", size, win_rate),
        Case("W_AH", size, arena_hard),
        Case("single votes (not used)", size, naive, promised=None),
    ]


def length_case(world: Lengths, name: str = "", *, promised: tuple[float, float] = PROMISED) -> Case:
    """The length-controlled rate. name: what is special about the world."""

    def draw(rng: np.random.Generator) -> tuple[float, Interval | None]:
        found = world.draw(rng).length_controlled()
        # Without ends where all outcomes are the same.
        return world.length_controlled, None if found is None or np.isnan(found.low) else found

    return Case(f"LC{name}", f"{world.prompts} prompts, 1 seed", draw, promised)


def alpaca_eval_case(prompts: int, seeds: int) -> Case:
    """AlpacaEval's rate, without the two answerers that it adds, over prompts and from five seeds on over seeds."""
    b0, spread = 0.3, 0.25 if seeds >= FEWEST_SEEDS else 0.0
    length, difficulty = 0.8, 0.9
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    truth = float(expit(b0 + np.hypot(difficulty, spread) * nodes) @ weights / weights.sum())
    ids = pd.Series(map(str, range(prompts)))

    def draw(rng: np.random.Generator) -> tuple[float, Interval | None]:
        hard, own = rng.normal(size=prompts), []
        for seed in range(seeds):
            more = rng.integers(-500, 900, prompts)
            odds = b0 + rng.normal(0, spread) + difficulty * hard + length * np.tanh(more / more.std())
            chance = rng.beta(2 * expit(odds), 2 * expit(-odds))
            texts = {"answer": ["x" * (1000 + count) for count in more], "baseline_answer": "x" * 1000}
            own.append(pd.DataFrame({"trial_id": str(seed), "prompt_id": ids, "outcome": chance, **texts}))
        difficulties = Difficulties(Path("made-up"), pd.Series(hard, ids), np.empty(0), np.empty((0, 3)))
        return truth, alpaca_eval_rate(pd.concat(own), difficulties)

    return Case("AlpacaEval LC", f"{prompts} prompts, {seeds} seed{'s' * (seeds > 1)}", draw, most=200)


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
        return truth, None if d is None else effects.interval(d)

    def crossed(rng: np.random.Generator) -> tuple[float, Interval | None]:
        policy, other = world.draw(rng, world.shifts(rng))
        values = (policy - other)[:, ~np.isnan(policy - other).any(axis=0)]
        by_seed = resample_sums(values, resamples=resamples) / values.shape[1]
        drawn = np.random.default_rng(1).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
        return of_method, interval(values.mean(), (by_seed * drawn).sum(axis=1) / seeds, units=values.shape[1])

    size = f"{prompts} prompts, {seeds} seed{'s' * (seeds > 1)} that differ by {spread:.2f}"
    of = "method" if seeds >= FEWEST_SEEDS else "checkpoints"
    # Where seeds do not differ at all, chance alone makes them seem to: the interval of a method is too wide there.
    cases = [Case(f"paired difference, {of}", size, printed, PROMISED if of == "checkpoints" or spread else None)]
    if seeds > 1:
        cases.append(Case("crossed bootstrap (not used), method", size, crossed, promised=None))
    return cases


def stability_cases(
    name: str, world: Trained, *, resamples: int, promised: tuple[float, float] = PROMISED, parts: str = ""
) -> list[Case]:
    """S of one trial, and of its parts those whose letters are named.

    An interval of S is of this training, whose spikes are what they were. How it covers the S of other trainings is
    measured beside it where there are spikes.
    """
    truths = vars(world.parts()) | {"stability": world.stability()}
    letters = {letter: name for name, letter in rows.PARTS.items()}
    size = f"{world.pairs} pairs, {world.prompts} prompts, {world.updates} updates"

    known: dict[int, tuple[StabilityParts, dict[str, Interval]]] = {}

    def evaluated(rng: np.random.Generator) -> tuple[StabilityParts, dict[str, Interval]]:
        # All cases of a world are of the same evaluations.
        key = rng.bit_generator.state["state"]["state"]
        if key not in known:
            run = world.draw(rng)
            # What a table shows is the estimate, not the truth, and the interval reaches to it.
            parts = estimated_parts(run)
            trials = run.trials.assign(**vars(parts), stability=stability_score(parts, healthy=True))
            known[key] = parts, stability.intervals(run, trials, resamples=resamples)
        return known[key]

    def of_training(rng: np.random.Generator) -> tuple[float, Interval | None]:
        parts, intervals = evaluated(rng)
        counted = replace(world.parts(), training_spikes=parts.training_spikes)
        return stability_score(counted, healthy=True), intervals["stability"]

    def drawer(column: str) -> Draw:
        return lambda rng: (truths[column], evaluated(rng)[1][column])

    cases = [Case(f"S, {name}", size, of_training, promised)]
    if world.spikes:
        cases.append(Case(f"S of other trainings, {name}", size, drawer("stability"), None))
    for letter in parts:
        # A share of which hardly anything is seen has an interval that covers more. U is no share, and has tails.
        covers = None if letter == "U" else (PROMISED[0], 1.0)
        cases.append(Case(f"{letter} {truths[letters[letter]]:.2g}, {name}", size, drawer(letters[letter]), covers))
    return cases


def estimated_parts(run: Run) -> StabilityParts:
    """The parts of what the one trial of a run recorded, by their definitions."""
    pairs, answers, curves = run.pairs, run.answers, run.curves
    flags = spike_flags(*(curves.loc[curves["metric"] == name, "value"].tolist() for name in ("loss", "grad_norm")))
    tokens = pairs["chosen_tokens"]
    return StabilityParts(
        unlearning=float(np.maximum(0, pairs["chosen_logp0"] - pairs["chosen_logp"]).mean()),
        rejected_collapse=float(pairs["rejected_collapsed"].sum() / pairs["rejected_tokens"].sum()),
        entropy_shift=abs(float(np.log((tokens * pairs["entropy"]).sum() / (tokens * pairs["entropy0"]).sum()))),
        broken_outputs=max(0.0, float(answers["broken"].mean() - answers["baseline_broken"].mean())),
        length_shift=abs(float(np.log(answers["answer_tokens"] / answers["baseline_tokens"]).mean())),
        training_spikes=float(flags.mean()) if len(flags) else 0.0,
    )


def all_cases(*, resamples: int) -> list[Case]:
    """Every kind of interval that the tables print, at several sizes."""
    cases = []
    for prompts, seeds in ((64, 1), (256, 1), (256, 3), (1000, 1)):
        cases += verdict_cases(prompts, seeds, resamples=resamples)
    cases += [length_case(Lengths(prompts)) for prompts in (64, 256)]
    over = (PROMISED[0], 1.0)
    for prompts in (20, 50, 256):
        cases += [
            length_case(Lengths(prompts, b0=-3.0), ", rate 5 %", promised=over),
            length_case(Lengths(prompts, mean=60.0), ", 1.5 sd longer", promised=over),
            length_case(Lengths(prompts, mean=100.0), ", 2.5 sd longer, extrapolated", promised=(0.9, 1.0)),
        ]
    cases += [alpaca_eval_case(prompts, seeds) for prompts, seeds in ((64, 1), (256, 1), (64, 5))]
    for prompts in (64, 256, 1000):
        cases += paired_cases(prompts, 1, 0.15, resamples=resamples)
    for seeds, spread in ((3, 0.15), (5, 0.0), (5, 0.15), (5, 0.4), (10, 0.15)):
        cases += paired_cases(256, seeds, spread, resamples=resamples)
    near = (0.9, 1.0)
    drifted = Trained(256, 256, 200, spikes=0.0)
    little = replace(drifted, drift=(0.0, 0.03), rejected=0.004, entropy=0.95, broken=(0.03, 0.02), longer=0.05)
    none = replace(drifted, drift=(0.0, 0.0), rejected=0.0, entropy=1.0, broken=(0.02, 0.02), longer=0.0)
    for name, world, promised, parts in (
        ("drifted", drifted, PROMISED, "CB"),
        ("heavy tails", replace(drifted, freedom=3.0), near, "U"),
        ("heavy tails, small", replace(drifted, freedom=3.0, pairs=50, prompts=50), near, "U"),
        ("drifted a little", little, near, "CB"),
        ("a little, small", replace(little, pairs=50, prompts=50), near, "CB"),
        ("drifted, 1 % spikes", replace(drifted, spikes=0.01), near, "T"),
        ("unchanged", none, near, "CBT"),
    ):
        truth = f"{name}, true S {world.stability():.2f}"
        cases += stability_cases(truth, world, resamples=resamples, promised=promised, parts=parts)
    return cases


def coverage_table(coverages: Sequence[Coverage]) -> str:
    """Render coverages as the table of docs/benchmarks/statistics.md."""
    rows = [
        (
            at.name,
            at.size,
            f"{at.evaluations:,}",
            f"{at.covered:.1%}",
            f"{at.error:.1%}",
            f"{at.width:.3f}",
            "" if not at.promised else "pass" if at.kept else "FAIL",
        )
        for at in coverages
    ]
    return table(("interval", "size", "evaluations", "covered", "MC error", "mean width", ""), rows)
