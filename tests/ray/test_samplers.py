"""The samplers: every search can be drawn again, gone on with, and never tries a point twice. No Ray instance is needed."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from slime_ray.config.metrics import Constraint
from slime_ray.config.points import Search
from slime_ray.config.presets import preset_base
from slime_ray.config.space import Dimension
from slime_ray.errors import InputError
from slime_ray.on_ray import samplers
from slime_ray.on_ray.search import StudySearch
from slime_ray.runs.earlier_runs import Observation
from slime_ray.runs.pareto import winners

BASE = preset_base("arithmetic")
GOALS = {"win_rate": "maximize", "stability": "maximize"}
MARGINS = {"objective.hard_margin": {"uniform": [0.5, 3.0]}, "objective.soft_margin": {"uniform": [0.1, 2.0]}}
STEPS = {
    "objective.hard_margin": {"uniform": [0.5, 3.0], "step": 0.5},
    "objective.soft_margin": {"uniform": [0.5, 2.0], "step": 0.5},
    "training.schedule": {"choice": ["linear", "cosine"]},
}
METHODS = {
    "objective.name": {"choice": ["slime", "dpo", "simpo"]},
    "objective.anchor_weight": {"log_uniform": [0.01, 2], "when": {"objective.name": "slime"}},
    "objective.beta[dpo]": {"log_uniform": [0.01, 1], "when": {"objective.name": "dpo"}},
    "objective.beta[simpo]": {"uniform": [1, 4], "when": {"objective.name": "simpo"}},
    "training.pairs_per_update": {"log_integer": [4, 32]},
}
REQUIRE = ["objective.soft_margin <= objective.hard_margin"]


def space(sampler: str, dimensions: dict[str, Any] | None = None, **keys: Any) -> Search:
    chosen = dimensions or (STEPS if sampler == "grid" else MARGINS)
    require = REQUIRE if "objective.soft_margin" in chosen else []
    return Search.model_validate({"dimensions": chosen, "sampler": sampler, "require": require, **keys})


STORAGES: dict[Path, InMemoryStorage] = defaultdict(InMemoryStorage)
"""What outlives a search here; that files and databases keep the same is tested with the study itself."""


def opened(folder: Path, search: Search, *, trials: int = 16, seed: int = 0, **known: Any) -> StudySearch:
    storage = STORAGES[folder]
    rows = ROWS[id(storage)]
    return StudySearch(
        search=search, base=BASE, goals=GOALS, storage=storage, trials=trials, seed=seed, rows=rows, **known
    )


def result(point: dict[str, Any]) -> dict[str, Any]:
    """Two goals that pull a knob in two ways; points at one end of it fail."""
    x = float(point.get("objective.hard_margin", point.get("objective.beta", 1.0)))
    return {"win_rate": x / 4, "stability": 1 / (1 + x), "status": "completed" if x < 2.8 else "diverged"}


ROWS: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
"""Of the trials that were played in a storage, by its `id`."""


def begun(search: StudySearch, name: str) -> dict[str, Any]:
    """The point of a trial that is begun."""
    asked = search.ask([name])
    assert asked is not None
    return asked[1]


def played(search: StudySearch, count: int) -> Iterator[dict[str, Any]]:
    """Trials one at a time."""
    rows = ROWS[id(search.storage)]
    for _ in range(count):
        name = next(iter(search.reruns), f"trial-{len(rows)}")
        point = begun(search, name)
        search.tell(name, result(point))
        rows[name] = {"phase": "search", "values": point, **result(point)}
        yield point


GOOD = {"win_rate": 0.6, "stability": 0.5, "status": "completed"}
SAMPLERS = ["tpe", "nsga2", "random", "quasi_random", "grid", "gp"]
COUNTS = {"gp": 7}
"""GP takes seconds for a trial; the first four are drawn by chance."""


@pytest.mark.parametrize(
    ("way", "form"),
    [
        ({"uniform": [0.5, 3.0]}, FloatDistribution(0.5, 3.0)),
        ({"uniform": [0.5, 3.0], "step": 0.5}, FloatDistribution(0.5, 3.0, step=0.5)),
        ({"log_uniform": [0.01, 2.0]}, FloatDistribution(0.01, 2.0, log=True)),
        ({"integer": [8, 16], "step": 4}, IntDistribution(8, 16, step=4)),
        ({"log_integer": [4, 32]}, IntDistribution(4, 32, log=True)),
        ({"choice": ["linear", "cosine"]}, CategoricalDistribution(["linear", "cosine"])),
    ],
    ids=str,
)
def test_a_dimension_has_its_own_scale_and_steps_for_optuna(way, form):
    assert samplers.distribution(Dimension.model_validate(way)) == form


def test_gp_learns_by_how_much_a_requirement_holds(tmp_path):
    search = opened(tmp_path, space("gp"))
    search.record("a", {"objective.hard_margin": 2.0, "objective.soft_margin": 0.5}, {**GOOD, "win_rate": 0.5})
    # For Optuna, what is at most 0 holds.
    assert search.study.trials[-1].constraints == {REQUIRE[0]: -1.5}


def test_tpe_knows_what_is_being_tried_and_what_was_stopped_but_not_what_came_to_nothing(tmp_path):
    """So draws side by side keep apart, and being stopped speaks against a point."""

    def drawn(after: str) -> dict[str, Any]:
        search = opened(tmp_path / after, space("tpe"))
        list(played(search, 12))
        # Known points are begun first, and count as tried.
        search.queue = [{"objective.hard_margin": 2.5, "objective.soft_margin": 0.13}]
        begun(search, "known")
        if after != "running":
            search.tell("known", {"status": after, **dict.fromkeys(GOALS, 0.0)})
        return begun(search, "next")

    nothing = drawn("failed")
    assert drawn("diverged") == nothing
    assert nothing not in [drawn("running"), drawn("stopped")]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_search_is_the_same_twice_and_the_same_where_it_is_gone_on_with(tmp_path, name):
    search, count = space(name), COUNTS.get(name, 14)
    whole = list(played(opened(tmp_path / "whole", search), count))
    for stop in (5,) if name == "gp" else (1, 6, 11):
        folder = tmp_path / f"{stop}"
        first = list(played(opened(folder, search), stop))
        assert first + list(played(opened(folder, search), count - stop)) == whole
    assert len({frozenset(point.items()) for point in whole}) == count
    assert all(point["objective.soft_margin"] <= point["objective.hard_margin"] for point in whole)
    other = opened(tmp_path / "other", search, seed=1)
    assert list(played(other, 3)) != whole[:3]


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random", "quasi_random", "grid"])
def test_what_was_lost_is_tried_again_and_nothing_else_twice(tmp_path, name):
    killed = opened(tmp_path, space(name))
    before = list(played(killed, 5))
    lost = [begun(killed, "a"), begun(killed, "b")]
    resumed = opened(tmp_path, space(name))
    again = list(played(resumed, 9))
    assert again[:2] == lost
    points = [frozenset(point.items()) for point in [*before, *again]]
    assert len(set(points)) == len(points)
    assert TrialState.RUNNING not in [trial.state for trial in resumed.study.get_trials()]


@pytest.mark.parametrize("name", ["random", "quasi_random", "grid"])
def test_a_sampler_that_does_not_learn_draws_the_same_side_by_side(tmp_path, name):
    alone = list(played(opened(tmp_path / "alone", space(name)), 8))
    beside = opened(tmp_path / "beside", space(name))
    assert [begun(beside, str(number)) for number in range(8)] == alone


@pytest.mark.parametrize("name", ["tpe", "random", "quasi_random"])
def test_every_trial_of_a_search_over_methods_has_the_knobs_of_its_own(tmp_path, name):
    search = opened(tmp_path, space(name, METHODS), trials=40)
    points = list(played(search, 24))
    assert {point["objective.name"] for point in points} == {"slime", "dpo", "simpo"}
    for point in points:
        low, high = {"slime": (0, 0), "dpo": (0.01, 1), "simpo": (1, 4)}[str(point["objective.name"])]
        assert low <= float(point.get("objective.beta", 0)) <= high
        assert ("objective.anchor_weight" in point) == (point["objective.name"] == "slime")
    # The study says which of the two ways a knob was drawn, so that a sampler or a dashboard never mixes them.
    kept = search.study.get_trials()
    assert {name for trial in kept for name in trial.params} == set(METHODS)
    assert next(played(opened(tmp_path, space(name, METHODS), trials=40), 1)) not in points


def test_a_grid_is_tried_in_full_and_its_known_points_first(tmp_path):
    known = {"objective.hard_margin": 1.5, "objective.soft_margin": 1.0, "training.schedule": "cosine"}
    search = opened(tmp_path, space("grid", known_points=[known]), trials=36)
    # Of 6 hard and 4 soft margins 18 pairs keep the requirement: 1 + 2 + 3 + 4 + 4 + 4.
    points = list(played(search, 36))
    assert points[0] == known
    assert len({frozenset(point.items()) for point in points}) == 36
    assert search.ask(["one more"]) is None


def test_a_grid_over_conditions_has_each_case_once(tmp_path):
    dimensions = {
        "training.schedule": {"choice": ["linear", "cosine"]},
        "training.warmup_fraction": {"uniform": [0, 0.2], "step": 0.1, "when": {"training.schedule": "cosine"}},
    }
    search = opened(tmp_path, space("grid", dimensions), trials=4)
    points = list(played(search, 4))
    assert sorted(str(point.get("training.warmup_fraction")) for point in points) == ["0.0", "0.1", "0.2", "None"]


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random", "quasi_random"])
def test_a_finite_space_is_tried_to_its_end_and_no_point_twice(tmp_path, name):
    dimensions = {"objective.hard_margin": {"uniform": [0.5, 2.0], "step": 0.5}}
    search = opened(tmp_path, space(name, dimensions), trials=4)
    assert sorted(point["objective.hard_margin"] for point in played(search, 4)) == [0.5, 1.0, 1.5, 2.0]
    with pytest.raises(InputError, match="1000 draws in a row were points that were tried before"):
        search.ask(["one more"])


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_what_an_earlier_run_found_is_known_from_the_start(tmp_path, name):
    """Forty results say that small margins are better in both goals."""
    margins = [0.5 + 2.5 * k / 39 for k in range(40)]
    observed = [
        Observation(f"before/{k}", {"objective.hard_margin": margin, "objective.soft_margin": 0.2}, (-k, -k))
        for k, margin in enumerate(margins)
    ]
    search = opened(tmp_path, space(name), trials=20, observed=observed)
    # However often the study is opened, they are there once.
    assert len(opened(tmp_path, space(name), trials=20, observed=observed).study.get_trials()) == 40
    blind = opened(tmp_path / "blind", space(name), trials=20)
    informed, drawn = ([begun(one, str(number)) for number in range(8)] for one in (search, blind))
    if name == "tpe":
        hard = [[float(point["objective.hard_margin"]) for point in points] for points in (informed, drawn)]
        assert sum(hard[0]) / 8 < 1.2 < sum(hard[1]) / 8
    else:
        # Children have whole values of their parents.
        assert 0.2 in [point["objective.soft_margin"] for point in informed]
        assert 0.2 not in [point["objective.soft_margin"] for point in drawn]


def test_a_sequence_goes_on_where_the_study_was_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(samplers, "MAX_DRAWS", 4)
    search = space("quasi_random", {"objective.hard_margin": {"uniform": [0.5, 3.0]}})
    whole = list(played(opened(tmp_path / "whole", search), 12))
    first = opened(tmp_path / "lost", search)
    before = list(played(first, 8))
    rows = ROWS[id(first.storage)]
    STORAGES[tmp_path / "lost"] = InMemoryStorage()
    ROWS[id(STORAGES[tmp_path / "lost"])] = rows
    assert before + list(played(opened(tmp_path / "lost", search), 4)) == whole


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp"])
def test_samplers_that_learn_hear_of_constraints_and_optunas_own_front_keeps_them(tmp_path, sampler):
    limits = [Constraint.parse("broken_outputs <= 0.05")]
    search = opened(tmp_path, space(sampler), constraints=limits)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        point = {
            "objective.hard_margin": float(rng.uniform(1.0, 3.0)),
            "objective.soft_margin": float(rng.uniform(0.1, 0.9)),
        }
        win, stability, broken = rng.random(3).round(2).tolist()
        row = {
            "trial_id": f"t{number}",
            "status": "completed",
            "win_rate": win,
            "stability": stability,
            "broken_outputs": broken / 10,
        }
        search.record(f"t{number}", point, row)
        rows.append(row)
    assert search.study.trials[0].constraints[str(limits[0])] == pytest.approx(rows[0]["broken_outputs"] - 0.05)
    kept = [row for row in rows if row["broken_outputs"] <= 0.05]
    front = {
        one["trial_id"] for one in kept
        if not any(
            other["win_rate"] >= one["win_rate"] and other["stability"] >= one["stability"] and other != one for other in kept
        )
    }  # fmt: skip
    assert {trial.user_attrs["trial_id"] for trial in search.study.best_trials} == front
    assert front <= {row["trial_id"] for row in winners(rows, GOALS, limits)}
    assert search.ask(["next"]) is not None


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp"])
def test_points_of_earlier_runs_bring_their_constraints_along(tmp_path, sampler):
    limits = [Constraint.parse("broken_outputs <= 0.05")]
    kept, broken = ({"objective.hard_margin": 2.0, "objective.soft_margin": soft} for soft in (0.3, 0.7))
    observed = [Observation("kept", kept, (0.5, 0.5), (-0.05,)), Observation("broken", broken, (0.9, 0.9), (0.2,))]
    search = opened(tmp_path, space(sampler), constraints=limits, observed=observed)
    assert [trial.user_attrs["source"] for trial in search.study.best_trials] == ["kept"]
