"""Where the points of a search come from: Optuna's samplers, which learn from results, and sequences, which do not.

A draw follows from the seed, its position and, where the sampler learns, from the results that are known; nothing else
is remembered. So a search that is gone on with draws what it would have drawn, where its trials run one at a time.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from slime_ray.on_ray.fronts import dominators, signed
from slime_ray.points import Point, Rules, Search, path_of
from slime_ray.space import Dimension, Scalar

BEST, NEWEST, AGAIN_EVERY = 50, 150, 100
"""What TPE and GP are shown of the results, once there are more: the least dominated and the newest others, chosen
again every so many results. Their cost grows with what they are shown; TPE takes at most 25 results for good, and gives
the oldest others next to no weight."""
Outcome = Sequence[float] | Literal["stopped"] | None
"""What came of a trial: its values of the goals, nothing, or that it was stopped early, which speaks against it."""


class Sampler(Protocol):
    """Draws points, which need not keep the requirements, and hears of all that are tried, by the study's numbers.

    patience: so many draws in a row may lead to no trial, before chance is asked instead; None is as many as it takes.
    """

    patience: int | None

    def draw(self, position: int) -> Point | None:
        """The draw at a position, from 0; None where there is no further one."""

    def begin(self, number: int, point: Point) -> None:
        """A point is tried, wherever it came from."""

    def end(self, number: int, outcome: Outcome) -> None:
        """It has ended."""


def make_sampler(search: Search, rules: Rules, directions: Sequence[str], *, trials: int, seed: int) -> Sampler:
    """The sampler that the search names. directions: of the goals. trials: of the whole search."""
    if search.sampler == "random":
        return chance(search, seed)
    if search.sampler == "quasi_random":
        return Drawn(QuasiRandom(search, seed))
    if search.sampler == "grid":
        return Drawn(Grid(search, rules, seed))
    return Learner(search, rules, directions, trials=trials, seed=seed)


def chance(search: Search, seed: int) -> "Drawn":
    """Independent draws, each even on its dimension's scale."""
    return Drawn(lambda position: search.at(_generator(seed, position).random(len(search.dimensions))))


class Drawn:
    """A sampler that learns nothing. at: the point at a position, None behind the last."""

    patience: int | None = None

    def __init__(self, at: Callable[[int], Point | None]):
        self.draw = at

    def begin(self, number: int, point: Point) -> None:
        """Changes nothing."""

    def end(self, number: int, outcome: Outcome) -> None:
        """Changes nothing."""


class QuasiRandom:
    """A scrambled Sobol sequence over all dimensions; a point takes those that it has."""

    def __init__(self, search: Search, seed: int):
        self.search, self.seed = search, seed
        self.table = np.empty((0, len(search.dimensions)))

    def __call__(self, position: int) -> Point:
        if position >= len(self.table):
            # In whole powers of 2, of which the sequence makes the most, and always the same from its start.
            from scipy.stats import qmc  # It takes a second to import.

            engine = qmc.Sobol(self.table.shape[1], scramble=True, rng=np.random.default_rng([self.seed]))
            self.table = engine.random_base2(max(6, position.bit_length()))
        return self.search.at(self.table[position])


class Grid:
    """Every point of a finite space that keeps the requirements, once, in an order of the seed's."""

    def __init__(self, search: Search, rules: Rules, seed: int):
        points = [point for point in search.points() if not rules.broken(point)]
        self.points = [points[place] for place in np.random.default_rng([seed]).permutation(len(points))]

    def __call__(self, position: int) -> Point | None:
        return self.points[position] if position < len(self.points) else None


class Learner:
    """One of Optuna's samplers, with a study in memory that holds what it is shown.

    The study that lasts is a record alone: what a sampler writes and reads while it draws would cost more there than
    the drawing, and draws that break a requirement are nobody's business.
    """

    def __init__(self, search: Search, rules: Rules, directions: Sequence[str], *, trials: int, seed: int):
        self.search, self.rules, self.seed, self.trials = search, rules, seed, trials
        self.directions = list(directions)
        # What GP takes for the best point may break a requirement, and is the same again and again.
        self.patience: int | None = 3 if search.sampler == "gp" else 20
        self.study = self._empty()
        self.running: dict[int, tuple[Trial, Point]] = {}
        self.finished: list[FrozenTrial] = []

    def _empty(self) -> optuna.Study:
        directions = [StudyDirection[direction.upper()] for direction in self.directions]
        return optuna.create_study(directions=directions, sampler=self._sampler(0))

    def _sampler(self, position: int) -> BaseSampler:
        seed = int(np.random.SeedSequence([self.seed, position]).generate_state(1)[0])
        name, conditional = self.search.sampler, self.search.is_conditional
        startup = min(10, max(4, self.trials // 4))
        if name == "nsga2":
            return Generations(self.search, seed=seed, population_size=min(50, max(4, self.trials // 4)))
        if name == "gp":
            return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return WithinRules(
                self.search, self.rules, seed=seed, n_startup_trials=startup, multivariate=True, group=conditional,
                constant_liar=True,
            )  # fmt: skip

    def draw(self, position: int) -> Point:
        """A point of the sampler's; in the first trials, one by chance."""
        self.study.sampler = self._sampler(position)
        trial = self.study.ask()
        point = self._suggested(trial)
        self.study.tell(trial, state=TrialState.FAIL)
        return point

    def begin(self, number: int, point: Point) -> None:
        """Points that are being tried count, so that draws side by side keep apart."""
        self.study.enqueue_trial(self.search.named(point))
        trial = self.study.ask()
        if self.search.sampler == "nsga2":
            # Asking for it makes the trial one of the present generation, without which it is no parent.
            _ = trial.relative_params
        self._suggested(trial)
        self.running[number] = trial, point

    def end(self, number: int, outcome: Outcome) -> None:
        """A result, or none; from time to time, what the sampler is shown of them is chosen anew."""
        trial, point = self.running.pop(number)
        if outcome is None:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        if self.search.sampler == "gp":
            # By how much requirements hold or not is one more thing that it learns.
            for requirement, excess in self.rules.excesses(point).items():
                trial.set_constraint(requirement, excess)
        if outcome == "stopped":
            self.finished.append(self.study.tell(trial, state=TrialState.PRUNED))
        else:
            self.finished.append(self.study.tell(trial, list(outcome)))
        many = len(self.finished) > BEST + NEWEST and len(self.finished) % AGAIN_EVERY == 0
        # The generations of NSGA-II are all of its results, and cost it little.
        if many and self.search.sampler != "nsga2":
            self._choose()

    def _choose(self) -> None:
        complete = [place for place, trial in enumerate(self.finished) if trial.state == TrialState.COMPLETE]
        points = signed([self.finished[place].values for place in complete], self.directions)
        best = {complete[place] for place in np.argsort(dominators(points), kind="stable")[:BEST]}
        others = [place for place in range(len(self.finished)) if place not in best]
        self.study = self._empty()
        self.study.add_trials(self.finished[place] for place in sorted(best | set(others[-NEWEST:])))
        running, self.running = self.running, {}
        for number, (_, point) in running.items():
            self.begin(number, point)

    def _suggested(self, trial: Trial) -> Point:
        return self.search.walk(lambda name, dimension: dimension.snap(suggest(trial, name, dimension)))


class Generations(NSGAIISampler):
    """NSGA-II (Deb et al. 2002)."""

    def __init__(self, search: Search, **settings: Any):
        super().__init__(**settings)
        self.space = in_all_trials(search)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """`in_all_trials`, and where that is nothing what Optuna finds."""
        return self.space or super().infer_relative_search_space(study, trial)


class WithinRules(TPESampler):
    """TPE that takes the best of its candidates that keep the requirements, as far as the candidates tell.

    Without that it would draw again and again where good points lie next to what is not allowed, for TPE knows nothing
    of requirements. It hooks into a method that is not public: where that is gone, points are drawn again.
    """

    def __init__(self, search: Search, rules: Rules, **settings: Any):
        super().__init__(**settings)
        self.numbers = {name: path_of(name) for name, one in search.dimensions.items() if one.choice is None}
        self.requirements = rules.requirements
        self.space = in_all_trials(search)
        searched, self.fixed = set(map(path_of, search.dimensions)), {}
        if rules.requirements and not search.switches:
            # What is not searched is the same in every trial, where all have the same knobs.
            values = rules.values(search.at([0.0] * len(search.dimensions)))
            self.fixed = {path: value for path, value in values.items() if path not in searched}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """`in_all_trials`, and where that is nothing what Optuna finds."""
        return self.space or super().infer_relative_search_space(study, trial)

    def _compute_acquisition_func(self, samples: dict[str, Any], *models: Any) -> Any:
        values = super()._compute_acquisition_func(samples, *models)
        known = self.fixed | {path: samples[name] for name, path in self.numbers.items() if name in samples}
        for requirement in self.requirements:
            if all(path in known for path in requirement.paths):
                larger = known[requirement.larger] if isinstance(requirement.larger, str) else requirement.larger
                values = np.where(known[requirement.smaller] <= larger, values, -np.inf)
        return values


def in_all_trials(search: Search) -> dict[str, BaseDistribution]:
    """All dimensions, where every trial has them; Optuna looks through all trials to learn that."""
    return {} if search.is_conditional else {name: distribution(one) for name, one in search.dimensions.items()}


def distribution(dimension: Dimension) -> BaseDistribution:
    """Optuna's form of a dimension."""
    if dimension.choice is not None:
        return CategoricalDistribution(dimension.choice)
    low, high = dimension.bounds
    if dimension.is_integer:
        return IntDistribution(int(low), int(high), log=dimension.is_log, step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=dimension.is_log, step=dimension.step)


def suggest(trial: Trial, name: str, dimension: Dimension) -> Scalar:
    """Have a trial of Optuna's take a value."""
    if dimension.choice is not None:
        return cast(Scalar, trial.suggest_categorical(name, dimension.choice))
    low, high = dimension.bounds
    if dimension.is_integer:
        return trial.suggest_int(name, int(low), int(high), step=int(dimension.step or 1), log=dimension.is_log)
    return trial.suggest_float(name, low, high, step=dimension.step, log=dimension.is_log)


def _generator(seed: int, position: int) -> np.random.Generator:
    return np.random.default_rng([seed, position])
