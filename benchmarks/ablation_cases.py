"""The simulated ablations that are counted, and what they have to come to."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from slime_ray.analysis import effects, factorial

from slime_ray.design import COMPONENTS
from slime_ray.errors import RunError

from .ablations import (
    FLIPS,
    Claimed,
    Covering,
    DrawDifferences,
    Settled,
    count_claims,
    count_covered,
    crossed_bootstrap,
    differences_of,
    effects_of,
    leave_one_out,
    main_effects,
    of_stability,
    stability_difference,
    try_foretold,
)
from .machine import Machine, Say, describe_machine, now
from .studies import Study

CALM = Study(
    shifts=(0.0,) * 5, seeds=8, prompts=500, seeds_differ=0.11, own=0.5, hardness=1.4, ties=0.2, alike=0.3
)  # fmt: skip
"""A reference and four variants that are the same. Seeds differ by 1.5 points; the rest as on `arithmetic`."""
RESTLESS = replace(CALM, seeds_differ=0.19)
"""Seeds that differ by 2.5 points."""
POWER_CALM = 0.78
"""Share of planted effects of 5 points that are found with 8 calm seeds and 500 prompts, as docs/ablation.md has it."""


@dataclass(frozen=True)
class AblationsReport:
    """flips: of a sign-flip test. shapley: by how much, at most, Shapley values failed to add up to the total effect.

    seconds: of the comparisons and effects of 16 cells, 8 seeds and 500 prompts, each round.
    """

    machine: Machine
    date: str
    flips: int
    claims: list[Claimed]
    coverings: list[Covering]
    settled: list[Settled]
    shapley: float
    seconds: list[float]

    def refuse_misses(self) -> None:
        """Raise RunError where tables claim too much or intervals do not cover as promised."""
        claims = [f"{one.name} ({one.size}): {one.claimed:.1%} false claims" for one in self.claims if not one.kept]
        covered = [f"{one.name} ({one.size}): {one.covered:.1%}" for one in self.coverings if not one.kept]
        missed = claims + covered + ([f"Shapley values: {self.shapley:.1e} apart"] if self.shapley > 1e-9 else [])
        if missed:
            raise RunError(f"Not as promised: {'; '.join(missed)}.")


def measure_ablations(*, studies: int, rounds: int, say: Say) -> AblationsReport:
    """All of them; `studies` of each kind."""
    claims = []
    for name, size, draw, planted in claim_cases():
        say(f"claims: {name}, {size}")
        claims.append(count_claims(name, size, draw, studies=studies, planted=planted))
    coverings = []
    for size, study in (
        ("5 seeds, 256 prompts", replace(RESTLESS, seeds=5, prompts=256)),
        ("8 seeds, 500 prompts", CALM),
    ):
        say(f"covering, {size}")
        planted_study = study.with_rates((0.60, 0.55, 0.58, 0.60, 0.63))
        coverings += count_covered(size, differences_of(planted_study), studies=studies)
        coverings += count_covered(
            size, differences_of(planted_study), studies=studies, interval=crossed_bootstrap,
            note=", crossed bootstrap (not used)", promised=False,
        )  # fmt: skip
        coverings += count_covered(size, effects_of(replace(study, shifts=FACTORIAL)), studies=studies)
    for seeds in (5, 8):
        coverings += count_covered(f"{seeds} seeds", stability_difference(seeds), studies=4 * studies)
    settled = []
    for points, study in ((5, replace(RESTLESS, seeds=5)), (3, CALM), (2, replace(CALM, prompts=256))):
        say(f"seeds that would settle {points} points")
        settled.append(
            try_foretold(
                f"{points} points", study.with_rates((0.60, 0.60 - points / 100)), comparisons=4, studies=studies
            )
        )
    return AblationsReport(
        machine=describe_machine(torch.device("cpu")),
        date=now(),
        flips=FLIPS,
        claims=claims,
        coverings=coverings,
        settled=settled,
        shapley=shapley_gap(studies),
        seconds=measure_tables(rounds),
    )


FACTORIAL = tuple(
    0.25 * ("anchor" in cell) + 0.4 * ("stabilizer" in cell) + 0.1 * ("soft_margin" in cell)
    - 0.3 * ({"anchor", "stabilizer"} <= cell) + 0.15 * ({"soft_margin", "hard_margin"} <= cell)
    for cell in factorial.cells_of(COMPONENTS)
)  # fmt: skip
"""Log-odds of 16 cells: three components that matter, one that does only beside another, two interactions."""


def claim_cases() -> Iterator[tuple[str, str, DrawDifferences, frozenset[str]]]:
    """Name, size, design, and the comparisons that differ in truth."""
    nothing: frozenset[str] = frozenset()
    for study, spread in ((CALM, "1.5"), (RESTLESS, "2.5")):
        for seeds in (5, 8):
            sized = replace(study, seeds=seeds)
            yield "no effect", f"{seeds} seeds that differ by {spread}", leave_one_out(replace(sized, own=0.0)), nothing
            yield "none on average", f"{seeds} seeds that differ by {spread}", leave_one_out(sized), nothing
    alike = replace(CALM, alike=0.9)
    yield "no effect, answers mostly the same", "8 seeds that differ by 1.5", leave_one_out(alike), nothing
    unlike = replace(CALM, own=1.0)
    yield "none on average, prompts very unlike", "8 seeds that differ by 1.5", leave_one_out(unlike), nothing
    yield "no main effect", "8 seeds that differ by 1.5", main_effects(replace(CALM, shifts=(0.0,) * 16)), nothing
    for seeds in (5, 8):
        yield "no effect on S", f"{seeds} seeds", of_stability(5, seeds), nothing
    for points in (3, 5):
        for study, spread in ((CALM, "1.5"), (RESTLESS, "2.5")):
            planted = study.with_rates((0.60, 0.60 - points / 100, 0.60, 0.60, 0.60))
            yield f"one of {points} points", f"8 seeds that differ by {spread}", leave_one_out(planted), frozenset("1")


def shapley_gap(studies: int) -> float:
    """The largest gap between the sum of all Shapley values and the total effect, over studies."""
    weights, total = factorial.shapley_weights(COMPONENTS), factorial.total_weights(COMPONENTS)
    gaps = []
    for seed in range(studies):
        outcomes = replace(CALM, shifts=FACTORIAL, prompts=50).draw(np.random.default_rng(seed))
        values = [effects.interval(factorial.contrast(own, outcomes)).value for own in weights.values()]
        gaps.append(abs(sum(values) - effects.interval(factorial.contrast(total, outcomes)).value))
    return max(gaps)


def measure_tables(rounds: int) -> list[float]:
    """Seconds of all comparisons and effects of 16 cells, 8 seeds and 500 prompts; sign flips drawn anew each time."""
    outcomes = replace(CALM, shifts=FACTORIAL).draw(np.random.default_rng(0))
    seconds = []
    for _ in range(rounds):
        effects.signs.cache_clear()
        clock = time.perf_counter()
        for claim in effects.claims({str(cell): outcomes[cell] - outcomes[-1] for cell in range(15)}).values():
            _ = claim.settling, effects.improvement(claim.d)
        weights = [*factorial.effect_weights(COMPONENTS).values(), *factorial.shapley_weights(COMPONENTS).values()]
        effects.claims({str(place): factorial.contrast(own, outcomes) for place, own in enumerate(weights[:4])})
        for own in weights:
            effects.interval(factorial.contrast(own, outcomes))
        seconds.append(time.perf_counter() - clock)
    return seconds
