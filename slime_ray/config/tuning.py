"""Knobs far outside the range in which the literature tunes their objective, as sentences for `check`."""

import dataclasses
import re
import sys
from collections.abc import Collection, Iterator
from typing import Any

from slime_ray.config.experiment import Experiment
from slime_ray.config.points import path_of, with_values
from slime_ray.config.settings import ObjectiveSettings, Settings
from slime_ray.objectives import find_objective

FAR_FACTOR = 3.0
"""Factor beyond a tuning range's ends from which a value is worth a word."""


def tuning_warnings(experiment: Experiment) -> list[str]:
    """Say which fixed and searched knobs lie far outside their objective's tuning range, each once."""
    ends: dict[tuple[str, str, Any, str | None], list[float]] = {}
    for place, objective, searched_paths in _objectives(experiment):
        scale = _scale(objective)
        for field in dataclasses.fields(find_objective(objective.name)):  # type: ignore[arg-type]
            if field.metadata.get("tuned") and f"objective.{field.name}" not in searched_paths:
                value = getattr(objective, field.name)
                ends.setdefault((place, objective.name, field, scale), []).append(value)
    places: dict[str, list[str]] = {}
    for (place, name, field, scale), values in ends.items():
        # 0 switches a term off.
        if any(values) and (sentence := _warning(name, field, scale, min(values), max(values))):
            places.setdefault(sentence, []).append(place)
    return [f"{_place_list(where)}: {sentence}" for sentence, where in places.items()]


def _warning(name: str, field: Any, scale: str | None, least: float, largest: float) -> str | None:
    """What is strange about values of a knob. scale: of the log-probs that the objective takes, where that is set."""
    low, high = field.metadata["tuned"]
    span = f"{least:g}" if least == largest else f"{least:g} to {largest:g}"
    words = f"objective.{field.name} is {span}, and {name}{_source(name)} is tuned from {low:g} to {high:g}"
    tuned_scale = field.metadata.get("scale")
    if scale and tuned_scale and scale != tuned_scale:
        # A range for means of log-probs says nothing of one for sums, but that it is another.
        if largest < low or least > high:
            return None
        size = "smaller" if scale == "mean" else "larger"
        return (
            f"{words} on {tuned_scale}s over tokens, while {scale}s are taken here, which are as many times {size} as "
            f"an answer has tokens. Give a {'larger' if scale == 'mean' else 'smaller'} one"
        )
    if largest < low / FAR_FACTOR or least > high * FAR_FACTOR:
        return f"{words}. Give another one, unless this is what is compared"
    return None


def _objectives(experiment: Experiment) -> Iterator[tuple[str, ObjectiveSettings, Collection[str]]]:
    """Each place of a file with its objective's settings, of a search at all ends, and paths that have others there."""
    for arm in experiment.arms:
        yield f"arm {arm.label}", experiment.settings_with(arm.set).objective, ()
    for part in experiment.searches:
        searched = {path_of(name) for name in part.search.dimensions}
        for name, scenario, end in part.search.ends():
            path = path_of(name)
            values = with_values(experiment.base, {**part.set, **scenario, path: end})
            place = f"entry {part.label}" if part.label else "search"
            yield place, Settings.model_validate(values).objective, searched - {path}


def _scale(objective: ObjectiveSettings) -> str | None:
    """Whether an objective takes the mean or the sum of log-probs, where that is set."""
    if "length_normalization" in getattr(objective, "remove", ()):
        return "sum"
    return getattr(objective, "normalization", None)


def _source(name: str) -> str:
    """The paper that an objective's documentation names first."""
    kind = find_objective(name)
    match = re.search(r"arXiv \d{4}\.\d{5}", f"{kind.__doc__} {sys.modules[kind.__module__].__doc__}")
    return f" ({match[0]})" if match else ""


def _place_list(places: list[str]) -> str:
    more = f" and {len(places) - 2} more" if len(places) > 2 else ""
    return ", ".join(places[:2]) + more
