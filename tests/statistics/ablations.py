"""What the ablation tables claim and cover over many simulated studies of which the truth is known."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from slime_ray.analysis import effects, factorial, statistics
from slime_ray.analysis.effects import Claim

from slime_ray.config.design import COMPONENTS

from .studies import Study

FALSE_CLAIMS, BOUND = 0.05, 0.065
"""Designs without any effect that may claim one, and what the upper 95 % confidence bound of that may be."""
COVERED = (0.93, 0.97)
FLIPS = 2_000
"""Of a sign-flip test in the simulations; tables make 10,000."""


@dataclass(frozen=True)
class Claimed:
    """Of `studies` designs, the share that claims at least one difference where there is none in truth.

    claimed: by the rule of the tables. upper: the upper end of its one-sided 95 % confidence interval. two_tests: if
    the paired t and the sign flips were enough; by_test: if one test were. found: share of the planted differences
    that are claimed, None where nothing was planted.
    """

    name: str
    size: str
    studies: int
    claimed: float
    upper: float
    two_tests: float
    by_test: dict[str, float]
    found: float | None

    @property
    def kept(self) -> bool:
        """Whether no more is claimed than may be. A rate of just 5 % is estimated as more every other time."""
        return self.upper <= BOUND


@dataclass(frozen=True)
class Covering:
    """How often intervals of one kind covered the planted truth, and how wide they were on average, as shares or S."""

    name: str
    size: str
    studies: int
    intervals: int
    covered: float
    width: float
    promised: bool

    @property
    def error(self) -> float:
        """Monte-Carlo standard error of `covered`, at most: as if all intervals of a study covered together."""
        return float(np.sqrt(self.covered * (1 - self.covered) / self.studies))

    @property
    def kept(self) -> bool:
        """Whether what was promised was kept."""
        return not self.promised or COVERED[0] <= self.covered <= COVERED[1]


@dataclass(frozen=True)
class Settled:
    """power: share of studies with the number of seeds that was foretold in which the difference then was claimed."""

    name: str
    foretold: str
    studies: int
    power: float


Differences = dict[str, np.ndarray | None]
DrawDifferences = Callable[[np.random.Generator], Differences]
"""Makes the comparisons of one design."""


def leave_one_out(study: Study) -> DrawDifferences:
    """Every cell minus the first."""

    def draw(rng: np.random.Generator) -> Differences:
        outcomes = study.draw(rng)
        return {str(cell): outcomes[cell] - outcomes[0] for cell in range(1, len(outcomes))}

    return draw


def main_effects(study: Study) -> DrawDifferences:
    """The main effects of a 2^4 design. The cells of `study` are in the order of `factorial.cells_of`."""
    weights = {name: factorial.effect_weights(COMPONENTS)[(name,)] for name in COMPONENTS}

    def draw(rng: np.random.Generator) -> Differences:
        outcomes = study.draw(rng)
        scaled = {name: own * factorial.scale(own) for name, own in weights.items()}
        return {name: factorial.contrast(own, outcomes) for name, own in scaled.items()}

    return draw


def of_stability(cells: int, seeds: int) -> DrawDifferences:
    """S of every cell minus that of the first: one skewed number a seed, a tenth of them collapsed."""

    def draw(rng: np.random.Generator) -> Differences:
        scores = stabilities(rng, cells, seeds)
        return {str(cell): scores[cell] - scores[0] for cell in range(1, cells)}

    return draw


def stabilities(rng: np.random.Generator, cells: int, seeds: int, steady: float = 0.5) -> np.ndarray:
    """(cells, seeds) scores of a Beta distribution around `steady`, a tenth of them near 0."""
    scores = rng.beta(12 * steady, 12 * (1 - steady), (cells, seeds))
    return np.where(rng.random((cells, seeds)) < 0.1, 0.1 * scores, scores)


def count_claims(
    name: str,
    size: str,
    draw: DrawDifferences,
    *,
    studies: int,
    planted: frozenset[str] = frozenset(),
) -> Claimed:
    """Judge designs with seeds 0, 1, ... by `effects.claims`, as the tables do, and count.

    planted: the comparisons that differ in truth; claims of those are no false ones.
    """
    claimed, two, found = 0, 0, 0
    by_test = dict.fromkeys(effects.TESTS, 0)
    for seed in range(studies):
        claims = effects.claims(draw(np.random.default_rng(seed)), flips=FLIPS)
        without = [claim for comparison, claim in claims.items() if comparison not in planted]
        claimed += any(claim.matters for claim in without)
        two += any(_agree(claim, ("seeds", "prompts")) for claim in without)
        for test in effects.TESTS:
            by_test[test] += any(_agree(claim, (test,)) for claim in without)
        found += sum(claims[comparison].matters for comparison in planted)
    return Claimed(
        name,
        size,
        studies,
        claimed / studies,
        upper_bound(claimed, studies),
        two / studies,
        {test: count / studies for test, count in by_test.items()},
        found / studies / len(planted) if planted else None,
    )


def _agree(claim: Claim, tests: tuple[str, ...]) -> bool:
    known = [claim.corrected[test] for test in tests if test in claim.corrected]
    return bool(known) and max(known) < effects.LEVEL


def upper_bound(count: int, total: int) -> float:
    """The upper end of the one-sided 95 % confidence interval of a share, exact (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    return 1.0 if count == total else float(betaincinv(count + 1, total - count, 0.95))


Estimates = Iterator[tuple[str, float, np.ndarray, float]]
"""Kinds of effects, their truth, their values by seed and prompt, or by seed, and the scale they are measured on."""
DrawEstimates = Callable[[np.random.Generator], Estimates]


def differences_of(study: Study) -> DrawEstimates:
    """Every cell's difference to the first."""
    rates = study.rates()

    def draw(rng: np.random.Generator) -> Estimates:
        outcomes = study.draw(rng)
        for cell in range(1, len(rates)):
            yield "difference", rates[cell] - rates[0], outcomes[cell] - outcomes[0], 1.0

    return draw


def effects_of(study: Study) -> DrawEstimates:
    """All main effects, interactions and Shapley values of a 2^4 design."""
    rates = study.rates()
    kinds = [
        ("main effect" if len(names) == 1 else "interaction", weights)
        for names, weights in factorial.effect_weights(COMPONENTS).items()
    ]
    kinds += [("Shapley value", weights) for weights in factorial.shapley_weights(COMPONENTS).values()]

    def draw(rng: np.random.Generator) -> Estimates:
        outcomes = study.draw(rng)
        for name, weights in kinds:
            times = factorial.scale(weights)
            yield name, float(weights @ rates), factorial.contrast(weights, outcomes), times

    return draw


def stability_difference(seeds: int) -> DrawEstimates:
    """The difference of S between a steady and an unsteady cell."""
    truth = 0.91 * (0.4 - 0.7)

    def draw(rng: np.random.Generator) -> Estimates:
        steady, other = (stabilities(rng, 1, seeds, at)[0] for at in (0.7, 0.4))
        yield "difference of S", truth, other - steady, 1.0

    return draw


def count_covered(
    size: str,
    draw: DrawEstimates,
    *,
    studies: int,
    interval: Callable[[np.ndarray], statistics.Interval] = effects.interval,
    note: str = "",
    promised: bool = True,
) -> list[Covering]:
    """How often `interval` covers the truth, by kind of effect. Studies with seeds 0, 1, ..."""
    found: dict[str, list[tuple[bool, float]]] = {}
    for seed in range(studies):
        for name, truth, values, times in draw(np.random.default_rng(seed)):
            one = interval(values * times)
            found.setdefault(name, []).append((one.covers(truth * times), (one.high - one.low) / times))
    return [
        Covering(
            name + note, size, studies, len(own), float(np.mean([hit for hit, _ in own])),
            float(np.mean([width for _, width in own])), promised,
        )
        for name, own in found.items()
    ]  # fmt: skip


def crossed_bootstrap(values: np.ndarray, *, resamples: int = 1_000) -> statistics.Interval:
    """Owen's (2007): seeds and prompts drawn independently of each other."""
    by_seed = statistics.resample_sums(values.astype(np.float32), resamples=resamples) / values.shape[1]
    drawn = np.random.default_rng(1).multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    return statistics.interval(values.mean(), (by_seed * drawn).sum(axis=1) / len(values), units=values.shape[1])


def try_foretold(name: str, study: Study, *, comparisons: int, studies: int) -> Settled:
    """Foretell how many seeds settle the one difference of a study, its variances known, and try as many.

    comparisons: of the table, of which this one is the first to be settled.
    """
    large = statistics.TwoWay.of(_difference(replace(study, seeds=200, prompts=1_000), seed=0))
    of_seeds, of_prompts, rest = large.components
    rates = study.rates()
    known = statistics.TwoWay(
        mean=float(rates[1] - rates[0]),
        seeds=study.seeds,
        prompts=study.prompts,
        mean_squares=np.array([rest + study.prompts * of_seeds, rest + study.seeds * of_prompts, rest]),
    )
    foretold = effects.of_two_way(known, effects.LEVEL / comparisons)
    sized = replace(study, seeds=foretold.seeds or study.seeds, prompts=foretold.prompts or study.prompts)
    others: Differences = dict.fromkeys(map(str, range(2, comparisons + 1)))
    found = [effects.claims({"1": _difference(sized, seed), **others}, flips=FLIPS) for seed in range(studies)]
    return Settled(name, str(foretold), studies, sum(claims["1"].matters for claims in found) / studies)


def _difference(study: Study, seed: int) -> np.ndarray:
    outcomes = study.draw(np.random.default_rng(seed))
    return np.asarray(outcomes[1] - outcomes[0])
