"""Simulations of many evaluations and ablations, whose tables are in docs/benchmarks/statistics.md."""

import pytest

from . import ablation_cases, coverage, leagues
from .ablations import count_claims

EVALUATIONS = RESAMPLES = STUDIES = 2000
LEAGUES = 400
pytestmark = pytest.mark.slow


@pytest.fixture
def show(capsys):
    """Prints a table past pytest's capture."""

    def show(table: str) -> None:
        with capsys.disabled():
            print(f"\n\n{table}")

    return show


def test_every_interval_of_the_tables_covers_the_truth_as_promised(show):
    measured = [coverage.measure(case, evaluations=EVALUATIONS) for case in coverage.all_cases(resamples=RESAMPLES)]
    show(coverage.coverage_table(measured))
    assert [at for at in measured if not at.kept] == []


def test_ablation_tables_claim_no_more_than_is_there(show):
    claims = [
        count_claims(name, size, draw, studies=STUDIES, planted=planted)
        for name, size, draw, planted in ablation_cases.claim_cases()
    ]
    show(ablation_cases.claims_table(claims))
    assert [one for one in claims if not one.kept] == []


def test_intervals_of_effects_cover_the_truth_and_shapley_values_add_up(show):
    coverings = list(ablation_cases.covering_cases(STUDIES))
    show(ablation_cases.covering_table(coverings))
    assert [one for one in coverings if not one.kept] == []
    assert ablation_cases.shapley_gap(STUDIES) < 1e-9


def test_as_many_seeds_as_foretold_settle_a_difference(show):
    settled = list(ablation_cases.settled_cases(STUDIES))
    show(ablation_cases.settled_table(settled))
    assert all(one.power > 0.7 for one in settled)


def test_ranks_of_planted_leagues_are_covered_and_equal_entries_not_told_apart(show):
    found = [leagues.count(name, spread, leagues=LEAGUES) for name in leagues.RATES for spread in leagues.SPREADS]
    show(leagues.leagues_table(found))
    assert [one for one in found if not one.kept] == []
