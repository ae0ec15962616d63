"""A rule of early stopping as a scheduler of Ray Tune, in a Tuner that is not ours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from slime_ray.on_ray.ranking import ByFront
from slime_ray.on_ray.scheduler import RuleScheduler
from slime_ray.on_ray.stopping import Halving

pytestmark = pytest.mark.ray
GOALS = {"win_rate": "maximize", "stability": "maximize"}


@pytest.fixture
def instance() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def curve(config: dict) -> None:
    for _ in range(4):
        tune.report({"win_rate": config["case"]["win"], "stability": config["case"]["stable"]})


def test_a_tuner_stops_what_the_ranking_puts_behind(instance, tmp_path: Path):
    scheduler = RuleScheduler(Halving(ByFront(GOALS, "spread"), first=0.5, reduction=2), updates=4)
    # One after another: the first goes on, the second is dominated, the third is the other end of the front, but of
    # three one goes on; of four two do, and the fourth is a new end.
    points = [(0.7, 0.2), (0.6, 0.1), (0.5, 0.8), (0.4, 0.9)]
    found: Any = tune.Tuner(
        tune.with_resources(curve, {"cpu": 2}),
        param_space={"case": tune.grid_search([{"win": win, "stable": stable} for win, stable in points])},
        tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    reached = {r.metrics["config"]["case"]["win"]: r.metrics["training_iteration"] for r in found}
    assert reached == {0.7: 4, 0.6: 2, 0.5: 2, 0.4: 4}
    assert sorted(scheduler.reasons.values()) == [
        "early: win_rate 0.5, stability 0.8 at update 2 of 4, behind 1 of 2 other trials",
        "early: win_rate 0.6, stability 0.1 at update 2 of 4, behind 1 of 1 other trials",
    ]


def test_what_it_answers_is_what_tune_expects():
    scheduler = RuleScheduler(Halving(ByFront(GOALS), first=0.5, reduction=2), updates=4, time_attr="epoch")
    answers = [
        scheduler.on_trial_result(None, tune.experiment.Trial("x", trial_id=name, stub=True), told)
        for name, told in (
            ("a", {"epoch": 2, "win_rate": 0.7, "stability": 0.7}),
            ("b", {"epoch": 1, "win_rate": 0.6, "stability": 0.6}),
            ("b", {"epoch": 2, "win_rate": 0.6, "stability": 0.6}),
        )
    ]
    assert answers == [TrialScheduler.CONTINUE, TrialScheduler.CONTINUE, TrialScheduler.STOP]
    assert list(scheduler.reasons) == ["b"]
