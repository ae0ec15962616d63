"""Knobs are read whatever a run has of them; importance agrees with Optuna's PED-ANOVA and says how far to trust it."""

import warnings

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from slime_ray.analysis import knobs
from slime_ray.analysis.knobs import Knob, Searched, knobs_of

from .searches import SPACE, search_run


def knob(spec, values) -> Knob:
    run = search_run(len(values))
    run.manifest["experiment"]["search"]["dimensions"] = {} if spec is None else {"a.b": spec}
    trials = pd.DataFrame({"knob.a.b": values})
    (found,) = knobs_of(run, trials)
    return found


def test_the_space_says_range_scale_and_steps():
    knobs = {one.name: one for one in Searched.of(search_run(30)).knobs}
    assert (knobs["hard_margin"].scale, knobs["hard_margin"].low, knobs["hard_margin"].high) == ("linear", 0.5, 3.0)
    assert knobs["anchor_weight"].scale == "log"
    assert knobs["pairs_per_update"].step == 1
    assert knobs["schedule"].options == ("linear", "cosine")
    assert knobs["hard_margin"].step is None


@pytest.mark.parametrize(
    ("spec", "scale", "step"),
    [
        ({"uniform": [0.0, 4.0], "step": 0.5}, "linear", 0.5),
        ({"log_uniform": [0.5, 4.0], "uniform": None, "when": {"a.c": "x"}}, "log", None),
        ({"integer": [1, 4], "log": True}, "log", 1.0),
        ({"log_integer": [1, 4]}, "log", 1.0),
        (None, "linear", None),
    ],
)
def test_every_way_to_draw_a_number_has_its_scale(spec, scale, step):
    found = knob(spec, [1.0, 2.0])
    assert (found.scale, found.step) == (scale, step)
    assert found.unit(np.array([found.low, found.high])).tolist() == [0, 1]
    assert found.at(found.unit(np.array([1.5]))) == pytest.approx([1.5])


def test_a_point_outside_the_space_widens_it():
    found = knob({"uniform": [0.0, 1.0]}, [0.5, 7.0])
    assert (found.low, found.high) == (0.0, 7.0)


def test_options_are_found_however_a_file_wrote_them():
    # A column in which all are numbers holds numbers; any other holds JSON.
    assert knob({"choice": [8, 16]}, [8.0, 16.0]).places(pd.Series([16.0, np.nan])) == pytest.approx(
        [1, np.nan], nan_ok=True
    )
    mixed = knob({"choice": ["cosine", True, 0.5]}, ['"cosine"', "true", "0.5"])
    assert mixed.options == ("cosine", "true", "0.5")
    assert mixed.places(pd.Series(["0.5", '"cosine"'], dtype=object)).tolist() == [2, 0]
    assert knob(None, ['{"name": "dpo"}', '{"name": "sft"}']).scale == "choice"


def test_a_knob_that_some_trials_lack_is_not_there_for_them():
    searched = Searched.of(run := search_run(20))
    column = [one.name for one in searched.knobs].index("warmup_fraction")
    lacking = (run.trials["knob.training.schedule"] == '"linear"').to_numpy()
    assert np.isnan(searched.places[:, column]).tolist() == lacking.tolist()


def test_knobs_of_one_value_are_not_searched_and_equal_names_are_told_apart():
    run = search_run(4)
    trials = pd.DataFrame({"knob.a.rate": [1.0, 2.0], "knob.b.rate": [3.0, 4.0], "knob.c": [1.0, 1.0]})
    assert [one.name for one in knobs_of(run, trials)] == ["a.rate", "b.rate"]


KNOBS = (
    Knob("margin", "margin", "linear", 0.0, 3.0),
    Knob("strength", "strength", "log", 1e-4, 0.3),
    Knob("pairs", "pairs", "linear", 8.0, 16.0, 1.0),
    Knob("rank", "rank", "log", 1.0, 128.0, 1.0),
    Knob("warmup", "warmup", "linear", 0.0, 1.0, 0.1),
    Knob("schedule", "schedule", "choice", 0.0, 2.0, 1.0, ("linear", "cosine", "constant")),
    Knob("decay", "decay", "linear", 0.0, 1.0),
)
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "margin": FloatDistribution(0, 3),
    "strength": FloatDistribution(1e-4, 0.3, log=True),
    "pairs": IntDistribution(8, 16),
    "rank": IntDistribution(1, 128, log=True),
    "warmup": FloatDistribution(0, 1, step=0.1),
    "schedule": CategoricalDistribution(KNOBS[5].options),
    "decay": FloatDistribution(0, 1),
}


def drawn(trials: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and values; trials with the first schedule have no decay."""
    rng = np.random.default_rng(seed)
    places = np.column_stack(
        [
            rng.uniform(0, 3, trials),
            np.exp(rng.uniform(np.log(1e-4), np.log(0.3), trials)),
            rng.integers(8, 17, trials),
            np.floor(np.exp(rng.uniform(0, np.log(128), trials))),
            np.round(rng.integers(0, 11, trials) * 0.1, 10),
            rng.integers(0, 3, trials),
            rng.uniform(0, 1, trials),
        ]
    )
    places[places[:, 5] == 0, 6] = np.nan
    values = places[:, 0] + 0.3 * np.log(places[:, 1]) + (places[:, 5] == 1) + 0.1 * rng.normal(size=trials)
    return places, values


def by_optuna(places: np.ndarray, values: np.ndarray, share: float) -> list[float]:
    study = optuna.create_study(direction="maximize")
    for row, value in zip(places, values, strict=True):
        there = {knob.path: place for knob, place in zip(KNOBS, row, strict=True) if not np.isnan(place)}
        params = {
            path: KNOBS[5].options[int(place)]
            if path == "schedule"
            else int(place)
            if path in ("pairs", "rank")
            else place
            for path, place in there.items()
        }
        study.add_trial(
            optuna.create_trial(
                params=params, distributions={path: DISTRIBUTIONS[path] for path in there}, value=float(value)
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
        found = evaluator.evaluate(study)
    return [found[knob.path] for knob in KNOBS]


@pytest.mark.parametrize(("trials", "kind"), [(12, ""), (33, ""), (64, "ties"), (64, "narrow"), (120, "")])
def test_importance_is_optunas_ped_anova_for_every_kind_of_knob(trials, kind):
    places, values = drawn(trials, seed=trials)
    if kind == "ties":
        values = np.round(values)
    if kind == "narrow":
        # The best lie in one cell, and the very best alone has a decay.
        places[:10, 2] = 12
        values -= 10 * np.abs(places[:, 2] - 12)
        places[0, 6], places[1:, 6] = 0.5, np.nan
        values[0] += 100
    share = knobs.best_share(trials)
    expected = np.array(by_optuna(places, values, share))
    shares, ranks = knobs.of_goal(KNOBS, places, values, resamples=2)
    assert shares[0] == pytest.approx(expected / expected.sum(), rel=1e-9)
    assert ranks[0, expected.argmax()] == 1


def test_a_resample_counts_a_trial_as_often_as_it_was_drawn():
    places, values = drawn(30, seed=0)
    counts = np.random.default_rng(1).multinomial(30, np.full(30, 1 / 30))
    repeated = np.repeat(np.arange(30), counts)
    ones = np.ones((30, 1))
    for column, knob in enumerate(KNOBS):
        weights = counts[:, None].astype(float)
        best = weights * knobs.is_best(values, weights, 0.2)
        found = knobs.divergence(knob, places[:, column], best, weights)
        best = ones * knobs.is_best(values[repeated], ones, 0.2)
        assert found == pytest.approx(knobs.divergence(knob, places[repeated, column], best, ones), rel=1e-9)


def test_the_best_share_holds_at_least_five_trials_and_all_that_equal_the_last():
    assert knobs.best_share(100) == 0.1
    assert knobs.best_share(20) == 0.25
    assert knobs.best_share(4) == 1
    values = np.array([3.0, 1.0, 2.0, 2.0, 0.0])
    best = knobs.is_best(values, np.ones((5, 1)), 0.4)
    assert best[:, 0].tolist() == [True, False, True, True, False]


def test_what_matters_is_found_with_a_rank_that_is_sure():
    frame = knobs.importance(Searched.of(search_run(100))).frame.set_index("knob")
    margin, anchor = frame.loc["hard_margin"], frame.loc["anchor_weight"]
    assert [margin[f"win_rate_rank{end}"] for end in ("", "_low", "_high")] == [1, 1, 1]
    assert anchor["stability_rank"] == 1
    assert frame["win_rate_share"].sum() == pytest.approx(1)
    # What does nothing is not told apart from the rest.
    assert frame.loc["pairs_per_update", "win_rate_rank_high"] - frame.loc["pairs_per_update", "win_rate_rank_low"] >= 2


def test_with_few_trials_the_intervals_are_wide_and_the_table_says_so():
    table = knobs.importance(Searched.of(search_run(10)))
    assert table.notes[-1].startswith("With 10 trials this is a hint")
    widths = table.frame["stability_rank_high"] - table.frame["stability_rank_low"]
    assert widths.max() >= 3
    assert not any("hint" in note for note in knobs.importance(Searched.of(search_run(50))).notes)


def test_with_hardly_any_trials_or_knobs_nothing_is_said():
    table = knobs.importance(Searched.of(search_run(5)))
    assert table.frame.empty
    assert "5 trials completed" in table.caption
    run = search_run(60)
    others = [f"knob.{path}" for path in SPACE if path != "objective.hard_margin"]
    run.trials[others] = None
    assert "fewer than two knobs" in knobs.importance(Searched.of(run)).caption


def test_diverged_trials_are_the_worst_and_stopped_ones_are_left_out():
    run = search_run(60)
    # Wins are chance; but whatever has a large margin diverges.
    run.trials["win_rate"] = np.random.default_rng(1).uniform(0.4, 0.6, 60)
    large = run.trials["knob.objective.hard_margin"] > 1.2
    run.trials.loc[large, ["status", "win_rate"]] = ["diverged", np.nan]
    table = knobs.importance(Searched.of(run))
    assert (
        f"{int((~large).sum())} completed trials and {int(large.sum())} that diverged, as the worst" in table.notes[0]
    )
    assert table.frame.set_index("knob").loc["hard_margin", "win_rate_rank"] == 1
    run.trials.loc[large, "status"] = "stopped"
    table = knobs.importance(Searched.of(run))
    assert f"{int(large.sum())} that were stopped or failed are left out" in table.notes[0]
    assert table.frame.set_index("knob").loc["hard_margin", "win_rate_rank"] > 1
