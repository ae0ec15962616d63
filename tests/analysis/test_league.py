"""A league's tables: standings, pairs, tuning, defaults, on made-up results and beside second derivations."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from slime_ray.analysis import effects
from slime_ray.analysis.league import Comparisons, letters
from slime_ray.analysis.report import write_report
from slime_ray.analysis.sections import Findings

from slime_ray.config.experiment_file import load_experiment
from slime_ray.runs import results
from tests.analysis.conftest import add_trial, finish
from tests.config.test_league import TEXT

RATES = {"dpo": 0.6, "ipo": 0.58, "sft": 0.3}
PROMPTS, SEEDS = 120, 5


def drawn(rate: float, seed: int, prompts: int = PROMPTS) -> list[float]:
    """Outcomes of a seed: prompts in the same order are easy for all."""
    noise = np.random.default_rng([seed, round(1000 * rate)]).normal(0, 0.3, prompts)
    easy = np.linspace(-1, 1, prompts)
    return [float(value) for value in (easy + noise < stats.norm.ppf(rate, 0, 0.65))]


def fill(run: Path, *, lost: str = "ipo", lost_seed: int | None = None, seeds: int = SEEDS, text: str = TEXT) -> Path:
    """Entries by RATES with two tuning trials each; those of `strict-dpo` all fail, and one seed of `lost` does."""
    data = yaml.safe_load(text)
    data["league"] |= {"trials": 2, "seeds": seeds}
    experiment = load_experiment(data)
    assert experiment.league is not None
    for entry in experiment.league.entries:
        rate = RATES.get(entry.label)
        for number in (1, 2):
            about: dict[str, Any] = {
                "phase": "search", "prompt_set": "selection", "seed": 1000, "objective": entry.objective,
                "overrides": {**entry.set, **dict.fromkeys(entry.defaults, 0.4), "training.learning_rate": 2e-4 * number},
            }  # fmt: skip
            name = f"search-{entry.label}-{number:04d}"
            if rate is None:
                add_trial(run, name, **about, status="diverged", reason="loss became nan", stability=0.0)
            else:
                add_trial(run, name, won=drawn(rate - 0.2 + 0.1 * number, number), stability=0.7, **about)
        if rate is None:
            continue
        for ending, shift in (("", 0.0), ("-defaults", -0.2)):
            if ending and not entry.defaults:
                continue
            for seed in range(seeds):
                label = f"search-{entry.label}-0002{ending}"
                about = {"phase": "confirm", "label": label, "seed": seed, "objective": entry.objective}
                if (entry.label, seed, ending) == (lost, lost_seed, ""):
                    add_trial(
                        run, f"confirm-{label}-s{seed}", **about, status="failed", reason="out of memory", stability=0.0
                    )
                else:
                    won = drawn(rate + shift, seed)
                    add_trial(run, f"confirm-{label}-s{seed}", won=won, stability=0.8 + shift, **about)
    manifest = {"experiment": experiment.model_dump(mode="json"), "name": "cup", "seeds": experiment.seeds}
    return finish(run, manifest)


@pytest.fixture(scope="module")
def league(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return Findings(results.load(fill(tmp_path_factory.mktemp("league"))))


def table(found: Findings, name: str) -> Any:
    from slime_ray.analysis.sections import made

    return next(thing for entry, thing in made(found) if entry.name == name)


def test_standings_are_in_order_and_a_failed_entry_keeps_its_place_and_reason(league):
    frame = league.standings.frame
    assert frame["entry"].tolist() == ["dpo", "ipo", "sft", "strict-dpo"]
    assert frame["winner"].tolist() == ["search-dpo-0002", "search-ipo-0002", "search-sft-0002", ""]
    last = frame.iloc[3]
    assert np.isnan(last["win_rate"])
    assert last["note"] == "no trial completed; tuning: diverged 2: loss became nan"
    assert frame["learning_rate"].tolist()[:3] == [4e-4] * 3


def test_rows_have_the_two_way_interval_of_their_own_outcomes(league):
    row = league.standings.frame.set_index("entry").loc["dpo"]
    values = np.array([drawn(0.6, seed) for seed in range(SEEDS)])
    # By hand: the variance of the mean is (MS_seeds + MS_prompts - MS_rest) / n.
    mean = values.mean()
    s, p = values.shape
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + mean
    squares = [
        p * values.mean(1).var() * s / (s - 1),
        s * values.mean(0).var() * p / (p - 1),
        (rest**2).sum() / ((s - 1) * (p - 1)),
    ]
    if squares[0] > squares[2]:
        variance = (squares[0] + max(squares[1] - squares[2], 0)) / (s * p)
    else:
        variance = max(squares[1], squares[2]) / (s * p)
    assert row["win_rate"] == pytest.approx(mean)
    half = (row["win_rate_high"] - row["win_rate_low"]) / 2
    # Degrees of freedom lie between those of seeds and of prompts.
    assert stats.t.ppf(0.975, p - 1) <= half / np.sqrt(variance) * (1 + 1e-9)
    assert half / np.sqrt(variance) <= stats.t.ppf(0.975, s - 1) * (1 + 1e-9)


def test_close_entries_share_a_letter_and_far_ones_do_not(league):
    groups = dict(zip(league.standings.frame["entry"], league.standings.frame["letters"], strict=True))
    assert set(groups["dpo"]) & set(groups["ipo"])
    assert not set(groups["dpo"]) & set(groups["sft"])
    ranks = league.standings.frame.set_index("entry")
    assert ranks.loc["sft", ["rank_low", "rank_high"]].tolist() == [3, 3]
    assert ranks.loc["dpo", ["rank_low", "rank_high"]].tolist() == [1, 2]


def test_every_pair_is_compared_and_corrected_over_all(league):
    frame = table(league, "league_pairs").frame
    assert len(frame) == 3
    raw = {}
    for one, other in combinations(RATES, 2):
        d = np.array([drawn(RATES[one], seed) for seed in range(SEEDS)]) - [
            drawn(RATES[other], seed) for seed in range(SEEDS)
        ]
        raw[one, other] = stats.ttest_1samp(d.mean(1), 0).pvalue
    corrected = dict(zip(raw, stats_holm(list(raw.values())), strict=True))
    for row in frame.to_dict("records"):
        pair = (row["better"], row["other"])
        assert row["p_seeds"] == pytest.approx(corrected[pair if pair in corrected else pair[::-1]])
    assert frame["verdict"].tolist()[0].startswith("not settled")


def stats_holm(p_values: list[float]) -> list[float]:
    """Holm (1979): the largest of all smaller ones' products with how many are left."""
    ranks = stats.rankdata(p_values, method="ordinal")
    stepped = [p * (len(p_values) - rank + 1) for p, rank in zip(p_values, ranks, strict=True)]
    return [min(1.0, max(step for step, other in zip(stepped, ranks, strict=True) if other <= rank)) for rank in ranks]


def test_what_tuning_bought_is_the_mean_of_the_best_of_all_subsets(league):
    frame = table(league, "league_tuning").frame.set_index("entry")
    values = [np.mean(drawn(0.6 - 0.2 + 0.1 * number, number)) for number in (1, 2)]
    assert frame.loc["dpo", "best_of_1"] == pytest.approx(np.mean(values))
    assert frame.loc["dpo", "best_of_2"] == pytest.approx(max(values))
    assert np.isnan(frame.loc["strict-dpo", "best_of_1"])


def test_defaults_stand_beside_the_winner_and_say_how_far_it_went(league):
    frame = table(league, "league_defaults").frame.set_index("entry")
    assert frame.loc["dpo", "knobs"] == "beta 0.1 to 0.4 (x4)"
    difference = np.mean([drawn(0.6, seed) for seed in range(SEEDS)]) - np.mean(
        [drawn(0.4, seed) for seed in range(SEEDS)]
    )
    assert frame.loc["dpo", "difference"] == pytest.approx(difference)
    assert frame.loc["dpo", "stability_difference"] == pytest.approx(0.2)
    assert frame.loc["sft", "knobs"] == "no knobs"
    assert np.isnan(frame.loc["sft", "difference"])


def test_the_first_screen_says_who_is_best_who_is_not_separable_and_what_more_would_change(league, tmp_path):
    files = write_report(league.run.path, tmp_path)
    page = files.html.read_text()
    for sentence in (
        "Highest win rate: dpo",
        "Which is best of dpo, ipo: they are not separable",
        "With three times the seeds (15)",
        "three times the tuning",
        "How strict-dpo does: no trial completed",
    ):
        assert sentence in page, sentence
    assert files.text.startswith("cup: 4 entries, 2 tuning trials each")
    assert (tmp_path / "league_pairs.csv").is_file()


def test_one_failed_seed_is_left_out_of_pairs_and_said(tmp_path):
    found = Findings(results.load(fill(tmp_path, lost_seed=2)))
    seeds = table(found, "league_pairs").frame.set_index(["better", "other"])["seeds"]
    assert seeds.loc[("dpo", "sft")] == SEEDS
    assert seeds.loc[("dpo", "ipo")] == SEEDS - 1
    assert any(
        "Not common to all: seed 2 of search-dpo" in note or "seed 2 of dpo" in note for note in found.standings.notes
    )
    # Four common seeds say nothing of a method: these two are not told apart, and the others have their ranks.
    ranks = found.standings.frame.set_index("entry")
    assert ranks.loc["ipo", ["rank_low", "rank_high"]].isna().all()
    assert ranks.loc["dpo", ["rank_low", "rank_high"]].tolist() == [1, 2]
    assert any("fewer than 5 common seeds: dpo and ipo" in note for note in found.standings.notes)


def test_two_seeds_separate_nobody_and_say_so(tmp_path):
    found = Findings(results.load(fill(tmp_path, seeds=2)))
    assert set(found.standings.frame["letters"]) == {"a", ""}
    assert any("These checkpoints only: 2 common seeds" in note for note in found.standings.notes)


def test_letters_are_shared_exactly_by_pairs_that_are_not_told_apart():
    rng = np.random.default_rng(0)
    for _ in range(200):
        names = [f"n{place}" for place in range(int(rng.integers(2, 9)))]
        pairs = list(combinations(names, 2))
        apart = [pair for pair in pairs if rng.random() < 0.4]
        given = letters(names, apart)
        for one, other in pairs:
            assert bool(set(given[one]) & set(given[other])) == ((one, other) not in apart), (names, apart)
        # No letter says what another one says already.
        groups = {letter: {name for name in names if letter in given[name]} for name in names for letter in given[name]}
        assert not any(one < other for one in groups.values() for other in groups.values())


def test_rates_of_two_percent_and_equal_entries_are_not_told_apart():
    rng = np.random.default_rng(3)
    rare = {name: (list(range(5)), (rng.random((5, 100)) < 0.02).astype(float)) for name in "abc"}
    found = Comparisons(rare, flips=2_000)
    assert set(found.groups.values()) == {"a"}
    assert all(found.rank(name) == (1, 3) for name in rare)
    same = Comparisons({"a": rare["a"], "b": rare["a"]}, flips=2_000)
    assert same.apart == []
    assert effects.LEVEL == 0.05
