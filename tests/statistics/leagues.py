"""Planted leagues: how often ranks' intervals cover the true rank, and equal entries are told apart."""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from slime_ray.analysis import effects, league

from slime_ray.planning.tables import table

from .ablations import FLIPS, upper_bound
from .studies import Study

RATES = {
    "all equal": (0.60,) * 10,
    "five pairs of equals, 4 points apart": (0.68, 0.68, 0.64, 0.64, 0.60, 0.60, 0.56, 0.56, 0.52, 0.52),
    "2 points apart": (0.69, 0.67, 0.65, 0.63, 0.61, 0.59, 0.57, 0.55, 0.53, 0.51),
    "one far ahead": (0.80, *(0.60,) * 9),
}
"""True win rates by name, the best first."""
SPREADS = (1.0, 2.5, 5.0)
"""Standard deviations of an entry's seeds in points."""
RESAMPLES = 400


@dataclass(frozen=True)
class Planted:
    """What came of `leagues` leagues with the same truth.

    covered: share of ranks' intervals that hold the entry's true rank, of equal entries all ranks that they share.
    resampled: the same of percentiles of ranks, seeds and prompts drawn anew. width: mean number of ranks in an
    interval. equal: share of leagues that tell two equal entries apart; None where there are none. found: share of the
    truly different pairs that are told apart.
    """

    name: str
    spread: float
    leagues: int
    covered: float
    resampled: float
    width: float
    equal: float | None
    found: float | None

    @property
    def kept(self) -> bool:
        """Whether ranks are covered, and no more equal entries told apart than may be."""
        apart = 0.0 if self.equal is None else upper_bound(round(self.equal * self.leagues), self.leagues)
        return self.covered >= 0.94 and apart <= 0.065


def study_of(rates: tuple[float, ...], spread: float, *, seeds: int = 5, prompts: int = 256) -> Study:
    """A league as a study: its entries are the cells; the rest as on `arithmetic`. spread: in points, at 60 %."""
    study = Study(rates, seeds=seeds, prompts=prompts, seeds_differ=0, own=0.5, hardness=1.4, ties=0.2, alike=0.3)
    below, above = study.with_rates((0.595, 0.605)).shifts
    return replace(study, seeds_differ=spread * (above - below)).with_rates(rates)


def true_ranks(rates: tuple[float, ...]) -> np.ndarray:
    """(entries, 2) lowest and highest rank, the same for equal entries."""
    better = np.array([[other > one for other in rates] for one in rates]).sum(axis=1)
    worse = np.array([[other < one for other in rates] for one in rates]).sum(axis=1)
    return np.stack([1 + better, len(rates) - worse], axis=1)


def resampled_ranks(outcomes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(entries, 2) ends of the 95 % percentile interval of ranks, seeds and prompts drawn with replacement."""
    _, seeds, prompts = outcomes.shape
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)
    of_prompts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES)
    rates = np.einsum("rs,esp,rp->er", of_seeds, outcomes.astype(float), of_prompts, optimize=True)
    drawn = 1 + (rates[None] > rates[:, None]).sum(axis=1)
    return np.quantile(drawn, [0.025, 0.975], axis=1).T


def count(name: str, spread: float, *, leagues: int) -> Planted:
    """Draw leagues with seeds 0, 1, ..., judge them as the tables do, and count."""
    rates = RATES[name]
    study, truth = study_of(rates, spread), true_ranks(rates)
    pairs = list(combinations(map(str, range(len(rates))), 2))
    same = {pair: rates[int(pair[0])] == rates[int(pair[1])] for pair in pairs}
    covered, resampled, widths, equal, found = [], [], [], 0, 0
    for seed in range(leagues):
        rng = np.random.default_rng(seed)
        outcomes = study.draw(rng)
        differences = {pair: outcomes[int(pair[0])] - outcomes[int(pair[1])] for pair in pairs}
        claims = effects.claims(differences, flips=FLIPS)
        ranks = league.ranks(claims)
        ends = np.array([ranks[str(entry)] for entry in range(len(rates))])
        covered += ((ends[:, 0] <= truth[:, 0]) & (ends[:, 1] >= truth[:, 1])).tolist()
        drawn = resampled_ranks(outcomes, rng)
        resampled += ((drawn[:, 0] <= truth[:, 0]) & (drawn[:, 1] >= truth[:, 1])).tolist()
        widths += (ends[:, 1] - ends[:, 0] + 1).tolist()
        equal += any(claims[pair].matters for pair in pairs if same[pair])
        found += sum(claims[pair].matters for pair in pairs if not same[pair])
    different = leagues * (len(pairs) - sum(same.values()))
    return Planted(
        name,
        spread,
        leagues,
        covered=float(np.mean(covered)),
        resampled=float(np.mean(resampled)),
        width=float(np.mean(widths)),
        equal=equal / leagues if any(same.values()) else None,
        found=found / different if different else None,
    )


def leagues_table(found: list[Planted]) -> str:
    """What was counted, as text."""
    heads = ["truth", "seeds differ by", "leagues", "covered", "resampled", "ranks wide", "equal apart", "found", ""]

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}%"

    lines = [
        [
            one.name, f"{one.spread:.1f}", f"{one.leagues:,}", share(one.covered), share(one.resampled),
            f"{one.width:.1f}", share(one.equal), share(one.found), "pass" if one.kept else "FAIL",
        ]
        for one in found
    ]  # fmt: skip
    title = f"Planted leagues of 10 entries, 5 seeds, 256 prompts; {RESAMPLES} resamples, {effects.LEVEL} corrected."
    return "\n\n".join([title, table(heads, lines)])
