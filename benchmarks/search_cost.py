"""What a trial costs the driver of a sweep: drawing a point, writing it down, and hearing what came of it."""

import itertools
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from slime_ray.bench.machine import Machine, Say, describe_machine, now
from slime_ray.config.experiment import Budget, EarlyStopping, Experiment, Resources
from slime_ray.config.points import SamplerName, Search
from slime_ray.config.presets import preset_base
from slime_ray.on_ray.plan import TrialPlan
from slime_ray.on_ray.search import StudySearch, study_storage
from slime_ray.on_ray.stopping import build_rule
from slime_ray.planning.tables import table

GOALS: dict[str, Any] = {"win_rate": "maximize", "stability": "maximize"}
SPACE = {
    "objective.anchor_weight": {"log_uniform": [1e-2, 2.0]},
    "objective.stabilizer_strength": {"log_uniform": [1e-4, 0.3]},
    "objective.hard_margin": {"uniform": [0.5, 3.0]},
    "objective.soft_margin": {"uniform": [0.1, 2.0]},
    (RATE := "training.learning_rate"): {"log_uniform": [3e-5, 1e-3]},
}
SAMPLERS: tuple[SamplerName, ...] = ("tpe", "nsga2", "gp", "random", "quasi_random")
"""All but the grid, for the space here is continuous."""
REQUIRE = ["objective.soft_margin <= objective.hard_margin"]


@dataclass(frozen=True)
class Stretch:
    """Mean seconds a trial over the trials up to the `upto`th, all rounds together, by the wall and by the CPU.

    drawing, writing: of the wall's, in the sampler, and in the study's file, where each entry waits for the disk.
    longest: of a single trial.
    """

    upto: int
    wall: float
    cpu: float
    drawing: float
    writing: float
    longest: float


@dataclass(frozen=True)
class Cost:
    """One sampler's cost as its search grows. draws: for each trial, those that broke a requirement included."""

    sampler: str
    stretches: list[Stretch]
    draws: float


@dataclass(frozen=True)
class SearchCostReport:
    """rounds: searches of each sampler. stretch: trials of a search over which means are taken.

    rule: seconds of the default rule of early stopping for all evaluations of a trial, mean over the last stretch.
    """

    machine: Machine
    date: str
    optuna: str
    rounds: int
    stretch: int
    costs: list[Cost]
    rule: float


class Watched:
    """Adds up the calls of some of an object's methods, and their seconds."""

    def __init__(self, seen: object, *names: str):
        self.seconds, self.calls = 0.0, 0
        for name in names:
            setattr(seen, name, self._timed(getattr(seen, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            clock = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - clock

        return timed


@dataclass(frozen=True)
class Taken:
    """Seconds of one trial, as in a Stretch."""

    wall: float
    cpu: float
    drawing: float
    writing: float


def measure_search_cost(
    *, samplers: Sequence[SamplerName], trials: int, stretch: int, rounds: int, say: Say
) -> SearchCostReport:
    """Search two goals that pull apart, one trial at a time; nothing is trained."""
    costs = []
    for sampler in samplers:
        found: list[list[Taken]] = []
        draws = 0
        for seed in range(rounds):
            say(f"{sampler}, round {seed + 1} of {rounds}")
            with tempfile.TemporaryDirectory() as folder:
                taken, drawn = search_once(sampler, Path(folder), trials=trials, seed=seed)
            found.append(taken)
            draws += drawn
        ends = [upto for upto in (100, 300, 1000, 3000) if stretch <= upto < trials] + [trials]
        stretches = [_stretch(upto, [taken[max(0, upto - stretch) : upto] for taken in found]) for upto in ends]
        costs.append(Cost(sampler, stretches, draws / rounds / trials))
    return SearchCostReport(
        machine=describe_machine(torch.device("cpu")),
        date=now(),
        optuna=version("optuna"),
        rounds=rounds,
        stretch=stretch,
        costs=costs,
        rule=statistics.fmean(statistics.fmean(time_rule(trials, seed)[-stretch:]) for seed in range(rounds)),
    )


def time_rule(trials: int, seed: int) -> list[float]:
    """Seconds that early stopping by two goals takes for the ten evaluations of each trial, as many as it goes on."""
    rule, chance, taken = build_rule(EarlyStopping.model_validate({"goals": GOALS})), random.Random(seed), []
    assert rule is not None
    for number in range(trials):
        win = chance.random()
        metrics = {"updates": 100, "win_rate": win, "stability": 1 - win + chance.gauss(0, 0.1)}
        clock = time.perf_counter()
        for step in range(10, 101, 10):
            if rule.decide(f"{number}", {**metrics, "step": step}):
                break
        taken.append(time.perf_counter() - clock)
    return taken


def search_once(sampler: SamplerName, folder: Path, *, trials: int, seed: int) -> tuple[list[Taken], int]:
    """What each trial of one search took, and how many points were drawn for all of them."""
    search = Search.model_validate({"dimensions": SPACE, "require": REQUIRE, "sampler": sampler})
    budget = Budget(trials=trials)
    experiment = Experiment(
        name="cost", base=preset_base("arithmetic"), arms=[], search=search, seeds=[0], goals=GOALS, budget=budget,
        resources=Resources(),
    )  # fmt: skip
    study = StudySearch(
        search=search, base=experiment.base, goals=GOALS, storage=study_storage(folder), trials=trials, seed=seed
    )
    plan = TrialPlan(experiment, studies={"": study}, rows={}, seed=seed)
    drawing, drawn = Watched(study.sampler, "sample_relative"), Watched(study.sampler.rules, "broken")
    writes = ("create_new_trial", "set_trial_param", "set_trial_user_attr", "set_trial_state_values")
    writing = Watched(study.storage, *writes)
    chance, taken = random.Random(seed), []
    for number in range(trials):
        before = time.perf_counter(), time.process_time(), drawing.seconds, writing.seconds
        given: Any = plan.suggest(f"{number}")
        between = time.perf_counter(), time.process_time()
        result = made_up(given["trial"]["values"], chance)
        after = time.perf_counter(), time.process_time()
        plan.on_trial_complete(f"{number}", result)
        taken.append(
            Taken(
                wall=time.perf_counter() - before[0] - (after[0] - between[0]),
                cpu=time.process_time() - before[1] - (after[1] - between[1]),
                drawing=drawing.seconds - before[2],
                writing=writing.seconds - before[3],
            )
        )
    return taken, drawn.calls


def made_up(values: Mapping[str, float], chance: random.Random) -> dict[str, Any]:
    """A result whose win rate rises with the margins and the rate of learning, and whose stability falls with them."""
    push = values["objective.hard_margin"] + values["objective.soft_margin"] + math.log10(values[RATE] / 3e-5)
    hold = abs(math.log10(values["objective.anchor_weight"])) + abs(math.log10(values["objective.stabilizer_strength"]))
    win, stability = 1 / (1 + math.exp(2.5 - push + 0.1 * hold)), 1 / (1 + 0.1 * push**2 + 0.1 * hold)
    return {
        "status": "completed", "win_rate": win + chance.gauss(0, 0.02), "stability": stability + chance.gauss(0, 0.02),
    }  # fmt: skip


def _stretch(upto: int, rounds: Sequence[Sequence[Taken]]) -> Stretch:
    every = list(itertools.chain.from_iterable(rounds))
    means = {name: statistics.fmean(getattr(one, name) for one in every) for name in Taken.__dataclass_fields__}
    return Stretch(upto=upto, **means, longest=max(one.wall for one in every))


def search_cost_table(report: SearchCostReport) -> str:
    """`bench search-cost` in text."""
    machine = report.machine
    rows = [
        (
            cost.sampler,
            f"{at.upto:,}",
            *(f"{1000 * seconds:.1f}" for seconds in (at.wall, at.cpu, at.drawing, at.writing, at.longest)),
            f"{cost.draws:.2f}",
        )
        for cost in report.costs
        for at in cost.stretches
    ]
    titles = ("sampler", "trials", "ms", "CPU ms", "drawing", "writing", "longest", "draws")
    return "\n\n".join(
        [
            f"The driver's cost of a trial, two goals, 5 knobs and a requirement, on {machine.processor}, "
            f"{machine.cores} cores; Optuna {report.optuna}, {report.date}; {report.rounds} rounds",
            table(titles, rows),
            f"Milliseconds a trial, means over the {report.stretch} trials up to that number: by the wall, by the CPU, "
            "and of the wall's in the sampler and in the study's file, where each entry waits for the disk; the "
            "longest single trial; draws for each trial, those that broke the requirement included.",
            f"Early stopping by two goals adds {1000 * report.rule:.1f} ms a trial, for up to ten evaluations.",
        ]
    )


if __name__ == "__main__":
    from .common import run

    def measure(*, trials: int, stretch: int, rounds: int, say: Say) -> SearchCostReport:
        """Measure every sampler."""
        return measure_search_cost(samplers=SAMPLERS, trials=trials, stretch=stretch, rounds=rounds, say=say)

    run(
        "search_cost",
        "What drawing a trial and writing it down costs as a search grows.",
        {
            "trials": (1000, 1, "trials of a search"),
            "stretch": (100, 1, "trials that means are taken over"),
            "rounds": (3, 1, "searches of each sampler"),
        },
        measure,
        search_cost_table,
    )
