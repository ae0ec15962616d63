"""Leagues and designs across SFT checkpoints on made-up outcomes, beside separate runs, brute force and statsmodels."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from slime_ray.analysis import (
    ablation,
    comparing,
    effects,
    factorial,
    league,
    league_tables,
    report,
    rows,
    statistics,
    tables,
)
from slime_ray.analysis.tables import answer

from slime_ray.config.league import League
from slime_ray.config.strict import at_checkpoint

from . import designs
from .test_league import by_rate, league_run

SEEDS = (0, 3, 5)
WON = [
    by_rate(rates, seed=place, prompts=100)
    for place, rates in enumerate(([0.7, 0.5, 0.3], [0.6, 0.7, 0.3], [0.8, 0.5, 0.3]))
]


def across_run(won=WON, seeds=SEEDS):
    """One run of a league whose entries start from these checkpoints."""
    together = {
        at_checkpoint(name, seed): rows for seed, one in zip(seeds, won, strict=True) for name, rows in one.items()
    }
    run = league_run(together)
    plain = League.of(league_run(won[0]).manifest)
    assert plain is not None
    data = plain.across(seeds).model_dump(mode="json")
    return replace(run, manifest=run.manifest | {"experiment": {"league": data}})


def leagues_of(run):
    return league.Standings.by_checkpoint(run, tables.win_rate_stability(run))


def mean_squares(values):
    """Of (rows, columns) values between rows, between columns and of the rest, by a linear model's sums of squares."""
    count, items = values.shape
    rows, columns = np.meshgrid(np.arange(count), np.arange(items), indexing="ij")
    y = values.ravel()

    def unexplained(*factors):
        design = pd.get_dummies(pd.DataFrame({str(n): one.ravel().astype(str) for n, one in enumerate(factors)}))
        design = np.column_stack([np.ones(len(y)), design.to_numpy(dtype=float)])
        return float(((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2).sum())

    rest = unexplained(rows, columns)
    of_rows, of_columns = unexplained(columns) - rest, unexplained(rows) - rest
    return of_rows / (count - 1), of_columns / (items - 1), rest / ((count - 1) * (items - 1))


def test_the_interval_is_the_two_way_one_with_the_checkpoints_degrees_of_freedom():
    rng = np.random.default_rng(1)
    values = rng.normal(0.1, 0.2, (3, 1)) + rng.normal(0, 0.2, (1, 20)) + rng.normal(0, 0.1, (3, 20))
    of_rows, of_columns, rest = mean_squares(values)
    assert of_rows > rest
    variance = (of_rows + max(of_columns - rest, 0)) / values.size + 2 * statistics.PRIOR / 20**2
    half = stats.t.ppf(0.975, 2) * np.sqrt(variance)
    found = effects.over(list(values))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half)
    )


def test_the_interval_covers_with_few_checkpoints_and_any_scatter_of_them():
    rng, count = np.random.default_rng(2), 400
    for checkpoint, item in product((0.0, 0.1), (0.1, 0.3)):
        covered = 0
        for _ in range(count):
            draws = rng.normal(0.02, checkpoint, (3, 1)) + rng.normal(0, item, 60) + rng.normal(0, 0.2, (3, 60))
            found = effects.over(list(draws))
            assert found is not None
            covered += found.low <= 0.02 <= found.high
        assert stats.binom.cdf(covered, count, 0.95) > 0.001


def test_seeds_of_different_checkpoints_are_no_pairs():
    one, other = (
        leagues_of(across_run()),
        leagues_of(across_run([WON[0], {k: v[::-1] for k, v in WON[1].items()}, WON[2]])),
    )
    first, second = (league_tables.leagues_over(each).frame for each in (one, other))
    pd.testing.assert_frame_equal(first, second)
    assert all(pair[0][-5:] == pair[1][-5:] for each in one for pair in each.claims)


def test_one_run_across_checkpoints_says_what_separate_runs_do():
    run = across_run()
    separate = []
    for place, won in enumerate(WON):
        alone = league_run(won)
        manifest = alone.manifest | {"hashes": {"sft_checkpoint": str(place), "prompts_report": "p"}}
        separate.append(replace(alone, path=Path(f"from-{place}"), manifest=manifest))
    mine, theirs = league_tables.leagues_over(leagues_of(run)).frame, comparing.compare(separate).frame
    pd.testing.assert_frame_equal(mine, theirs)
    frame = mine.set_index("entry")
    assert frame["ranks"].to_dict() == {"a": "1, 2, 1", "b": "2, 1, 2", "c": "3, 3, 3"}
    assert frame["behind"].to_dict() == {"a": 0, "b": 2, "c": 3}


def test_the_interval_of_a_rate_does_not_leave_its_range():
    # Two values so far apart have Student's ends far outside.
    rates = [np.array([0.1]), np.array([0.9])]
    ends = {least: effects.over([each[0] for each in rates], least=least) for least in (0.0, -1.0)}
    assert [(found.value, found.low, found.high) for found in ends.values()] == [(0.5, 0.0, 1.0), (0.5, -1.0, 1.0)]
    items = effects.over([np.full(20, 0.1), np.full(20, 0.9)], least=0.0)
    assert (items.low, items.high) == (0.0, 1.0)
    frame = league_tables.leagues_over(leagues_of(across_run(WON[:2], SEEDS[:2]))).frame
    assert frame[["rate_low", "stability_low"]].min().min() >= 0.0
    assert frame[["rate_high", "stability_high"]].max().max() <= 1.0
    assert frame["difference_low"].min() >= -1.0


def test_the_page_begins_with_what_holds_from_all_checkpoints():
    found = report.Findings(across_run())
    made = {entry.name: entry.make(found) for entry in report.SECTIONS if entry.name.startswith("league")}
    assert list(made)[:2] == ["league_checkpoints", "league"]
    assert made["league"].frame["sft_seed"].tolist() == [seed for seed in SEEDS for _ in range(3)]
    assert len(made["league_pairs"].frame) == 3 * 3
    open_, settled = found.of_design()
    assert settled[0].startswith("Highest win rate over 3 SFT checkpoints: a with")
    assert any(sentence.startswith("c is behind a") for sentence in settled)
    assert any("b is behind a" in sentence and "behind from 2 of 3" in sentence for sentence in open_)
    assert open_[-1].startswith("What three times the tuning would change: sft.seed 0: ")


def design_run(effects, kind=designs.leave_one_out):
    """A design from three checkpoints: the cells without the anchor lose `effects` of their wins there."""
    design = kind().across(SEEDS)
    rng, won = np.random.default_rng(4), {}
    for cell in design.cells:
        effect = effects[SEEDS.index(cell.sft_seed)]
        won[cell.label] = designs.outcomes(rng, 0.6 - (0 if cell.levels["anchor"] else effect), prompts=300)
    return designs.run_of(design, won), design, won


def test_rows_from_different_checkpoints_are_not_compared():
    _, design, won = design_run((0.3, 0.3, 0.3))
    # As different as rows of one checkpoint may be, against the answers of another opponent.
    won = {label: np.clip(rows - 0.2 * label.endswith("sft0"), 0, 1) for label, rows in won.items()}
    run = designs.run_of(design, won)
    sft = {cell.label: json.dumps({"sft": {"seed": cell.sft_seed}}) for cell in design.cells}
    run = replace(run, trials=run.trials.assign(settings=run.trials["label"].map(sft)))
    main = tables.win_rate_stability(run)
    marks = main.frame.set_index("label")["win_rate_mark"]
    assert all(marks[f"full-sft{seed}"] == "best" for seed in SEEDS)
    assert any(note.startswith("Rows start from 3 SFT checkpoints") for note in main.notes)
    _, said = answer(run, main)
    for seed in SEEDS:
        assert any(f"-sft{seed} has the highest win rate from its SFT checkpoint" in one for one in said)
    assert not any("every other row (" in one for one in said)


SETTINGS = {
    "sft": {"seed": 0, "lora": "same"},
    "model": {"source": "small", "lora": {"rank": 4}},
    "data": {"train": "pairs", "pairs": 100},
}


def starts_of(settings, recorded=None):
    """How many SFT checkpoints a table tells apart whose rows have these settings."""
    run = designs.run_of(designs.leave_one_out(), by_rate([0.5] * len(settings), prompts=20))
    trials = run.trials.assign(settings=run.trials["label"].map({k: json.dumps(v) for k, v in settings.items()}))
    if recorded is not None:
        trials = trials.assign(sft_checkpoint=trials["label"].map(recorded))
    return len(rows.by_start(tables.win_rate_stability(replace(run, trials=trials)).frame))


@pytest.mark.parametrize("other", [{"model": {"source": "large", "lora": {"rank": 4}}}, {"data": {"train": "others"}}])
def test_rows_of_another_model_or_data_are_not_compared_though_their_sft_settings_agree(other):
    settings = {"a": SETTINGS, "b": SETTINGS | other}
    assert starts_of({"a": SETTINGS, "b": SETTINGS}) == 1
    assert starts_of(settings) == 2
    # What was recorded knows better than settings: other pairs to train on may leave the checkpoint as it is.
    assert starts_of(settings, {"a": "x", "b": "x"}) == 1
    assert starts_of(settings, {"a": "x", "b": "y"}) == 2


def test_a_row_that_failed_early_or_trains_other_adapters_starts_where_the_others_do():
    assert starts_of({"a": SETTINGS, "b": SETTINGS}, {"a": "x", "b": None}) == 1
    # As an arm with adapters of its own has it: those of stage 1 stay base's.
    own = SETTINGS | {"model": {"source": "small", "lora": {"rank": 8}}, "sft": {"seed": 0, "lora": {"rank": 4}}}
    assert starts_of({"a": SETTINGS, "b": own}) == 1
    assert starts_of({"a": SETTINGS, "b": own | {"sft": {"seed": 0, "lora": {"rank": 8}}}}) == 2


def test_an_effect_that_changes_between_checkpoints_is_shown_as_such():
    run, design, won = design_run((0.3, 0.25, -0.1))
    found = ablation.Cells.of(run, design)
    table = factorial.over_checkpoints(found)
    assert table is not None
    row = table.frame.set_index("effect_of").loc["without-anchor"]
    each = [won[f"without-anchor-sft{seed}"].mean() - won[f"full-sft{seed}"].mean() for seed in SEEDS]
    assert row["difference"] == pytest.approx(np.mean(each))
    assert row[["same_sign", "significant", "checkpoints"]].tolist() == [2, 2, 3]
    assert row["each"] == ", ".join(f"{100 * one:+.1f}" for one in each)
    open_, _ = factorial.sentences_over(table)
    assert any("without-anchor differs" in one and "same sign from 2" in one for one in open_)


def test_an_effect_that_holds_from_all_checkpoints_is_settled():
    run, design, _ = design_run((0.3, 0.3, 0.3))
    table = factorial.over_checkpoints(ablation.Cells.of(run, design))
    assert table is not None
    _, settled = factorial.sentences_over(table)
    assert len(settled) == 1
    assert settled[0].startswith("without-anchor differs over 3 SFT checkpoints")


def test_main_effects_of_a_factorial_are_those_of_its_cells():
    run, design, won = design_run((0.3, 0.2, 0.1), designs.factorial)
    table = factorial.over_checkpoints(ablation.Cells.of(run, design))
    assert table is not None
    frame = table.frame.set_index("effect_of")
    assert list(frame.index) == list(designs.COMPONENTS)
    for component in frame.index:
        sides = [
            [won[cell.label].mean() for cell in design.cells if cell.levels[component] is there]
            for there in (True, False)
        ]
        assert frame.loc[component, "difference"] == pytest.approx(np.mean(sides[0]) - np.mean(sides[1]))
    assert frame.loc["anchor", ["same_sign", "significant"]].tolist() == [3, 3]


def test_a_design_from_one_checkpoint_has_no_such_table():
    design = designs.leave_one_out()
    run = designs.run_of(design, {cell.label: designs.outcomes(np.random.default_rng(0), 0.5) for cell in design.cells})
    assert factorial.over_checkpoints(ablation.Cells.of(run, design)) is None


def from_checkpoint(number, won, **manifest):
    run = league_run(won)
    base = {"league": run.manifest["experiment"]["league"], "base": {"sft": {"seed": number}}}
    hashes = {"hashes": {"sft_checkpoint": f"{number}"}, "experiment": base}
    return replace(run, path=Path(f"from-{number}"), manifest=run.manifest | hashes | manifest)


def test_leagues_from_several_checkpoints_are_compared_with_the_checkpoint_as_one_draw():
    won = [by_rate([0.7, 0.5, 0.3], seed=1), by_rate([0.6, 0.7, 0.3], seed=2), by_rate([0.8, 0.5, 0.3], seed=3)]
    table = comparing.compare([from_checkpoint(number, one) for number, one in enumerate(won)])
    frame = table.frame.set_index("entry")
    rates = {name: np.array([one[name].mean() for one in won]) for name in "abc"}
    gap = rates["b"] - rates["a"]
    low, high = stats.t.interval(0.95, 2, loc=gap.mean(), scale=stats.sem(gap))
    assert frame.loc["b", ["difference", "difference_low", "difference_high"]].tolist() == pytest.approx(
        [gap.mean(), low, high]
    )
    assert frame.loc["b", ["behind", "separable", "checkpoints"]].tolist() == [2, 2, 3]
    assert frame.loc["c", ["behind", "separable"]].tolist() == [3, 3]
    assert frame["ranks"].tolist() == ["1, 2, 1", "2, 1, 2", "3, 3, 3"]
    assert "experiment.base.sft.seed" in table.caption
    assert not any("same SFT checkpoint" in note for note in table.notes)


@pytest.mark.parametrize("same_items", [False, True])
def test_leagues_from_one_checkpoint_are_one_draw(same_items):
    hashes = {"prompts_report": "p"} if same_items else {}
    rates = ([0.7, 0.5, 0.3], [0.3, 0.7, 0.3], [0.8, 0.5, 0.3])
    won = [by_rate(each, seed=seed, prompts=40) for seed, each in enumerate(rates, start=1)]

    def table(every, starts):
        runs = [
            replace(from_checkpoint(start, one, hashes={"sft_checkpoint": start, **hashes}), path=Path(f"run-{place}"))
            for place, (start, one) in enumerate(zip(starts, every, strict=True))
        ]
        return comparing.compare(runs)

    found = table(won, ("x", "x", "y"))
    assert "3 entries from 2 SFT checkpoints in 3 leagues" in found.caption
    assert any(note.endswith("ranks, behind and separable count leagues.") for note in found.notes)
    # As one league of all their seeds.
    both = {name: np.concatenate([won[0][name], won[1][name]]) for name in "abc"}
    expected = table([both, won[2]], ("x", "y")).frame.set_index("entry")
    frame = found.frame.set_index("entry")
    columns = [name + end for name in ("rate", "difference") for end in ("", "_low", "_high")]
    pd.testing.assert_frame_equal(frame[columns], expected.loc[frame.index, columns])
    assert frame.loc["c", ["behind", "checkpoints"]].tolist() == [3, 3]
    # Three draws would have said more than they know.
    apart = table(won, ("x", "y", "z")).frame.set_index("entry")
    assert (
        frame.loc["c", "rate_high"] - frame.loc["c", "rate_low"]
        != apart.loc["c", "rate_high"] - apart.loc["c", "rate_low"]
    )
    # Which of them are new draws is not known where one does not say from where it starts.
    unsaid = table(won, ("x", None, "y"))
    assert "from 1 SFT checkpoint in 3 leagues" in unsaid.caption
    assert unsaid.frame[["rate_low", "difference_high"]].isna().all(axis=None)


def test_leagues_that_differ_in_more_say_so():
    won = by_rate([0.7, 0.5])
    runs = [from_checkpoint(0, won), from_checkpoint(0, won, decoding={"temperature": 0.5})]
    table = comparing.compare([runs[0], replace(runs[1], path=Path("other"))])
    assert "decoding" in table.caption
    assert any("same SFT checkpoint" in note for note in table.notes)


def test_an_entry_that_is_not_confirmed_from_one_checkpoint_does_not_lead():
    strong, weak = by_rate([0.9, 0.5, 0.3]), by_rate([0.9, 0.5, 0.3], seed=5)
    runs = [from_checkpoint(0, strong), from_checkpoint(1, weak)]
    gone = runs[1].trials["label"] == "search-a-0002"
    runs[1].trials.loc[gone, "status"] = "failed"
    frame = comparing.compare(runs).frame.set_index("entry")
    assert frame.loc["a", "ranks"] == "1, –"
    assert np.isnan(frame.loc["b", "difference"])
    assert frame.loc["c", "behind"] == 2
