"""The simulated ablations that are counted, and what they have to come to."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from slime_ray.analysis import factorial

from slime_ray.config.design import COMPONENTS
from slime_ray.planning.tables import table

from .ablations import (
    Claimed,
    Covering,
    DrawDifferences,
    Settled,
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
from .studies import Study

CALM = Study(
    shifts=(0.0,) * 5, seeds=8, prompts=500, seeds_differ=0.11, own=0.5, hardness=1.4, ties=0.2, alike=0.3
)  # fmt: skip
"""A reference and four variants that are the same. Seeds differ by 1.5 points; the rest as on `arithmetic`."""
RESTLESS = replace(CALM, seeds_differ=0.19)
"""Seeds that differ by 2.5 points."""
POWER_CALM = 0.78
"""Share of planted effects of 5 points that are found with 8 calm seeds and 500 prompts, as docs/benchmarks/statistics.md has it."""


def covering_cases(studies: int) -> Iterator[Covering]:
    """Measure every kind of interval that the tables print, `studies` of each."""
    for size, study in (
        ("5 seeds, 256 prompts", replace(RESTLESS, seeds=5, prompts=256)),
        ("8 seeds, 500 prompts", CALM),
    ):
        planted = study.with_rates((0.60, 0.55, 0.58, 0.60, 0.63))
        yield from count_covered(size, differences_of(planted), studies=studies)
        yield from count_covered(
            size, differences_of(planted), studies=studies, interval=crossed_bootstrap,
            note=", crossed bootstrap (not used)", promised=False,
        )  # fmt: skip
        yield from count_covered(size, effects_of(replace(study, shifts=FACTORIAL)), studies=studies)
    for seeds in (5, 8):
        yield from count_covered(f"{seeds} seeds", stability_difference(seeds), studies=4 * studies)


def settled_cases(studies: int) -> Iterator[Settled]:
    """Try the numbers of seeds that are foretold to settle a difference."""
    for points, study in ((5, replace(RESTLESS, seeds=5)), (3, CALM), (2, replace(CALM, prompts=256))):
        sized = study.with_rates((0.60, 0.60 - points / 100))
        yield try_foretold(f"{points} points", sized, comparisons=4, studies=studies)


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


def claims_table(claims: Sequence[Claimed]) -> str:
    """Render claims as the table of docs/benchmarks/statistics.md."""
    rows = [
        (
            one.name,
            one.size,
            f"{one.studies:,}",
            f"{one.claimed:.1%}",
            f"{one.upper:.1%}",
            f"{one.two_tests:.1%}",
            *(f"{share:.1%}" for share in one.by_test.values()),
            "-" if one.found is None else f"{one.found:.1%}",
            "pass" if one.kept else "FAIL",
        )
        for one in claims
    ]
    titles = ("truth", "size", "designs", "false", "bound", "t, flips", *claims[0].by_test, "found", "")
    return table(titles, rows)


def covering_table(coverings: Sequence[Covering]) -> str:
    """Render coverages as the table of docs/benchmarks/statistics.md."""
    rows = [
        (
            one.name,
            one.size,
            f"{one.intervals:,}",
            f"{one.covered:.1%}",
            f"{one.error:.1%}",
            f"{one.width:.3f}",
            "" if not one.promised else "pass" if one.kept else "FAIL",
        )
        for one in coverings
    ]
    return table(("interval", "size", "intervals", "covered", "MC error", "mean width", ""), rows)


def settled_table(settled: Sequence[Settled]) -> str:
    """Render what was foretold as the table of docs/benchmarks/statistics.md."""
    rows = [(one.name, one.foretold, f"{one.studies:,}", f"{one.power:.1%}") for one in settled]
    return table(("true difference", "foretold", "studies of that size", "claimed"), rows)
