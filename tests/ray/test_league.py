"""A league's plan over made-up results, without Ray: turns, ids, winners, and what a resumed one leaves alone."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.tune.search import Searcher

from slime_ray.config.experiment import EarlyStopping, Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError
from slime_ray.on_ray.monitor import MonitorActor
from slime_ray.on_ray.plan import TrialPlan, seed_of
from slime_ray.runs import results
from slime_ray.runs.folder import lock_run
from slime_ray.runs.instructions import Clone
from tests.config.test_league import TEXT
from tests.ray.studies import plan_for

Rows = dict[str, dict[str, Any]]
SMALL = {"trials": 2, "seeds": 2, "defaults": False}


def league(*labels: str, **changes: Any) -> Experiment:
    data = yaml.safe_load(TEXT)
    entries = data["league"]["entries"] | {"nca": {}}
    data["league"] |= SMALL | changes | {"entries": {label: entries[label] for label in labels}}
    return load_experiment(data)


def score(trial: dict[str, Any]) -> float:
    """Later trials of an entry win more often."""
    return 0.5 + int(trial["trial_id"].rpartition("-")[2].strip("s")) / 100


def run(plan: TrialPlan, *, lost: str = "-", at_once: int = 1) -> list[dict[str, Any]]:
    """The trials in the order in which a plan hands them out, so many at a time; those of entry `lost` fail."""
    given: list[dict[str, Any]] = []
    running: list[tuple[str, dict[str, Any]]] = []
    while True:
        while len(running) < at_once:
            config: Any = plan.suggest(f"tune-{len(given)}")
            if config is None or config == Searcher.FINISHED:
                break
            running.append((f"tune-{len(given)}", config["trial"]))
            given.append(config["trial"])
        if not running:
            assert config == Searcher.FINISHED
            return given
        tune_id, trial = running.pop(0)
        status = "failed" if f"-{lost}-" in trial["trial_id"] else "completed"
        plan.on_trial_complete(tune_id, {"win_rate": score(trial), "stability": 0.9, "status": status})


def ids(trials: list[dict[str, Any]]) -> list[str]:
    return [trial["trial_id"] for trial in trials]


def test_entries_take_turns_and_an_entrys_winner_follows_its_own_search(tmp_path):
    assert ids(run(plan_for(league("dpo", "ipo"), tmp_path))) == [
        "search-dpo-0001", "search-ipo-0001", "search-dpo-0002",
        "confirm-search-dpo-0002-s0", "confirm-search-dpo-0002-s7",
        "search-ipo-0002", "confirm-search-ipo-0002-s0", "confirm-search-ipo-0002-s7",
    ]  # fmt: skip


def test_nobody_waits_for_another_entry(tmp_path):
    plan = plan_for(league("dpo", "ipo", "sft"), tmp_path)
    assert plan.total == 3 * 4
    names = ids(run(plan, at_once=3))
    assert len(names) == len(set(names)) == 3 * 4
    assert plan.missing() == []
    assert plan.total == 3 * 4


def test_all_searches_use_one_seed_and_prompts_and_all_winners_the_same_others(tmp_path):
    trials = run(plan_for(league("dpo", "ipo"), tmp_path))
    of = {
        phase: {(one["seed"], one["prompt_set"]) for one in trials if one["phase"] == phase}
        for phase in ("search", "confirm")
    }
    assert of == {"search": {(1000, "selection")}, "confirm": {(0, "report"), (7, "report")}}


def test_an_entrys_draws_do_not_depend_on_other_entries(tmp_path):
    def points(*labels: str) -> list[dict[str, Any]]:
        trials = run(plan_for(league(*labels, trials=4), tmp_path / "-".join(labels)))
        return [one["values"] for one in trials if one["trial_id"].startswith("search-ipo")]

    for labels in (("ipo", "dpo"), ("sft", "nca", "ipo")):
        (tmp_path / "-".join(labels)).mkdir()
    assert points("ipo", "dpo") == points("sft", "nca", "ipo")
    assert seed_of("ipo", 0) != seed_of("dpo", 0)
    assert seed_of("", 5) == 5


def test_defaults_run_with_the_winners_learning_rate_and_seeds(tmp_path):
    trials = {one["trial_id"]: one for one in run(plan_for(league("dpo", "sft", defaults=True), tmp_path))}
    winner, default = trials["confirm-search-dpo-0002-s7"], trials["confirm-search-dpo-0002-defaults-s7"]
    assert default["values"] == winner["values"] | {"objective.beta": 0.1}
    assert default["values"] != winner["values"]
    assert not any("sft" in name and "defaults" in name for name in trials)


@pytest.mark.parametrize("of", ["search-dpo-0001", "arm-start-s0"])
def test_a_clone_wins_no_entry_and_no_search_learns_of_it(tmp_path, of):
    plan = plan_for(league("ipo", "dpo"), tmp_path)
    values = {"objective.name": "dpo", "objective.beta": 0.2, "training.learning_rate": 5e-4}
    clone = Clone(f"{of}-clone-90", of, values)
    assert plan.add(clone)
    names = ids(run(plan))
    assert names[0] == clone.trial_id
    assert plan.rows[clone.trial_id]["win_rate"] == 0.5 + 0.90
    assert {name for name in names if name.startswith("confirm")} == {
        f"confirm-search-{label}-0002-s{seed}" for label in ("dpo", "ipo") for seed in (0, 7)
    }
    for label, part in plan.parts.items():
        known = [entry.user_attrs["trial_id"] for entry in part.study.study.trials]
        assert known == [f"search-{label}-0001", f"search-{label}-0002"]


def finished(experiment: Experiment, folder: Path, **options: Any) -> Rows:
    plan = plan_for(experiment, folder)
    run(plan, **options)
    return plan.rows


def test_one_more_entry_more_trials_and_more_seeds_train_only_what_is_new(tmp_path):
    rows = finished(league("dpo", "ipo"), tmp_path)
    again = run(plan_for(league("dpo", "ipo", "nca"), tmp_path, rows))
    assert ids(again) == [
        "search-nca-0001", "search-nca-0002", "confirm-search-nca-0002-s0", "confirm-search-nca-0002-s7",
    ]  # fmt: skip
    assert ids(run(plan_for(league("dpo", "ipo", seeds=3), tmp_path, rows))) == [
        "confirm-search-dpo-0002-s8", "confirm-search-ipo-0002-s8",
    ]  # fmt: skip


def test_an_entry_whose_trials_all_fail_ends_without_a_winner_and_the_rest_goes_on(tmp_path):
    plan = plan_for(league("dpo", "ipo"), tmp_path)
    names = ids(run(plan, lost="dpo"))
    assert [name for name in names if "dpo" in name] == ["search-dpo-0001", "search-dpo-0002"]
    assert "confirm-search-ipo-0002-s7" in names
    assert plan.missing() == []


def test_a_trial_is_ranked_among_those_of_its_own_entry():
    early = EarlyStopping(rule="asha", metric="preference_accuracy", reduction=2, first=0.5)
    monitor = MonitorActor(early, ())
    told = {"step": 5, "updates": 10}
    orders = {
        name: monitor.report(name, told | {"preference_accuracy": accuracy}, searched=True)
        for name, accuracy in {
            "search-dpo-0001": 0.9, "search-ipo-0001": 0.1, "search-ipo-0002": 0.2, "search-dpo-0002": 0.5,
        }.items()
    }  # fmt: skip
    assert [name for name, order in orders.items() if order] == ["search-dpo-0002"]


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (("ipo", "nca"), "was started with the entry dpo, and the file lacks it now"),
        (("dpo", "strict-dpo"), "was started with the entry ipo, and the file lacks it now"),
    ],
)
def test_an_entry_that_was_taken_away_is_refused(tmp_path, now, sentence):
    begin(tmp_path, league("dpo", "ipo"), "fresh")
    with pytest.raises(InputError, match=sentence):
        begin(tmp_path, league(*now), "resume")


def test_a_changed_entry_and_fewer_trials_are_refused_and_more_of_all_is_not(tmp_path):
    before = league("dpo", "ipo")
    begin(tmp_path, before, "fresh")
    assert before.league is not None
    changed = before.league.entries[0].model_copy(update={"defaults": {"objective.beta": 0.2}})
    other = before.league.model_copy(update={"entries": [changed, before.league.entries[1]]})
    with pytest.raises(InputError, match="the entry dpo, and the file has another one now"):
        begin(tmp_path, before.model_copy(update={"league": other}), "resume")
    with pytest.raises(InputError, match=r"has league\.trials 2, which may become more and not fewer"):
        begin(tmp_path, league("dpo", "ipo", trials=1), "resume")
    begin(tmp_path, league("nca", "dpo", "ipo", trials=3, seeds=4), "resume")
    assert len(results.read_manifest(tmp_path / "cup")["experiment"]["league"]["entries"]) == 3


def begin(folder: Path, experiment: Experiment, start: Any) -> None:
    with lock_run(folder / "cup", experiment, source=TEXT, seed=0, start=start) as manifest:
        results.write_manifest(folder / "cup", manifest)
