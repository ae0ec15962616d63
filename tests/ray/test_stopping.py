"""Early stopping: which trials go on at a rung, or at an evaluation, worked out by hand."""

import math
from pathlib import Path

import pytest
import yaml

from slime_ray.config.experiment import EarlyStopping
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError
from slime_ray.on_ray.stopping import Halving, Median, Ranking, Rule, build_rule, past_reports
from slime_ray.runs import results

GOALS = {"win_rate": "maximize", "stability": "maximize"}


def asha(first: float = 0.2, reduction: int = 3) -> Halving:
    return Halving(Ranking({"preference_accuracy": "maximize"}), first=first, reduction=reduction)


def decide(rule: Rule, trial: str, step: int, updates: int = 100, **values: float | None) -> str | None:
    order = rule.decide(trial, {"step": step, "updates": updates, **values})
    assert order is None or (order.kind, order.measure) == ("stop", False)
    return order.reason if order else None


def accuracy(rule: Rule, trial: str, value: float | None, step: int) -> str | None:
    return decide(rule, trial, step, preference_accuracy=value)


def test_only_the_best_share_of_those_at_a_rung_goes_on():
    rule = asha()
    # Too few at the rung to tell, whatever they reached.
    assert accuracy(rule, "a", 0.9, 20) is None
    assert accuracy(rule, "b", 0.1, 20) is None
    # Three: one of them goes on, and a is it.
    assert accuracy(rule, "c", 0.8, 20) == (
        "early: preference_accuracy 0.8 at update 20 of 100, behind 1 of 2 other trials"
    )
    assert accuracy(rule, "d", 0.95, 20) is None
    # Six: two go on.
    assert accuracy(rule, "e", 0.2, 25) is not None
    assert accuracy(rule, "f", 0.93, 20) is None


def test_a_trial_is_judged_once_at_a_rung_and_not_before_it():
    rule = asha(first=0.5, reduction=2)
    for trial in "ab":
        assert accuracy(rule, trial, 0.9, 50) is None
    assert accuracy(rule, "c", 0.1, 49) is None
    assert accuracy(rule, "c", 0.1, 50) is not None
    # It started again after an interruption, and passes the rung again.
    assert accuracy(rule, "c", 0.1, 50) is None


def test_nothing_is_stopped_at_its_very_end():
    rule = asha(first=0.5, reduction=2)
    for trial in "abc":
        assert accuracy(rule, trial, 0.9, 100) is None
    assert accuracy(rule, "d", 0.1, 100) is None


def test_a_trial_that_says_no_number_goes_on_and_one_that_says_nan_does_not():
    rule = asha()
    assert rule.decide("a", {"doing": "making sft"}) is None
    assert accuracy(rule, "a", None, 20) is None
    for trial in "bcd":
        accuracy(rule, trial, 0.1, 20)
    assert "preference_accuracy nan" in str(accuracy(rule, "e", math.nan, 20))


def test_two_goals_let_both_ends_of_the_front_go_on():
    rule = Halving(Ranking(GOALS, "spread"), first=0.2, reduction=3)

    def at_rung(trial: str, win: float, stable: float) -> str | None:
        return decide(rule, trial, 20, win_rate=win, stability=stable)

    for trial, win, stable in (("a", 0.7, 0.1), ("b", 0.6, 0.4)):
        assert at_rung(trial, win, stable) is None
    # Both beat it, and of three one goes on.
    assert at_rung("c", 0.55, 0.05) == (
        "early: win_rate 0.55, stability 0.05 at update 20 of 100, behind 2 of 2 other trials"
    )
    # On the front, but only one of four goes on, and that is the best of the first goal.
    assert at_rung("d", 0.5, 0.9) is not None
    at_rung("e", 0.4, 0.3)
    # Of six two go on: a, and what is farthest from it on the front.
    assert at_rung("f", 0.45, 0.95) is None


def test_the_median_rule_compares_the_best_so_far_with_the_others_means():
    rule = Median("mean_margin", first=0.2)

    def at(trial: str, step: int, value: float) -> str | None:
        return decide(rule, trial, step, mean_margin=value)

    # Means until 20: 0.2, 0.3 and 0.4. Two of them are too few to say anything.
    for trial, values in {"a": (0.1, 0.3), "b": (0.2, 0.4), "c": (0.3, 0.5)}.items():
        assert [at(trial, step, value) for step, value in zip((10, 20), values, strict=True)] == [None, None]
    # At 10 nobody is stopped yet; at 20 the best so far, 0.29, is below the median of the means, 0.3.
    assert at("d", 10, 0.29) is None
    assert at("d", 20, 0.1) == (
        "early: mean_margin 0.29 at best at update 20 of 100, below 0.3, the median of 3 others"
    )
    # It started again: what it was told then does not change.
    assert at("d", 20, 0.1) is None
    # It was better once than the median is now (means 0.2, 0.3, 0.4 and 0.195).
    assert (at("e", 10, 0.26), at("e", 20, -9.0)) == (None, None)
    # As good as the median (means 0.195, 0.2, 0.3, 0.4 and -4.37) is good enough.
    assert at("g", 20, 0.2) is None
    # Nobody has got as far as this.
    assert at("f", 30, -9.0) is None


def test_the_median_rule_does_not_ask_a_trial_that_first_reported_later():
    rule = Median("mean_margin", first=0.2)
    # Of other numbers of updates, evaluations are at other shares.
    for trial in "abc":
        assert decide(rule, trial, 5, updates=7, mean_margin=0.9) is None
    assert decide(rule, "d", 3, updates=10, mean_margin=0.1) is None


def test_a_rung_is_reached_at_just_its_share_of_the_updates():
    rule = asha()
    for trial in "abc":
        accuracy(rule, trial, 0.9, 20)
    assert [decide(rule, trial, 6, updates=10, preference_accuracy=0.9) for trial in "ab"] == [None, None]
    assert decide(rule, "c", 6, updates=10, preference_accuracy=0.1) is not None


def test_the_median_rule_takes_no_number_for_the_worst():
    rule = Median("mean_margin", first=0.2)
    for trial in "abc":
        assert decide(rule, trial, 20, mean_margin=0.1) is None
    assert decide(rule, "d", 20, mean_margin=math.nan) is not None


def test_settings_name_the_rule():
    assert build_rule(EarlyStopping(rule="none")) is None
    assert build_rule(EarlyStopping(goals=GOALS)) == Halving(Ranking(GOALS, "winner"), first=0.2, reduction=3)
    spread = EarlyStopping(goals=GOALS, tie_break="spread")
    assert build_rule(spread) == Halving(Ranking(GOALS, "spread"), first=0.2, reduction=3)
    others = {"first": 0.1, "reduction": 4}
    assert build_rule(EarlyStopping(goals=GOALS, **others)) == Halving(Ranking(GOALS, "winner"), **others)
    assert build_rule(EarlyStopping(rule="asha", **others)) == asha(**others)
    assert build_rule(EarlyStopping(rule="median", metric="stability", first=0.1)) == Median("stability", first=0.1)


TEXT = """\
name: stops
preset: arithmetic
search: {{training.learning_rate: {{log_uniform: [1e-6, 1e-3]}}}}
budget: {{trials: 4}}
early_stopping: {early}
"""


def load(folder: Path, early: str, **overrides: object) -> EarlyStopping | None:
    source = folder / "stops.yaml"
    source.write_text(TEXT.format(early=early))
    return load_experiment(source, overrides=overrides).early_stopping


def test_two_goals_are_those_of_the_search_unless_others_are_named(tmp_path):
    early = load(tmp_path, "{}")
    assert early is not None
    assert (early.rule, early.goals) == ("pareto", GOALS)
    early = load(tmp_path, "{goals: {mean_margin: maximize, stability: maximize}}")
    assert early is not None
    assert early.ranked_by == ("mean_margin", "stability")


@pytest.mark.parametrize("setting", ["sentinel.judge", "sentinel.action"])
def test_where_nothing_is_judged_on_the_way_accuracy_stands_for_the_win_rate(tmp_path, setting):
    early = load(tmp_path, "{}", **{setting: "none" if setting.endswith("action") else False})
    assert early is not None
    assert early.goals == {"preference_accuracy": "maximize", "stability": "maximize"}


@pytest.mark.parametrize(
    ("early", "overrides", "said"),
    [
        ("{rule: pareto, metric: stability}", {}, "metric has no effect with rule pareto"),
        ("{rule: asha, tie_break: spread}", {}, "tie_break has no effect with rule asha"),
        ("{rule: asha, goals: {stability: maximize}}", {}, "goals has no effect with rule asha"),
        ("{goals: {}}", {}, "goals is empty"),
        ("{rule: best}", {}, "Allowed: asha, median, none, pareto"),
        ("{rule: asha, metric: win_rate}", {"sentinel.judge": False}, "nothing is judged during training"),
        ("{first: 0.9}", {}, "Set more evaluations"),
    ],
)
def test_what_cannot_stop_anything_is_refused(tmp_path, early, overrides, said):
    with pytest.raises(InputError, match=r"stops\.yaml:5") as caught:
        load(tmp_path, early, **overrides)
    assert said in str(caught.value)


def test_a_run_that_is_gone_on_with_remembers_its_rungs(tmp_path):
    def finish(name: str, phase: str, reached: int, started: str, **told: float) -> None:
        row = results.trial_row(
            trial_id=name,
            label=name,
            phase=phase,
            status="stopped",
            updates=reached,
            planned_updates=100,
            started=started,
        )
        about = {"trial_id": name, "label": name, "phase": phase, "seed": 0}
        curves = [
            {**about, "step": step, "source": source, "metric": metric, "value": value}
            for step in range(0, reached + 1, 20)
            for source, metric, value in (
                ("train", "preference_accuracy", 9.0),
                ("held_out", "preference_accuracy", told["accuracy"]),
                ("sentinel", "stability", 0.5),
                ("sentinel", "unlearning", 0.1),
            )
        ]
        results.write_trial(tmp_path, row=row, answers=[], curves=curves)

    finish("search-0001", "search", 20, "2026-01-02", accuracy=0.1)
    finish("search-0002", "search", 40, "2026-01-01", accuracy=0.9)
    finish("search-0003", "search", 20, "2026-01-03", accuracy=0.2)
    finish("arm-a-s0", "arm", 40, "2026-01-01", accuracy=0.99)
    past = past_reports(tmp_path)
    assert [(name, told["step"]) for name, told in past] == [
        ("search-0002", 0), ("search-0002", 20), ("search-0002", 40),
        ("search-0001", 0), ("search-0001", 20), ("search-0003", 0), ("search-0003", 20),
    ]  # fmt: skip
    assert past[1][1] == {"step": 20, "updates": 100, "preference_accuracy": 0.9, "stability": 0.5}
    rule = asha()
    for name, told in past:
        rule.decide(name, told)
    assert accuracy(rule, "search-0004", 0.5, 20) is not None
    assert accuracy(asha(), "search-0004", 0.5, 20) is None


@pytest.mark.parametrize(
    "text", ["{rule: asha}", "{rule: median}", "{rule: none}", "{rule: pareto, tie_break: spread}"]
)
def test_every_rule_is_the_same_in_another_process_and_when_a_run_is_reopened(text):
    early = EarlyStopping.model_validate(yaml.safe_load(text))
    assert EarlyStopping.model_validate(early.model_dump()) == early
    assert EarlyStopping.model_validate_json(early.model_dump_json()) == early
