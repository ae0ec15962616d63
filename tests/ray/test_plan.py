"""TrialPlan: the order of the trials, what a resumed plan leaves out, and which trials are confirmed."""

from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError
from slime_ray.on_ray.plan import TrialPlan, confirm_trials, lost_values
from slime_ray.on_ray.search import StudyFailed
from slime_ray.on_ray.sweep import with_extensions
from slime_ray.runs import results
from slime_ray.runs.instructions import Clone, ask_for_more
from slime_ray.runs.pareto import best_rows
from slime_ray.runs.status import write_status
from tests.ray.studies import plan_for

pytestmark = pytest.mark.usefixtures("quick_disk")
TEXT = """\
name: plan
preset: arithmetic
arms: {full: {}, no-anchor: {objective.anchor_weight: 0}}
seeds: [0, 1]
search: {objective.hard_margin: {uniform: [0.5, 3.0]}}
budget: {trials: 3, confirm: {best: 1, seeds: 3}}
"""


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    path = tmp_path / "plan.yaml"
    path.write_text(TEXT)
    return load_experiment(path)


def result(number: int, status: str = "completed") -> dict:
    return {"win_rate": 0.5 + number / 100, "stability": 0.9, "status": status}


def run(plan: TrialPlan, stop_after: int | None = None) -> list[str]:
    """Trial ids in the order in which a plan hands them out, one at a time."""
    names: list[str] = []
    while stop_after is None or len(names) < stop_after:
        given: Any = plan.suggest(f"tune-{len(names)}")
        if given == Searcher.FINISHED:
            break
        names.append(given["trial"]["trial_id"])
        # Later search trials win more often, whenever they are run.
        number = int(names[-1][7:11]) if names[-1].startswith("search-") else 0
        plan.on_trial_complete(f"tune-{len(names) - 1}", result(number))
    return names


EXPECTED = [
    "arm-full-s0", "arm-no-anchor-s0", "arm-full-s1", "arm-no-anchor-s1",
    "search-0001", "search-0002", "search-0003",
    "confirm-search-0003-s0", "confirm-search-0003-s1", "confirm-search-0003-s2",
]  # fmt: skip


def test_arms_run_seed_by_seed_then_the_search_then_its_winner_with_the_tables_seeds(experiment, tmp_path):
    plan = plan_for(experiment, tmp_path)
    assert run(plan) == EXPECTED
    assert plan.missing() == []
    trials = {trial.trial_id: trial for trial in plan.by_tune_id.values()}
    # The third search trial won; it is confirmed with its own knobs, on other prompts and other seeds.
    assert trials["confirm-search-0003-s0"].values == trials["search-0003"].values
    assert {trials[name].prompt_set for name in ("arm-full-s0", "confirm-search-0003-s2")} == {"report"}
    assert trials["search-0001"].prompt_set == "selection"
    assert trials["search-0001"].seed not in {trials[f"confirm-search-0003-s{seed}"].seed for seed in range(3)}
    assert trials["arm-no-anchor-s1"].settings.objective.anchor_weight == 0


@pytest.mark.parametrize("done", [0, 2, 5, 8, 10])
def test_a_resumed_plan_runs_exactly_what_is_missing(experiment, tmp_path, done):
    first = plan_for(experiment, tmp_path)
    before = run(first, stop_after=done)
    assert bool(first.missing()) == (done < len(EXPECTED))
    assert first.total == len(EXPECTED)
    resumed = plan_for(experiment, tmp_path, rows=first.rows)
    assert before + run(resumed) == EXPECTED


@pytest.mark.parametrize("known", ["by its result", "by the study alone"])
def test_a_confirmation_of_another_point_than_its_trial_has_is_refused(experiment, tmp_path, known):
    first = plan_for(experiment, tmp_path)
    run(first)
    name, trial = "confirm-search-0003-s0", "search-0003"
    rows = {**first.rows, name: {**first.rows[name], "label": trial, "values": {"objective.hard_margin": 0.75}}}
    if known == "by the study alone":
        del rows[trial]
    with pytest.raises(InputError, match=f"trials/{name} .*{trial} .*another point"):
        plan_for(experiment, tmp_path, rows=rows)


def test_confirmation_waits_for_trials_that_still_run(experiment, tmp_path):
    plan = plan_for(experiment, tmp_path)
    for number in range(7):
        plan.suggest(f"tune-{number}")
    assert plan.suggest("tune-7") is None
    for number in range(6):
        plan.on_trial_complete(f"tune-{number}", result(number))
    assert plan.suggest("tune-7") is None
    plan.on_trial_complete("tune-6", result(6))
    assert plan.suggest("tune-7")["trial"]["trial_id"] == "confirm-search-0003-s0"


def test_a_finished_sweep_is_extended_and_a_new_winner_is_confirmed_beside_the_old(experiment, tmp_path):
    first = plan_for(experiment, tmp_path)
    run(first)
    longer = experiment.model_copy(update={"budget": experiment.budget.model_copy(update={"trials": 4})})
    confirmed = [f"confirm-search-0004-s{seed}" for seed in range(3)]
    plan = plan_for(longer, tmp_path, rows=first.rows)
    # It is foreseen that what has been confirmed may not be what wins.
    assert plan.total == len(EXPECTED) + 4
    assert run(plan) == ["search-0004", *confirmed]
    assert plan.total == len(plan.rows)


@pytest.mark.parametrize("number", [0, 9])
def test_a_clone_of_a_finished_search_counts_with_its_confirmations_until_it_has_not_won(experiment, tmp_path, number):
    first = plan_for(experiment, tmp_path)
    run(first)
    plan = plan_for(experiment, tmp_path, rows=first.rows)
    plan.add(Clone("search-0001-clone-1", "search-0001", {"objective.hard_margin": 2.5}))
    assert plan.total == len(EXPECTED) + 4
    plan.suggest("clone")
    plan.on_trial_complete("clone", result(number))
    run(plan)
    assert plan.total == len(plan.rows) == len(EXPECTED) + (4 if number else 1)


def test_a_search_that_runs_is_extended_and_one_that_is_over_is_not(experiment, tmp_path):
    plan = plan_for(experiment, tmp_path)
    before = run(plan, stop_after=6)
    assert before == EXPECTED[:6]
    assert plan.extend(2)
    assert plan.missing()[:3] == ["search-0003", "search-0004", "search-0005"]
    # The best of all five is confirmed.
    names = []
    for number in range(6, 12):
        given = plan.suggest(f"tune-{number}")
        names.append(given["trial"]["trial_id"])
        plan.on_trial_complete(f"tune-{number}", result(len(names)))
    assert names[:4] == ["search-0003", "search-0004", "search-0005", "confirm-search-0005-s0"]
    assert not plan.extend(1)
    assert "search-0006" not in plan.missing()


def test_of_equal_trials_the_first_wins_whichever_ended_first(tmp_path):
    experiment = load_experiment(
        {
            "name": "ties", "preset": "arithmetic", "goals": {"win_rate": "maximize"},
            "search": {"objective.hard_margin": {"uniform": [0.5, 3.0]}},
            "budget": {"trials": 2, "confirm": {"best": 1, "seeds": 1}},
        }
    )  # fmt: skip
    plan = plan_for(experiment, tmp_path)
    for tune_id in ("1", "2"):
        plan.suggest(tune_id)
    for tune_id in ("2", "1"):
        plan.on_trial_complete(tune_id, result(3))
    assert plan.suggest("3")["trial"]["trial_id"] == "confirm-search-0001-s0"
    plan.on_trial_complete("3", result(3))
    assert plan_for(experiment, tmp_path, rows=dict(sorted(plan.rows.items()))).missing() == []


def test_a_clone_at_a_point_of_the_grid_leaves_no_trial_without_a_point(tmp_path):
    experiment = load_experiment(
        {
            "name": "grid", "preset": "arithmetic", "sampler": "grid",
            "search": {"objective.hard_margin": {"choice": [1.0, 2.0, 3.0]}}, "budget": {"trials": 3},
        }
    )  # fmt: skip
    plan = plan_for(experiment, tmp_path)
    first = run(plan, stop_after=1)
    (tried,) = (row["values"]["objective.hard_margin"] for row in plan.rows.values())
    other = next(value for value in (1.0, 2.0, 3.0) if value != tried)
    plan.add(Clone("search-0001-clone-1", "search-0001", {"objective.hard_margin": other}))
    plan.suggest("clone")
    plan.on_trial_complete("clone", result(1))
    again = plan_for(experiment, tmp_path, rows=plan.rows)
    for each in (plan, again):
        each.suggest("second")
        each.on_trial_complete("second", result(2))
        each.suggest("third")
        each.on_trial_complete("third", result(3))
        assert each.missing() == []
    assert first == ["search-0001"]


def test_a_search_that_was_extended_is_gone_on_with_by_the_command_that_began_it(experiment, tmp_path):
    plan = plan_for(experiment, tmp_path)
    run(plan, stop_after=6)
    plan.extend(3)
    for tune_id in ("a", "b"):
        plan.suggest(tune_id)
        plan.on_trial_complete(tune_id, result(4))
    assert [name for name in plan.rows if name.startswith("search")][-1] == "search-0004"
    (tmp_path / "instructions").mkdir()
    ask_for_more(tmp_path, 3, 2)
    ask_for_more(tmp_path, 5, 1)
    ask_for_more(tmp_path, 9, 9)
    extended = with_extensions(experiment, tmp_path)
    assert extended.budget.trials == 6
    assert with_extensions(extended, tmp_path) == extended
    assert plan_for(extended, tmp_path, rows=plan.rows).missing() == ["search-0005", "search-0006"]
    # Where an extension is taken up while it runs, a trial that has finished is given no second point.
    again = plan_for(experiment, tmp_path, rows=plan.rows)
    assert again.extend(3)
    assert run(again)[:2] == ["search-0005", "search-0006"]


def test_an_extension_that_came_too_late_is_not_taken_up_later(experiment, tmp_path):
    row = results.trial_row(trial_id="confirm-search-0001-s0", phase="confirm", label="search-0001", overrides={})
    results.write_trial(tmp_path, row=row | {"status": "completed"}, answers=[], curves=[])
    ask_for_more(tmp_path, 3, 2)
    assert with_extensions(experiment, tmp_path) == experiment


def test_a_study_that_cannot_be_told_keeps_no_trial_from_ending(experiment, tmp_path):
    plan = plan_for(experiment, tmp_path)
    names = run(plan, stop_after=4)
    plan.suggest("tune-4")
    (tmp_path / "study.journal").unlink()
    (tmp_path / "study.journal").mkdir()
    plan.on_trial_complete("tune-4", result(1))
    assert isinstance(plan.failure, StudyFailed)
    assert list(plan.rows) == [*names, "search-0001"]


DELETIONS = [
    ["search-0001", "search-0003", "confirm-search-0003-s1"],
    ["arm-full-s1", "search-0002"],
]


@pytest.mark.parametrize("deleted", DELETIONS, ids=" ".join)
@pytest.mark.parametrize("study", ["kept", "lost"])
def test_deleted_trials_are_run_again_as_they_were_and_nothing_else_is(experiment, tmp_path, deleted, study):
    first = plan_for(experiment, tmp_path)
    run(first)
    values = {trial.trial_id: trial.values for trial in first.by_tune_id.values()}
    rows = {name: kept for name, kept in first.rows.items() if name not in deleted}
    if study == "lost":
        (tmp_path / "study.journal").unlink()
    lost = {name: values[name] for name in deleted} if study == "lost" else {}
    resumed = plan_for(experiment, tmp_path, rows=rows, lost=lost)
    assert resumed.missing() == sorted(deleted) or "confirm" in "".join(deleted)
    assert sorted(run(resumed)) == sorted(deleted)
    again = {trial.trial_id: trial.values for trial in resumed.by_tune_id.values()}
    assert again == {name: values[name] for name in deleted}
    entries = resumed.parts[""].study.study.get_trials(states=(TrialState.COMPLETE,))
    assert sorted(entry.user_attrs["trial_id"] for entry in entries) == [f"search-000{n}" for n in (1, 2, 3)]


def test_with_nothing_complete_nothing_is_confirmed(experiment, tmp_path):
    plan = plan_for(experiment, tmp_path)
    for number in range(7):
        plan.suggest(f"tune-{number}")
        plan.on_trial_complete(f"tune-{number}", result(number, status="diverged"), number % 2 == 0)
    assert plan.suggest("tune-7") == Searcher.FINISHED
    # An experiment whose trials all failed has run all the same.
    assert plan.missing() == []


def test_a_winner_that_equals_an_arm_is_not_run_again(experiment):
    values = {"search-0001": {"objective.hard_margin": 1.5}, "search-0002": {"objective.hard_margin": 2.0}}
    wins = {"search-0001": 9, "search-0002": 5}
    rows = [{**result(wins[name]), "trial_id": name, "phase": "search", "values": values[name]} for name in values]
    # 1.5 is the paper's value, so that the first is the arm `full`.
    assert {
        trial.label
        for trial in confirm_trials(experiment, experiment.searches[0], {row["trial_id"]: row for row in rows})
    } == {"search-0002"}


def test_the_best_are_undominated_then_stable_enough_then_highest_in_the_first_goal():
    def row(name: str, win: float, stability: float, status: str = "completed") -> dict:
        return {"trial_id": name, "win_rate": win, "stability": stability, "status": status}

    rows = [
        row("wild", 0.9, 0.1),
        row("dominated", 0.6, 0.7),
        row("best", 0.7, 0.8),
        row("calm", 0.55, 0.99),
        row("failed", 1.0, 1.0, "failed"),
    ]
    order = [r["trial_id"] for r in best_rows(rows, {"win_rate": "maximize", "stability": "maximize"})]
    # best, calm and wild are the front; wild has lost most of its stability, and dominated stands behind.
    assert order == ["best", "calm", "wild", "dominated"]


def test_a_clone_runs_before_what_waits_and_the_study_learns_of_it(experiment, tmp_path):
    plan = plan_for(experiment, tmp_path)
    names = run(plan, stop_after=5)
    clone = Clone("search-0001-clone-1", "search-0001", {"objective.hard_margin": 2.5})
    assert plan.add(clone)
    assert not plan.add(clone)
    assert "search-0001-clone-1" in plan.missing()
    given: Any = plan.suggest("tune-5")
    assert given["trial"]["trial_id"] == "search-0001-clone-1"
    assert given["trial"]["values"] == {"objective.hard_margin": 2.5}
    assert given["trial"]["prompt_set"] == "selection"
    plan.on_trial_complete("tune-5", result(9))
    told = {trial.user_attrs["trial_id"]: trial.values for trial in plan.parts[""].study.study.get_trials()}
    assert told["search-0001-clone-1"] == [0.59, 0.9]
    # A plan over the rows so far runs neither it nor the others again.
    resumed = plan_for(experiment, tmp_path, rows=plan.rows)
    assert not resumed.add(clone)
    assert [*names, *run(resumed)][:7] == EXPECTED[:7]


def test_a_clone_after_confirmations_began_keeps_no_sweep_from_its_end_and_runs_when_it_is_resumed(
    experiment, tmp_path
):
    plan = plan_for(experiment, tmp_path)
    names = run(plan, stop_after=8)
    clone = Clone("search-0009-clone-1", "search-0001", {"objective.hard_margin": 2.5})
    assert not plan.add(clone)
    assert plan.is_late(clone)
    for number in (8, 9):
        names.append(plan.suggest(f"tune-{number}")["trial"]["trial_id"])
        plan.on_trial_complete(f"tune-{number}", result(0))
    assert names == EXPECTED
    assert plan.missing() == []
    resumed = plan_for(experiment, tmp_path, rows=plan.rows)
    assert resumed.add(clone)
    assert run(resumed) == [clone.trial_id, *(f"confirm-{clone.trial_id}-s{seed}" for seed in range(3))]
    assert resumed.missing() == []


def test_a_deleted_clone_is_run_again_and_counts_once(experiment, tmp_path):
    plan = plan_for(experiment, tmp_path)
    clone = Clone("search-0001-clone-1", "search-0001", {"objective.hard_margin": 2.5})
    plan.add(clone)
    run(plan)
    del plan.rows[clone.trial_id]
    resumed = plan_for(experiment, tmp_path, rows=plan.rows)
    assert resumed.add(clone)
    assert run(resumed) == [clone.trial_id]
    entries = resumed.parts[""].study.study.get_trials(states=(TrialState.COMPLETE,))
    assert [entry.params for entry in entries if entry.user_attrs["trial_id"] == clone.trial_id] == [clone.values]


def test_an_arms_clone_keeps_its_result_in_the_study_of_a_resumed_run(experiment, tmp_path):
    plan = plan_for(experiment, tmp_path)
    clone = Clone("arm-full-s0-clone-1", "arm-full-s0", {"objective.hard_margin": 2.5})
    plan.add(clone)
    run(plan)
    study = plan_for(experiment, tmp_path, rows=plan.rows).parts[""].study
    assert study.notes == []
    entries = study.study.get_trials(states=(TrialState.COMPLETE,))
    assert [entry.params for entry in entries if entry.user_attrs["trial_id"] == clone.trial_id] == [clone.values]


def test_a_clone_outside_the_space_runs_and_is_no_point_of_the_study(experiment, tmp_path):
    plan = plan_for(experiment, tmp_path)
    plan.add(Clone("arm-full-s0-clone-1", "arm-full-s0", {"objective.hard_margin": 9.0}))
    assert run(plan)[0] == "arm-full-s0-clone-1"
    assert "arm-full-s0-clone-1" not in {
        trial.user_attrs.get("trial_id") for trial in plan.parts[""].study.study.get_trials()
    }
    assert plan.missing() == []


def test_a_plan_that_is_closed_leaves_no_trial_running_in_the_study(experiment, tmp_path):
    plan = plan_for(experiment, tmp_path)
    run(plan, stop_after=4)
    points = {}
    for number in range(3):
        given: Any = plan.suggest(f"tune-{number + 4}")
        points[given["trial"]["trial_id"]] = given["trial"]["values"]
    # The second one finished, and its end was never told; the others were ended with the sweep.
    plan.close({"search-0002": result(2)})
    kept = [(trial.user_attrs["trial_id"], trial.state.name) for trial in plan.parts[""].study.study.get_trials()]
    assert kept == [("search-0001", "FAIL"), ("search-0002", "COMPLETE"), ("search-0003", "FAIL")]
    row = {**result(2), "phase": "search", "values": points["search-0002"]}
    resumed = plan_for(experiment, tmp_path, rows={**plan.rows, "search-0002": row})
    for name in ("search-0001", "search-0003"):
        again: Any = resumed.suggest(f"tune-{name}")
        assert (again["trial"]["trial_id"], again["trial"]["values"]) == (name, points[name])


def test_a_finished_trial_that_was_taken_for_lost_counts_and_is_not_run_again(experiment, tmp_path):
    """A bucket may show its row only after the sweep that ran it was closed."""
    plan = plan_for(experiment, tmp_path)
    run(plan, stop_after=4)
    given: Any = plan.suggest("tune-4")
    plan.close({})
    rows = {**plan.rows, "search-0001": {**result(1), "phase": "search", "values": given["trial"]["values"]}}
    for _ in range(2):
        resumed = plan_for(experiment, tmp_path, rows=rows)
        states = [trial.state.name for trial in resumed.parts[""].study.study.get_trials()]
        assert states == ["FAIL", "COMPLETE"]
    again: Any = resumed.suggest("next")
    assert again["trial"]["trial_id"] == "search-0002"
    assert again["trial"]["values"] != given["trial"]["values"]


@pytest.mark.parametrize("tables", ["whole", "damaged", "absent"])
def test_what_a_trial_without_a_result_set_is_read_from_the_other_files_of_the_run(tmp_path, tables):
    def settings(value: float) -> dict[str, float]:
        return {"objective.hard_margin": value}

    for name, value in (("search-0001", 1.0), ("search-0002", 2.0)):
        row = {"trial_id": name, "phase": "search", "label": name, "status": "completed", "overrides": settings(value)}
        results.write_trial(tmp_path, row=results.trial_row(**row), answers=[], curves=[])
    results.consolidate(tmp_path)
    if tables == "damaged":
        (tmp_path / "trials.parquet").write_bytes(b"PAR1 damaged")
    if tables == "absent":
        (tmp_path / "trials.parquet").unlink()
    running = {"search-0003": {"step": 4, "values": settings(2.5)}, "arm-full-s0": {"values": {}}}
    write_status(tmp_path, finished=2, total=9, trials=running)
    rows = {
        "search-0001": {"phase": "search", "label": "search-0001", "values": settings(1.0)},
        "confirm-search-0004-s0": {"phase": "confirm", "label": "search-0004", "values": settings(0.75)},
    }
    lost = {"search-0003": settings(2.5), "search-0004": settings(0.75)}
    assert lost_values(tmp_path, rows) == lost | ({"search-0002": settings(2.0)} if tables == "whole" else {})
