"""StudySearch: a study that outlives the process, and one point for every id. No Ray instance is needed."""

import math
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from slime_ray.errors import InputError
from slime_ray.on_ray.search import StudyFailed, StudySearch, study_storage
from tests.ray.studies import (
    KNOWN,
    SPACE,
    ask,
    completed,
    finished,
    open_search,
    play,
    row,
    search_over,
    states,
)

pytestmark = pytest.mark.usefixtures("quick_disk")
BOTH = pytest.mark.parametrize("backend", ["file", "database"], indirect=True)
"""For what is kept of a study, in either of the places where it may be."""


@BOTH
def test_known_points_come_first_and_once_however_often_the_study_is_opened(backend, tmp_path):
    open_search(tmp_path)
    search = open_search(tmp_path)
    assert ask(search, "a") == KNOWN
    search.tell("a", finished())
    again = open_search(tmp_path, rows={"a": row(KNOWN)})
    assert ask(again, "b") != KNOWN


@pytest.mark.parametrize(
    "result",
    [
        {},
        finished(win=math.nan),
        {"win_rate": 0.6, "status": "completed"},
        finished(status="diverged", stability=0.0),
        finished(status="failed"),
    ],
)
def test_a_trial_without_a_whole_result_is_told_fail_and_stays_out_of_the_front(tmp_path, result):
    search = open_search(tmp_path)
    ask(search, "a")
    search.tell("a", result)
    search.tell("a", finished())
    assert states(search) == [TrialState.FAIL]
    assert search.study.best_trials == []


@BOTH
def test_a_trial_that_was_stopped_is_told_pruned_with_what_it_reached(backend, tmp_path):
    search = open_search(tmp_path)
    stopped = {**finished(status="stopped"), "reason": "early: it lags", "tokens": 512}
    rows = {"a": row(ask(search, "a"), **stopped, updates=20), "b": row(ask(search, "b"), **stopped, updates=20)}
    search.tell("a", {**stopped, "step": 20})
    # The sweep died before it could tell of the second one, whose row says the same in the words of trials.parquet.
    reopened = open_search(tmp_path, rows=rows)
    assert states(reopened) == [TrialState.PRUNED, TrialState.FAIL, TrialState.PRUNED]
    for entry, name in zip(reopened.study.get_trials(states=(TrialState.PRUNED,)), "ab", strict=True):
        told = {key: entry.user_attrs[key] for key in ("trial_id", "reason", "updates", "tokens")}
        assert told == {"trial_id": name, "reason": "early: it lags", "updates": 20, "tokens": 512}
    assert reopened.study.best_trials == []
    assert ask(reopened, "c") is not None


def test_a_complete_trial_is_told_both_goals_in_their_order(tmp_path):
    search = open_search(tmp_path)
    assert search.ask(["search-0001", "search-0002"]) == ("search-0001", KNOWN)
    search.tell("search-0001", finished(0.7, 0.4))
    trial = search.study.best_trials[0]
    assert trial.values == [0.7, 0.4]
    assert trial.user_attrs["trial_id"] == "search-0001"


def test_what_a_killed_run_left_running_is_failed_and_its_point_is_tried_again_under_its_id(tmp_path):
    killed = open_search(tmp_path)
    known, drawn = ask(killed, "a"), ask(killed, "b")
    resumed = open_search(tmp_path)
    assert states(resumed) == [TrialState.FAIL, TrialState.FAIL]
    # Whatever order they are asked for in, and before anything new.
    assert resumed.ask(["new", "b"]) == ("b", drawn)
    assert resumed.ask(["new", "a"]) == ("a", known)
    assert ask(resumed, "new") not in (known, drawn)


@BOTH
@pytest.mark.parametrize("deleted", ["b", "ad", "abcd"])
def test_a_deleted_trial_is_run_again_at_its_point_and_counts_once(backend, tmp_path, deleted):
    rows = play(open_search(tmp_path), "abcd")
    left = {name: kept for name, kept in rows.items() if name not in deleted}
    for _ in range(2):
        # Also where the sweep is cut off once more before it was run.
        resumed = open_search(tmp_path, rows=left)
        assert sorted(completed(resumed)) == sorted(left)
    assert resumed.notes == []
    for name in deleted:
        assert ask(resumed, name) == rows[name]["values"]
        resumed.tell(name, finished(win=0.11))
    assert set(completed(resumed)) == set("abcd")
    assert all(completed(resumed)[name][0] == 0.11 for name in deleted)
    assert ask(resumed, "e") not in [kept["values"] for kept in rows.values()]


def test_what_was_deleted_is_said_once(tmp_path):
    rows = play(open_search(tmp_path), "abc")
    del rows["b"]
    assert open_search(tmp_path, rows=rows).notes == ["b has no result any more; it is run again."]


def test_a_trial_is_deleted_while_others_were_running(tmp_path):
    killed = open_search(tmp_path)
    rows = play(killed, "ab")
    running = {name: ask(killed, name) for name in "cd"}
    gone = rows.pop("a")
    resumed = open_search(tmp_path, rows=rows)
    assert TrialState.RUNNING not in states(resumed)
    assert {name: ask(resumed, name) for name in "acd"} == {"a": gone["values"], **running}


def test_a_resumed_search_draws_what_the_whole_one_draws_also_after_a_deletion(tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = play(open_search(tmp_path / "whole"), "abcdefgh")
    rows = play(open_search(tmp_path / "cut"), "abcde")
    del rows["c"]
    rows |= play(open_search(tmp_path / "cut", rows=rows), "c")
    assert rows | play(open_search(tmp_path / "cut", rows=rows), "fgh") == whole


@BOTH
def test_a_result_that_was_replaced_is_what_the_study_says(backend, tmp_path):
    """As when a trial was copied from a backup, or the study has two results of an id."""
    search = open_search(tmp_path)
    rows = play(search, "ab")
    search.study.add_trial(create_trial(state=TrialState.COMPLETE, values=[0.1, 0.1], **entry(search, 0)))
    rows["b"] |= {"win_rate": 0.01}
    reopened = open_search(tmp_path, rows=rows)
    assert completed(reopened) == {"a": [rows["a"]["win_rate"], 0.9], "b": [0.01, 0.9]}


def entry(search: StudySearch, number: int) -> dict[str, Any]:
    kept = search.study.trials[number]
    return {"params": kept.params, "distributions": kept.distributions, "user_attrs": kept.user_attrs}


@BOTH
def test_a_study_that_is_gone_is_made_again_from_the_results(backend, tmp_path):
    for name in ("kept", "lost"):
        (tmp_path / name).mkdir()
    rows = play(open_search(tmp_path / "kept"), "abcdef")
    rows["c"] |= {"status": "stopped", "win_rate": None, "reason": "early"}
    rows["d"] |= {"status": "failed", "win_rate": None}
    gone = rows.pop("e")
    # Of one trial the result is gone as well; the tables still say what it set.
    made = open_search(tmp_path / "lost", rows=rows, lost={"e": gone["values"]})
    assert made.notes == ["The study lacked 5 finished trials; they were added from their results."]
    assert completed(made) == {name: [rows[name]["win_rate"], 0.9] for name in "abf"}
    assert [state.name for state in states(made)] == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    assert ask(made, "e") == gone["values"]
    assert ask(made, "g") not in [kept["values"] for kept in rows.values()]


@pytest.mark.parametrize("at", ["spare", "whole", "copy"])
def test_a_study_that_is_cut_off_while_it_is_written_anew_is_whole_the_next_time(tmp_path, monkeypatch, at):
    first = open_search(tmp_path)
    rows = play(first, "abcd")
    deleted, at_work = rows.pop("b"), ask(first, "e")
    broken = {
        "spare": (optuna.Study, "add_trials"),
        "whole": (optuna, "delete_study"),
        "copy": (optuna, "copy_study"),
    }[at]
    with monkeypatch.context() as failing:
        failing.setattr(*broken, refuse)
        with pytest.raises(StudyFailed):
            open_search(tmp_path, rows=rows)
    resumed = open_search(tmp_path, rows=rows)
    assert set(completed(resumed)) == {"a", "c", "d"}
    # What has no result is only there, and is tried again at its point.
    assert (ask(resumed, "b"), ask(resumed, "e")) == (deleted["values"], at_work)
    assert optuna.get_all_study_names(resumed.storage) == ["slime-ray"]


def test_the_study_of_another_run_is_refused(tmp_path):
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    rows = play(open_search(tmp_path / "mine", search=search_over(known=()), seed=1), "abc")
    play(open_search(tmp_path / "other", search=search_over(known=()), seed=2), "abc")
    with pytest.raises(InputError, match=r"another point for a than trials/a/trial.json, .* made again from"):
        open_search(tmp_path / "other", search=search_over(known=()), seed=1, rows=rows)


@BOTH
def test_a_draw_that_cannot_be_written_is_drawn_again(backend, tmp_path, monkeypatch):
    for folder in ("calm", "failing"):
        (tmp_path / folder).mkdir()
    calm = ask(open_search(tmp_path / "calm", search=search_over(known=())), "a")
    search = open_search(tmp_path / "failing", search=search_over(known=()))
    with monkeypatch.context() as failing:
        failing.setattr(search.study, "ask", refuse)
        with pytest.raises(StudyFailed):
            ask(search, "a")
    assert ask(search, "a") == calm


def refuse(*_: object, **__: object) -> None:
    raise OSError("No space left on device")


def test_the_study_of_a_run_of_version_0_1_0_is_gone_on_with(tmp_path):
    """Trials 1 to 4 have results; 5 was paused and 6 was running, and both points were queued once more."""
    shutil.copy(Path(__file__).parent / "data" / "study-0.1.0.journal", tmp_path / "study.journal")
    hard = [1.5, 2.5, 1.838998371568321, 2.9330576263072263, 1.9082850870997645, 1.6816881670296406]
    study = optuna.load_study(study_name="slime-ray", storage=study_storage(tmp_path))
    entries = {one.user_attrs.get("trial_id"): one.params for one in study.trials if one.params}
    points = {f"search-000{n}": entries[f"search-000{n}"] for n in range(1, 7)}
    assert [point["objective.hard_margin"] for point in points.values()] == hard
    results = [finished(0.6, 0.9), finished(0.7, 0.8), finished(status="stopped"), finished(status="failed")]
    rows = {f"search-000{n}": row(points[f"search-000{n}"], **result) for n, result in enumerate(results, 1)}
    search = open_search(tmp_path, rows=rows)
    assert completed(search) == {"search-0001": [0.6, 0.9], "search-0002": [0.7, 0.8]}
    assert {TrialState.RUNNING, TrialState.WAITING}.isdisjoint(states(search))
    free = [f"search-000{n}" for n in range(5, 9)]
    assert [search.ask(free[k:]) for k in range(2)] == [(name, points[name]) for name in free[:2]]
    assert ask(search, free[2]) not in points.values()


def test_another_space_or_other_goals_are_refused(tmp_path):
    search = open_search(tmp_path)
    ask(search, "a")
    with pytest.raises(InputError, match="was started with the goals"):
        open_search(tmp_path, goals={"stability": "maximize"})
    wider = {**SPACE, "objective.hard_margin": {"uniform": [0.5, 4.0]}}
    with pytest.raises(InputError, match=r"another search space: objective\.hard_margin changed"):
        open_search(tmp_path, search=search_over(wider))


def test_a_space_that_requirements_almost_empty_is_refused_instead_of_searched_for_ever(tmp_path):
    almost = search_over(require=("objective.hard_margin <= 0.5000000001",), known=())
    with pytest.raises(InputError, match="1000 draws in a row"):
        ask(open_search(tmp_path, search=almost), "a")
