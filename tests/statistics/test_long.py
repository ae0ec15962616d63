"""Simulations of many evaluations and ablations, whose tables are in docs/benchmarks/statistics.md."""

import pytest

from . import ablation_cases, coverage, edges, leagues, test_panel
from .ablations import count_claims

EVALUATIONS = RESAMPLES = STUDIES = 2000
LEAGUES = 1000
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


def test_intervals_at_the_edges_cover_the_truth_as_promised(show):
    counted = [
        edges.cover(name, regime, draw, count=STUDIES, promised=promised)
        for prompts in (20, 30, 50)
        for seeds in (1, 5)
        for name, regime, draw, promised in edges.rate_cases(prompts, seeds)
    ]
    counted += [
        edges.cover(name, regime, draw, count=STUDIES, promised=promised)
        for name, regime, draw, promised in edges.expected_best_cases()
    ]
    show(edges.edges_table(counted))
    assert [one for one in counted if not one.kept] == []


def test_the_interval_of_where_the_knee_lies_holds_the_true_one(show):
    counted = [
        edge
        for trials in (5, 9, 20)
        for noise in (0.01, 0.03, 0.06)
        for edge in edges.knee_cases(STUDIES // 4, trials=trials, noise=noise)
    ]
    show(edges.edges_table(counted))
    assert [one for one in counted if not one.kept] == []


def test_the_intervals_of_a_panel_cover_the_truth_as_promised(show):
    counted = [
        edges.cover(name, regime, draw, count=STUDIES, promised=coverage.PROMISED)
        for name, regime, draw in test_panel.draws()
    ]
    show(edges.edges_table(counted))
    assert [one for one in counted if not one.kept] == []


def test_claims_over_topics_are_true_and_those_that_one_seed_decides_are_marked(show):
    counted = []
    for seeds in (5, 8):
        for name, draw in (
            ("topics as units", edges.in_topics(seeds, 12, clustered=True)),
            ("prompts of topics as units (not used)", edges.in_topics(seeds, 12, clustered=False)),
            ("rare collapse", edges.rare_collapse(seeds)),
            # As much as the rare collapse shows where it was not drawn.
            ("4 points in truth", edges.planted(seeds, 0.04)),
            ("10 points in truth", edges.planted(seeds, 0.1)),
        ):
            counted += edges.count_claims(name, f"{seeds} seeds", draw, count=STUDIES // 2)
    show(edges.edges_table(counted))
    assert [one for one in counted if not one.kept] == []


def test_ablation_tables_claim_no_more_than_is_there(show):
    claims = [
        count_claims(name, size, draw, studies=STUDIES, planted=planted)
        for name, size, draw, planted in ablation_cases.claim_cases()
    ]
    show(ablation_cases.claims_table(claims))
    assert [one for one in claims if not one.kept] == []


def test_intervals_of_effects_cover_the_truth(show):
    coverings = list(ablation_cases.covering_cases(STUDIES))
    show(ablation_cases.covering_table(coverings))
    assert [one for one in coverings if not one.kept] == []


def test_as_many_seeds_as_foretold_settle_a_difference(show):
    settled = list(ablation_cases.settled_cases(STUDIES))
    show(ablation_cases.settled_table(settled))
    assert all(one.power > 0.7 for one in settled)


def test_ranks_of_planted_leagues_are_covered_and_equal_entries_not_told_apart(show):
    found = [leagues.count(name, spread, leagues=LEAGUES) for name in leagues.RATES for spread in leagues.SPREADS]
    show(leagues.leagues_table(found))
    assert [one for one in found if not one.kept] == []
