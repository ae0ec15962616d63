"""StudySearch: what OptunaSearch gets wrong, and a study that outlives the process. No Ray instance is needed."""

import math
import resource
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from slime_ray.errors import InputError
from slime_ray.experiment import Search
from slime_ray.on_ray import search as search_module
from slime_ray.on_ray.search import StudyFailed, StudySearch, study_storage
from slime_ray.presets import preset_base

BASE = preset_base("arithmetic")
GOALS = {"win_rate": "maximize", "stability": "maximize"}
SPACE = {
    "objective.hard_margin": {"uniform": [0.5, 3.0]},
    "objective.soft_margin": {"uniform": [0.1, 2.0]},
    "objective.stabilizer_strength": {"log_uniform": [1e-4, 0.3]},
    "training.pairs_per_update": {"integer": [8, 16]},
    "training.schedule": {"choice": ["linear", "cosine"]},
}
KNOWN = {
    "objective.hard_margin": 1.5,
    "objective.soft_margin": 1.0,
    "objective.stabilizer_strength": 0.1,
    "training.pairs_per_update": 16,
    "training.schedule": "cosine",
}


@pytest.fixture(autouse=True, params=["file", "database"])
def backend(request, monkeypatch):
    """All that is promised of a study holds for both places that it may be in."""
    if request.param == "database":
        monkeypatch.setattr(sys.modules[__name__], "study_storage", in_database)


def in_database(path: Path) -> BaseStorage:
    return search_module.study_storage(path, f"sqlite:///{path}/study.db")


def search_over(space=SPACE, require=("objective.soft_margin <= objective.hard_margin",), known=(KNOWN,)) -> Search:
    return Search.model_validate({"dimensions": space, "require": list(require), "known_points": list(known)})


def open_search(path: Path, *, search: Search | None = None, goals=GOALS, seed: int = 0, rows=()) -> StudySearch:
    return StudySearch(
        search=search or search_over(),
        base=BASE,
        goals=goals,
        storage=study_storage(path),
        trials=16,
        seed=seed,
        rows=dict(rows),
    )


def finished(win: float = 0.6, stability: float = 0.9, status: str = "completed") -> dict:
    return {"win_rate": win, "stability": stability, "status": status}


def states(search: StudySearch) -> list[TrialState]:
    return [trial.state for trial in search.study.get_trials(deepcopy=False)]


def test_every_point_meets_every_requirement(tmp_path):
    search = open_search(tmp_path)
    for number in range(40):
        point = search.suggest(str(number))
        assert point is not None
        assert point["objective.soft_margin"] <= point["objective.hard_margin"]
        assert set(point) == set(SPACE)
        search.on_trial_complete(str(number), finished(win=number / 40))
    assert TrialState.RUNNING not in states(search)


def test_known_points_come_first_and_once_however_often_the_study_is_opened(tmp_path):
    open_search(tmp_path)
    search = open_search(tmp_path)
    assert search.suggest("a") == KNOWN
    search.on_trial_complete("a", finished())
    again = open_search(tmp_path)
    assert again.suggest("b") != KNOWN


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (None, False),
        (None, True),
        ({}, False),
        (finished(win=math.nan), False),
        ({"win_rate": 0.6, "status": "completed"}, False),
        (finished(status="diverged", stability=0.0), False),
        (finished(status="failed"), False),
        # An errored trial that had reported before is no result.
        (finished(), True),
    ],
)
def test_a_trial_without_a_whole_result_is_told_fail_and_stays_out_of_the_front(tmp_path, result, error):
    search = open_search(tmp_path)
    search.suggest("a")
    search.on_trial_complete("a", result, error)
    search.on_trial_complete("a", finished(), False)
    assert states(search) == [TrialState.FAIL]
    assert search.study.best_trials == []


def test_a_trial_that_was_stopped_is_told_pruned_with_what_it_reached(tmp_path):
    search = open_search(tmp_path)
    stopped = {**finished(status="stopped"), "reason": "early: it lags", "tokens": 512}
    search.suggest("a")
    search.on_trial_complete("a", {**stopped, "step": 20})
    search.suggest("b")
    search.name("b", ["search-0002"])
    # The sweep died before it could tell of the second one, whose row says the same in the words of trials.parquet.
    reopened = open_search(tmp_path, rows={"search-0002": {**stopped, "updates": 20}})
    assert states(reopened) == [TrialState.PRUNED, TrialState.PRUNED]
    for trial in reopened.study.trials:
        told = {name: trial.user_attrs[name] for name in ("reason", "updates", "tokens")}
        assert told == {"reason": "early: it lags", "updates": 20, "tokens": 512}
    assert reopened.study.best_trials == []
    assert reopened.suggest("c") is not None


def test_a_complete_trial_is_told_both_goals_in_their_order(tmp_path):
    search = open_search(tmp_path)
    search.suggest("a")
    assert search.name("a", ["search-0001", "search-0002"]) == "search-0001"
    search.on_trial_complete("a", finished(0.7, 0.4))
    trial = search.study.best_trials[0]
    assert trial.values == [0.7, 0.4]
    assert trial.user_attrs["trial_id"] == "search-0001"


def test_what_a_killed_run_left_running_is_failed_and_its_point_is_tried_again(tmp_path):
    killed = open_search(tmp_path)
    known, drawn = killed.suggest("a"), killed.suggest("b")
    resumed = open_search(tmp_path)
    # Nothing is left RUNNING; both points wait to be asked for again.
    assert sorted(state.name for state in states(resumed)) == ["FAIL", "FAIL", "WAITING", "WAITING"]
    assert [resumed.suggest("c"), resumed.suggest("d")] == [known, drawn]


def test_a_resumed_search_draws_other_points_than_before(tmp_path):
    first = open_search(tmp_path, search=search_over(known=()))
    points = [first.suggest(str(n)) for n in range(4)]
    for n in range(4):
        first.on_trial_complete(str(n), finished())
    second = open_search(tmp_path, search=search_over(known=()))
    assert all(second.suggest(f"again-{n}") not in points for n in range(4))


def test_the_same_seed_draws_the_same_points_one_at_a_time(tmp_path):
    def draw(folder: str, seed: int) -> list:
        (tmp_path / folder).mkdir()
        search = open_search(tmp_path / folder, seed=seed)
        points = []
        for n in range(8):
            points.append(search.suggest(str(n)))
            search.on_trial_complete(str(n), finished(win=n / 8, stability=1 - n / 8))
        return points

    assert draw("a", 1) == draw("b", 1)
    assert draw("c", 2)[1:] != draw("d", 3)[1:]


def test_no_point_of_a_space_of_few_is_tried_twice(tmp_path):
    few = {"training.schedule": {"choice": ["linear", "cosine"]}, "training.pairs_per_update": {"choice": [8, 16, 32]}}
    search = open_search(tmp_path, search=search_over(few, require=(), known=()))
    points = [search.suggest(str(n)) for n in range(6)]
    assert len({tuple(sorted(point.items())) for point in points if point}) == 6


def test_a_draw_that_cannot_be_written_is_drawn_again(tmp_path, monkeypatch):
    for folder in ("calm", "failing"):
        (tmp_path / folder).mkdir()
    calm = open_search(tmp_path / "calm", search=search_over(known=())).suggest("a")
    search = open_search(tmp_path / "failing", search=search_over(known=()))
    with monkeypatch.context() as failing:
        failing.setattr(search, "_record", refuse)
        with pytest.raises(StudyFailed):
            search.suggest("a")
    assert search.suggest("a") == calm


def refuse(*_: object, **__: object) -> None:
    raise OSError("No space left on device")


def test_another_space_or_other_goals_are_refused(tmp_path):
    search = open_search(tmp_path)
    search.suggest("a")
    with pytest.raises(InputError, match="was started with the goals"):
        open_search(tmp_path, goals={"stability": "maximize"})
    wider = {**SPACE, "objective.hard_margin": {"uniform": [0.5, 4.0]}}
    with pytest.raises(InputError, match=r"another search space: objective\.hard_margin changed"):
        open_search(tmp_path, search=search_over(wider))


@pytest.mark.parametrize("backend", ["file"], indirect=True)
def test_a_space_that_requirements_almost_empty_is_refused_instead_of_searched_for_ever(tmp_path):
    almost = search_over(require=("objective.hard_margin <= 0.5000000001",), known=())
    with pytest.raises(InputError, match="1000 draws in a row"):
        open_search(tmp_path, search=almost).suggest("a")


def test_the_study_is_an_ordinary_optuna_study(tmp_path):
    search = open_search(tmp_path)
    search.suggest("a")
    search.on_trial_complete("a", finished())
    study = optuna.load_study(study_name="slime-ray", storage=study_storage(tmp_path))
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MAXIMIZE"]
    assert study.trials[0].params == KNOWN


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "it is no such address"),
        ("nosuch://me:secret@host/db", "Install its driver"),
        ("sqlite:////no/such/folder/study.db", "Start the database or correct the address"),
    ],
)
def test_a_database_that_cannot_be_used_is_a_sentence_without_its_password(tmp_path, url, words):
    with pytest.raises(InputError, match=words) as refused:
        search_module.study_storage(tmp_path, url)
    assert "secret" not in str(refused.value)


def test_two_runs_share_a_database_and_no_trial(tmp_path):
    storage = in_database(tmp_path)
    one, other = (
        StudySearch(search=search_over(), base=BASE, goals=GOALS, storage=storage, trials=16, seed=0, name=name)
        for name in ("first-1", "first-2")
    )
    assert one.suggest("a") == other.suggest("a") == KNOWN
    one.on_trial_complete("a", finished())
    assert states(one) == [TrialState.COMPLETE]
    assert states(other) == [TrialState.RUNNING]


def test_a_database_that_fails_is_told_again_what_it_missed(tmp_path):
    """The file of the database is overwritten, and put back."""
    file = tmp_path / "study.db"
    search = StudySearch(search=search_over(), base=BASE, goals=GOALS, storage=in_database(tmp_path), trials=16, seed=0)
    search.suggest("a")
    kept = file.read_bytes()
    file.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StudyFailed, match=r"The study's database failed \(.*--resume"):
        search.on_trial_complete("a", finished())
    with pytest.raises(StudyFailed):
        search.suggest("b")
    file.write_bytes(kept)
    search.on_trial_complete("a", finished())
    assert states(search) == [TrialState.COMPLETE]


def in_journal(path: Path, **known: Any) -> StudySearch:
    storage = search_module.study_storage(path)
    return StudySearch(search=search_over(), base=BASE, goals=GOALS, storage=storage, trials=16, seed=0, **known)


def test_a_journal_that_a_full_disk_has_cut_off_is_gone_on_with(tmp_path):
    """RLIMIT_FSIZE lets the next entry be written in part, as a full disk does."""
    search = in_journal(tmp_path)
    search.suggest("a")
    search.name("a", ["search-0001"])
    journal, before = tmp_path / "study.journal", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 10, before[1]))
    try:
        with pytest.raises(StudyFailed, match="File too large"):
            search.on_trial_complete("a", finished())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not journal.read_bytes().endswith(b"\n")
    in_journal(tmp_path, rows={"search-0001": finished()}).suggest("b")
    assert states(in_journal(tmp_path))[0] == TrialState.COMPLETE
