"""Planted leagues: rank intervals cover the true rank, and equal methods are hardly ever told apart."""

import math

import numpy as np
import pytest
from slime_ray.analysis.league import Comparisons

from slime_ray.planning.tables import table

PROMPTS, SEEDS, FLIPS = 256, 5, 1_000
EQUAL = (0.0,) * 10
SPREAD = tuple(0.03 * place for place in range(10))
PAIRED = tuple(0.08 * (place // 2) for place in range(10))


def draw(rates: tuple[float, ...], of_seeds: float, rng: np.random.Generator) -> Comparisons:
    """A league whose methods win 40 % and `rates` more; each seed of each moves by `of_seeds`, and prompts differ."""
    easy = rng.normal(0, 0.2, PROMPTS)
    outcomes = {}
    for place, rate in enumerate(rates):
        chance = 0.4 + rate - np.mean(rates) + rng.normal(0, of_seeds, (SEEDS, 1)) + easy - easy.mean()
        draws = rng.random((2, SEEDS, PROMPTS)) < np.clip(chance, 0.0, 1.0)
        outcomes[f"m{place}"] = (list(range(SEEDS)), draws.mean(axis=0))
    return Comparisons(outcomes, flips=FLIPS)


def ranks(rates: tuple[float, ...]) -> list[tuple[int, int]]:
    """The highest and lowest rank that each may be said to have; equal ones share theirs."""
    return [(1 + sum(other > rate for other in rates), sum(other >= rate for other in rates)) for rate in rates]


def planted(rates: tuple[float, ...], of_seeds: float, leagues: int) -> tuple[float, float]:
    """Share of ranks that their intervals cover, and share of leagues that tell equal methods apart."""
    covered, wrong = [], 0
    for seed in range(leagues):
        found = draw(rates, of_seeds, np.random.default_rng(seed))
        for place, (high, low) in enumerate(ranks(rates)):
            first, last = found.rank(f"m{place}")
            # Some rank of an equal group is covered.
            covered.append(first <= low and high <= last)
        names = {f"m{place}": rate for place, rate in enumerate(rates)}
        wrong += any(names[one] == names[other] for one, other in found.apart)
    return float(np.mean(covered)), wrong / leagues


@pytest.mark.parametrize(("rates", "of_seeds"), [(EQUAL[:5], 0.02), (PAIRED[:6], 0.03)], ids=["equal", "pairs"])
def test_ranks_are_covered_and_equal_methods_are_not_told_apart(rates, of_seeds):
    covered, wrong = planted(rates, of_seeds, 60)
    assert covered >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 120)
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


@pytest.mark.slow
def test_ranks_of_ten_entries(capsys):
    rows = []
    for name, rates in {"equal": EQUAL, "3 points apart": SPREAD, "pairs 8 points apart": PAIRED}.items():
        for of_seeds in (0.01, 0.03, 0.05):
            covered, wrong = planted(rates, of_seeds, 200)
            rows.append([name, f"{100 * of_seeds:.0f}", f"{100 * covered:.1f}", f"{100 * wrong:.1f}"])
            assert covered >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 400)
            assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    with capsys.disabled():
        print("\n" + table(["methods", "sd of seeds", "rank covered %", "equal told apart %"], rows))
