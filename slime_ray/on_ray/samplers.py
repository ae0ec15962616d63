"""Draw the points of a search with Optuna's samplers, so that every point is new and keeps the requirements.

A draw follows from the seed, its position and, where the sampler learns, from the results in the study. So a search
that is resumed draws what it would have drawn, where its trials run one at a time.
"""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from slime_ray.config.points import Point, Rules, Search
from slime_ray.config.space import Dimension, Scalar
from slime_ray.errors import InputError

MAX_DRAWS = 1000
PATIENCE = {"tpe": 64, "nsga2": 64, "gp": 3}
"""Draws in a row that may lead to no trial before chance decides. GP takes a second for one, and repeats its best."""
PointKey = frozenset[tuple[str, Scalar]]


class RuledSampler(BaseSampler):
    """One of Optuna's samplers, asked again until a point keeps the requirements and was not tried before.

    history: points that were handed out or observed. drawing: whether points are drawn, or only fixed ones recorded.
    """

    def __init__(self, search: Search, rules: Rules, *, trials: int, seed: int):
        self.search, self.rules, self.trials, self.seed = search, rules, trials, seed
        self.space = {name: distribution(dimension) for name, dimension in search.dimensions.items()}
        self.history: set[PointKey] = set()
        self.drawing = True
        self._reseed()

    def _reseed(self) -> None:
        position = [self.seed, len(self.history)]
        self.random = np.random.default_rng(position)
        self.sampler = optuna_sampler(self.search, trials=self.trials, seed=self.seed, position=position)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Seed the draw by its position, not by what was drawn since the process started."""
        self._reseed()
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all dimensions, also those that not every point has."""
        # TPE learns from this call which dimensions occur together.
        self.sampler.infer_relative_search_space(study, trial)
        return self.space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Scalar]:
        """Draw a new point that keeps the requirements, by names of its dimensions.

        Raises:
            InputError: no such point came up in MAX_DRAWS draws.
        """
        if not self.drawing:
            # NSGA-II counts a trial among its parents once it was asked about it.
            self.sampler.sample_relative(study, trial, search_space)
            return {}
        # A study that was made again has forgotten how far its sequence had come.
        limit = MAX_DRAWS + (len(self.history) if self.search.sampler == "quasi_random" else 0)
        requirement, patience = "", PATIENCE.get(self.search.sampler, limit)
        for draw in range(limit):
            point = self._draw(study, trial) if draw < patience else self._random_point()
            if broken_rules := self.rules.broken(point):
                requirement = broken_rules[0]
            elif key(point) not in self.history:
                return self.search.values_by_name(point)
        raise InputError(
            f"{MAX_DRAWS} draws in a row "
            + (
                f"broke {requirement!r}: the requirements"
                if requirement
                else "were points that were tried before: they"
            )
            + " leave almost nothing of the space. Narrow the ranges to where the requirements hold, or widen them."
        )

    def _draw(self, study: optuna.Study, trial: FrozenTrial) -> Point:
        params = self.sampler.sample_relative(study, trial, self.space)
        if not params:
            return self._random_point()

        def pick(name: str, dimension: Dimension) -> Scalar:
            if name not in params:
                params[name] = self.sampler.sample_independent(study, trial, name, self.space[name])
            return dimension.snap(params[name])

        return self.search.walk(pick)

    def _random_point(self) -> Point:
        return self.search.at(self.random.random(len(self.space)))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Pass on; every knob of a point is drawn by `sample_relative`."""
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Pass on."""
        self.sampler.after_trial(study, trial, state, values)


def optuna_sampler(search: Search, *, trials: int, seed: int, position: Sequence[int]) -> BaseSampler:
    """Build Optuna's sampler of the name that the search gives.

    Args:
        search: the space, with the sampler's name.
        trials: number of trials of the whole search.
        seed: of the search; a sequence is one sequence for all draws.
        position: what seeds this draw.
    """
    name = search.sampler
    draw_seed = int(np.random.SeedSequence(position).generate_state(1)[0])
    startup = min(10, max(4, trials // 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "nsga2":
            return NSGAIISampler(seed=draw_seed, population_size=min(50, max(4, trials // 4)))
        if name == "gp":
            return GPSampler(seed=draw_seed, n_startup_trials=startup, warn_independent_sampling=False)
        if name == "quasi_random":
            return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
        if name == "tpe":
            return TPESampler(
                seed=draw_seed,
                n_startup_trials=startup,
                multivariate=True,
                group=search.is_conditional,
                constant_liar=True,
            )
        return RandomSampler(seed=draw_seed)


def grid(search: Search, rules: Rules, seed: int) -> list[Point]:
    """List every point of a finite space that keeps the requirements, in an order of the seed's."""
    points = [point for point in search.points() if not rules.broken(point)]
    return [points[index] for index in np.random.default_rng([seed]).permutation(len(points))]


def key(point: Point) -> PointKey:
    """Convert a point to what a set may hold."""
    return frozenset(point.items())


def distribution(dimension: Dimension) -> BaseDistribution:
    """Convert a dimension to Optuna's form."""
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
