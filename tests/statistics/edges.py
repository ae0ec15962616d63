"""The edges: rates near 0 and 1, heavy ties, prompts in topics, seeds that break rarely, fronts. Truths by numpy alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from slime_ray.analysis import effects, front, statistics
from slime_ray.analysis.judging import Votes
from slime_ray.analysis.statistics import Interval

from slime_ray.planning.tables import table

COVERED = (0.93, 0.98)
FLIPS = 2_000
Draw = Callable[[np.random.Generator], tuple[float, Interval | None]]


@dataclass(frozen=True)
class Edge:
    """What was counted of one regime. promised: what `share` has to lie within; None promises nothing."""

    name: str
    regime: str
    count: int
    share: float
    width: float
    promised: tuple[float, float] | None

    @property
    def error(self) -> float:
        """Monte-Carlo standard error of `share`."""
        return float(np.sqrt(self.share * (1 - self.share) / self.count))

    @property
    def kept(self) -> bool:
        """Whether the share is within what was promised, its Monte-Carlo error aside."""
        if self.promised is None:
            return True
        return self.promised[0] - 2 * self.error <= self.share <= self.promised[1] + 2 * self.error


def cover(name: str, regime: str, draw: Draw, *, count: int, promised: tuple[float, float] | None = COVERED) -> Edge:
    """How often intervals cover the truth, in evaluations with seeds 0, 1, ..."""
    covered, widths = 0, []
    for seed in range(count):
        truth, found = draw(np.random.default_rng(seed))
        assert found is not None
        assert found.low < found.high
        # An interval that ends at the truth but for rounding covers it.
        covered += found.low - 1e-9 <= truth <= found.high + 1e-9
        widths.append(found.high - found.low)
    return Edge(name, regime, count, covered / count, float(np.mean(widths)), promised)


@dataclass(frozen=True)
class Rates:
    """Outcomes of seeds and prompts. rate: of the decisive verdicts. concentration: of the prompts' chances (Beta)."""

    rate: float
    ties: float
    seeds: int
    prompts: int
    concentration: float = 2.0
    same: float = 0.6

    @property
    def truth(self) -> float:
        """The win rate in the long run."""
        return (1 - self.ties) * self.rate + self.ties / 2

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(seeds, prompts, 2) points of both orders."""
        chance = rng.beta(self.concentration * self.rate, self.concentration * (1 - self.rate), self.prompts)
        shape = (self.seeds, self.prompts)
        repeated = rng.random(shape) < self.same
        drawn, tied = (
            np.where(np.stack([np.zeros(shape, bool), repeated], -1), first[..., :1], first)
            for first in rng.random((2, *shape, 2))
        )
        return np.where(tied < self.ties, 0.5, (drawn < chance[:, None]).astype(float))


def rate_cases(prompts: int, seeds: int) -> Iterator[tuple[str, str, Draw, tuple[float, float] | None]]:
    """Win rates, paired differences, W_AH and shares of S at the edges."""
    # Where hardly anything happens no interval can cover less: one that has some width holds the truth.
    over = (COVERED[0], 1.0)
    size = f"{prompts} prompts, {seeds} seed{'s' * (seeds > 1)}"
    for rate, ties in ((0.02, 0), (0.1, 0), (0.5, 0), (0.9, 0), (0.98, 0), (0.5, 0.8), (0.7, 0.9), (0.7, 0.95)):
        world = Rates(rate, ties, seeds, prompts)
        promised = over if ties or seeds > 1 or rate in (0.02, 0.98) else COVERED
        other = Rates(min(rate + 0.01, 0.99), ties, seeds, prompts)

        def win_rate(rng: np.random.Generator, world: Rates = world) -> tuple[float, Interval | None]:
            return world.truth, statistics.row_interval(world.draw(rng).mean(axis=-1))

        def arena_hard(rng: np.random.Generator, world: Rates = world) -> tuple[float, Interval | None]:
            points = world.draw(rng)[0]
            # Every decisive verdict on every third prompt is a strong one, which moves no rate of these.
            strong = (np.arange(len(points)) % 3 == 0)[:, None] & (points != 0.5)
            weights = np.where(strong, 3.0, 1.0)
            truth = ((1 - world.ties) * 5 / 3 * world.rate + world.ties / 2) / ((1 - world.ties) * 5 / 3 + world.ties)
            found = Votes(points, weights, np.arange(len(points)), np.zeros(len(points))).arena_hard()
            return truth, found

        def difference(
            rng: np.random.Generator, world: Rates = world, other: Rates = other
        ) -> tuple[float, Interval | None]:
            one = world.draw(rng).mean(axis=-1)
            # Nearly all answers are the same: one in twenty is another draw.
            anew = rng.random(one.shape) < 0.05
            two = np.where(anew, other.draw(rng).mean(axis=-1), one)
            return 0.05 * (other.truth - world.truth), effects.interval(two - one)

        words = f"{size}, rate {rate:.0%}, ties {ties:.0%}"
        yield "win rate", words, win_rate, promised
        if seeds == 1:
            yield "W_AH", words, arena_hard, over
        if rate in (0.02, 0.5):
            yield "paired difference", f"{words}, 95 % alike", difference, over


def count_claims(
    name: str, regime: str, draw: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray | None]], *, count: int
) -> list[Edge]:
    """How many tables of four such comparisons claim one, and of the claims how many say that one seed decides."""
    tables, claims, noted = 0, 0, 0
    for seed in range(count):
        rng = np.random.default_rng(seed)
        drawn = {str(place): draw(rng) for place in range(4)}
        found = effects.claims(
            {place: d for place, (d, _) in drawn.items()},
            {place: topics for place, (_, topics) in drawn.items()},
            flips=FLIPS,
        )
        claimed = [claim for claim in found.values() if claim.matters]
        tables += bool(claimed)
        claims += len(claimed)
        noted += sum(claim.one_seed_decides for claim in claimed)
    promised = (0.0, 0.05) if name == "topics as units" else None
    edges = [Edge(f"tables with a claim, {name}", regime, count, tables / count, np.nan, promised)]
    if claims:
        edges.append(Edge(f"claims that one seed decides, {name}", regime, claims, noted / claims, np.nan, None))
    return edges


def in_topics(seeds: int, topics: int, *, clustered: bool) -> Callable[[np.random.Generator], tuple]:
    """Differences without effect: topics differ by 10 points, prompts come in topics of 5 to 15."""

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        of = np.repeat(np.arange(topics), rng.integers(5, 16, topics))
        d = rng.normal(0, 0.1, topics)[of] + rng.normal(0, 0.015, (seeds, 1)) + rng.normal(0, 0.3, (seeds, len(of)))
        return d, of if clustered else None

    return draw


def rare_collapse(seeds: int) -> Callable[[np.random.Generator], tuple]:
    """A variant that is 4 points better, and 16 worse on one seed of five: no effect on average."""

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, None]:
        of_seeds = np.where(rng.random(seeds) < 0.2, -0.16, 0.04) + rng.normal(0, 0.015, seeds)
        return of_seeds[:, None] + rng.normal(0, 0.4, (seeds, 200)), None

    return draw


def planted(seeds: int, better: float) -> Callable[[np.random.Generator], tuple]:
    """A variant that is better by so much on every seed."""

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, None]:
        of_seeds = better + rng.normal(0, 0.015, seeds)
        return of_seeds[:, None] + rng.normal(0, 0.4, (seeds, 200)), None

    return draw


def knee_cases(count: int, *, trials: int, noise: float) -> list[Edge]:
    """How often the interval of where the knee lies holds the true one, by goal and in both at once.

    Beside it, not used: whether the true knee is among the trials that are the knee in 95 % of the resamples, the
    likeliest first, and the same with S held as measured.
    """
    goal = np.linspace(0.3, 0.7, trials)
    truth = np.stack([goal, 1 - ((goal - 0.3) / 0.4) ** 2 * 0.6], axis=1)
    knee, _, _ = front.knees(truth)
    held, likely, widths = np.zeros(3), np.zeros(2), []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        won = (rng.random((trials, 256)) < goal[:, None]).astype(float)
        seen = np.stack([won.mean(axis=1), truth[:, 1] + rng.normal(0, noise, trials)], axis=1)
        rates = front.draw_rates(won, resamples=400)
        drawn = front.resample(seen, {0: rates, 1: seen[:, 1] + rng.normal(0, noise, (400, trials))})
        low, high = front.knee_ends(drawn)
        inside = (low <= truth[knee]) & (truth[knee] <= high)
        held += [*inside, inside.all()]
        widths.append(high - low)
        likely += [knee in _likely(at.is_knee) for at in (drawn, front.resample(seen, {0: rates}))]
    regime = f"{trials} trials, S noise {noise}"
    wide = [*np.mean(widths, axis=0), np.nan]
    over = ("win rate", "S", "both goals")
    return [
        Edge(f"where the true knee lies, {name}", regime, count, share, width, (COVERED[0], 1.0))
        for name, share, width in zip(over, held / count, wide, strict=True)
    ] + [
        Edge(f"true knee among the likely, S {name} (not used)", regime, count, share, np.nan, None)
        for name, share in zip(("resampled", "held fixed"), likely / count, strict=True)
    ]


def _likely(shares: np.ndarray) -> np.ndarray:
    order = np.argsort(-shares)
    return order[: 1 + int((np.cumsum(shares[order]) < 0.95 * shares.sum()).sum())]


def expected_best_cases() -> Iterator[tuple[str, str, Draw, tuple[float, float] | None]]:
    """The expected best of k of 40 random trials."""
    # Of uniform trials the best of k is k / (k + 1) on average.
    for best in (1, 2, 4, 8, 20):

        def draw(rng: np.random.Generator, best: int = best) -> tuple[float, Interval | None]:
            values = rng.random(40)
            drawn = front.expected_best(values[rng.integers(0, 40, (400, 40))])[:, best - 1]
            low, high = np.quantile(drawn, [0.025, 0.975])
            return best / (best + 1), Interval(float(front.expected_best(values)[best - 1]), float(low), float(high))

        printed = best <= 40 / front.COVERED
        yield (
            f"expected best of {best}{'' if printed else ' (not printed)'}",
            "40 trials",
            draw,
            (0.9, 0.98) if printed else None,
        )


def edges_table(edges: Sequence[Edge]) -> str:
    """Render what was counted."""
    rows = [
        (
            edge.name,
            edge.regime,
            f"{edge.count:,}",
            f"{edge.share:.1%}",
            f"{edge.error:.1%}",
            "" if np.isnan(edge.width) else f"{edge.width:.3f}",
            "" if edge.promised is None else "pass" if edge.kept else "FAIL",
        )
        for edge in edges
    ]
    return table(("what", "regime", "tries", "share", "MC error", "width", ""), rows)
