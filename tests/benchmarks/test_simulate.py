"""The simulated sweep: its clock and its bookkeeping by hand, with the searcher and the rules of a real one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
from slime_ray.search_spaces import find_space

from benchmarks.simulate import FixedPoints, Forgetful, Recorded, simulate
from slime_ray.config.experiment import Search
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.presets import preset_base
from slime_ray.on_ray.stopping import Halving, Ranking

GOALS = {"win_rate": "maximize", "stability": "maximize"}


def recorded(name: str, value: float, *, tokens: int = 1000) -> Recorded:
    return Recorded(
        name=name,
        values={"knob": name},
        evaluations={step: {"win_rate": value, "stability": 1 - value} for step in (0, 50, 100)},
        updates=100,
        tokens=tokens,
        row={"status": "completed", "win_rate": value, "stability": 1 - value, "seed": 7},
    )


class InOrder(FixedPoints):
    """Hands out what it is given, and keeps what it hears."""

    def __init__(self, trials: list[Recorded]):
        super().__init__({"trial": trial} for trial in trials)
        self.heard: list[tuple[str, str]] = []

    def complete(self, trial_id: str, row: Mapping[str, Any]) -> None:
        self.heard.append((trial_id, row["status"]))


def play(trials: list[Recorded], rule: Halving | None = None, *, at_most: int = 9, workers: int = 1) -> tuple:
    searcher = InOrder(trials)
    found = simulate(searcher, rule, lambda point: point["trial"], trials=at_most, workers=workers)
    return found, searcher.heard


def test_workers_take_the_next_trial_when_they_are_free():
    trials = [recorded("long", 0.1, tokens=3000), recorded("a", 0.2), recorded("b", 0.3), recorded("never", 0.4)]
    found, heard = play(trials, at_most=3, workers=2)
    assert [(one.recorded.name, one.started, one.ended) for one in found] == [
        ("a", 0, 1000), ("b", 1000, 2000), ("long", 0, 3000)
    ]  # fmt: skip
    assert heard == [(name, "completed") for name in ("search-0002", "search-0003", "search-0001")]
    assert found[0].row["trial_id"] == "search-0002"
    assert found[0].row | {"updates": 100, "tokens": 1000, "win_rate": 0.2, "seed": 7} == found[0].row


def test_a_trial_that_is_stopped_costs_its_share_and_has_no_result():
    trials = [recorded("good", 0.9), recorded("bad", 0.1), recorded("after", 0.95)]
    found, heard = play(trials, Halving(Ranking({"win_rate": "maximize"}), first=0.5, reduction=2))
    # One of two goes on, and the first one has been there: bad is stopped halfway, after is the better of three.
    assert [(one.recorded.name, one.ended, one.tokens) for one in found] == [
        ("good", 1000, 1000), ("bad", 1500, 500), ("after", 2500, 1000)
    ]  # fmt: skip
    stopped = found[1].row
    assert (stopped["status"], stopped["updates"], stopped["win_rate"]) == ("stopped", 50, None)
    assert stopped["reason"] == "early: win_rate 0.1 at update 50 of 100, behind 1 of 1 other trials"
    assert heard[1] == ("search-0002", "stopped")


def test_a_trial_ends_with_its_last_update_also_where_it_told_nothing_then():
    found, _ = play([replace(recorded("early", 0.2), evaluations={0: {"win_rate": 0.2}})])
    assert [(one.ended, one.row["updates"], one.tokens) for one in found] == [(1000, 100, 1000)]


def test_side_by_side_a_rung_knows_only_who_has_been_there():
    # With two workers the first is halfway at 1,500 tokens, when the second, worse but faster, has long gone on.
    trials = [recorded("slow", 0.9, tokens=3000), recorded("fast", 0.1)]
    found, _ = play(trials, Halving(Ranking({"win_rate": "maximize"}), first=0.5, reduction=2), workers=2)
    assert [(one.recorded.name, one.row["status"]) for one in found] == [("fast", "completed"), ("slow", "completed")]


def test_the_searcher_of_an_experiment_has_its_goals_trials_and_seed():
    experiment = load_experiment(find_space("anchor_stabilizer_margins"))
    search = Forgetful(experiment, trials=40, seed=3).study
    assert (search.goals, search.search) == (experiment.goals, experiment.search)
    assert (search.sampler.trials, search.sampler.seed) == (40, 3)


def one_search(seed: int) -> tuple[list[tuple], optuna.Study]:
    """A real searcher over one knob, whose value is the win rate."""
    knob = "objective.anchor_weight"
    search = Search.model_validate({"dimensions": {knob: {"uniform": [0.0, 1.0]}}})
    changes = {"search": search, "base": preset_base("arithmetic"), "goals": GOALS}
    searcher = Forgetful(load_experiment(find_space("front")).model_copy(update=changes), trials=24, seed=seed)

    def replay(point: Mapping[str, Any]) -> Recorded:
        # Above a half, both goals fall: what lies there is dominated.
        win = point[knob] if point[knob] < 0.5 else (1 - point[knob]) / 2
        return recorded("it", win)

    rule = Halving(Ranking({"win_rate": "maximize"}), first=0.5, reduction=3)
    found = simulate(searcher, rule, replay, trials=24, workers=3)
    return [(one.row["trial_id"], one.row["win_rate"], one.tokens) for one in found], searcher.study.study


def test_the_searcher_of_a_sweep_plays_the_same_again_from_the_same_seed():
    (first, study), (again, _), (other, _) = one_search(1), one_search(1), one_search(2)
    assert first == again
    assert first != other
    states = [trial.state for trial in study.trials]
    stopped = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert len(states) == 24
    assert optuna.trial.TrialState.RUNNING not in states
    assert {trial.user_attrs["tokens"] for trial in stopped} == {500}
    assert {trial.user_attrs["updates"] for trial in stopped} == {50}
    # What was stopped has no values, so that no front holds it.
    assert {trial.values for trial in stopped} == {None}
    assert not {trial.number for trial in stopped} & {trial.number for trial in study.best_trials}
