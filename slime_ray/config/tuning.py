"""Knobs far outside the range in which the literature tunes their objective, as sentences for `check`."""

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slime_ray.config.experiment import Experiment
from slime_ray.config.points import SearchPart, path_of, with_values
from slime_ray.config.settings import Settings
from slime_ray.config.space import Scalar
from slime_ray.objectives import OBJECTIVES, find_objective, tuned_ranges

FAR = 3.0
"""Factor beyond a tuning range's ends from which a value is worth a word."""
NAME = "objective.name"


def tuning_warnings(experiment: Experiment) -> list[str]:
    """Say which fixed and searched knobs lie far outside their objective's tuning range, each once."""
    places: dict[str, list[str]] = {}
    for place, objective, values in _knobs(experiment):
        for sentence in _strange(objective, values):
            places.setdefault(sentence, []).append(place)
    return [f"{_shortened(list(dict.fromkeys(where)))}: {sentence}" for sentence, where in places.items()]


def _knobs(experiment: Experiment) -> Iterator[tuple[str, Any, dict[str, list[Scalar]]]]:
    """Each place of a file with its objective's settings, and each knob's least and largest values there."""
    for arm in experiment.arms:
        objective = experiment.settings_with(arm.set).objective
        yield f"arm {arm.label}", objective, _fixed(objective)
    for part in experiment.searches:
        place = f"entry {part.label}" if part.label else "search"
        for chosen in _named(part):
            objective = Settings.model_validate(with_values(experiment.base, {**part.set, **chosen})).objective
            yield place, objective, _fixed(objective) | _searched(part, objective.name, several=bool(chosen))


def _named(part: SearchPart) -> list[dict[str, Any]]:
    """What a search lays over its settings for each objective that it tries."""
    name = part.search.dimensions.get(NAME)
    return [{NAME: value} for value in name.choice or ()] if name else [{}]


def _fixed(objective: Any) -> dict[str, list[Scalar]]:
    return {knob: [value] for knob, value in objective.model_dump().items() if _is_number(value)}


def _searched(part: SearchPart, objective: str, *, several: bool) -> dict[str, list[Scalar]]:
    """The ends of the knobs of a search that belong to an objective."""
    ends: dict[str, list[Scalar]] = {}
    for name, dimension in part.search.dimensions.items():
        section, _, knob = path_of(name).partition(".")
        if section == "objective" and (not several or objective in dimension.when.get(NAME, [objective])):
            ends[knob] = [value for value in dimension.ends if _is_number(value)]
    return ends


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _strange(objective: Any, values: Mapping[str, Sequence[Scalar]]) -> Iterator[str]:
    """One sentence for each knob that lies far out, or on a scale that is not the objective's."""
    kind = find_objective(objective.name)
    ranges, remove = tuned_ranges(kind), getattr(objective, "remove", ())
    taken = "sum" if "length_normalization" in remove else getattr(objective, "normalization", None)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        numbers = [float(value) for value in values.get(field.name, ())]
        # 0 switches a term off.
        if field.name not in ranges or not any(numbers):
            continue
        least, largest, (low, high) = min(numbers), max(numbers), ranges[field.name]
        named = f"objective.{field.name} is {_span(least, largest)}"
        usual = f"{kind.name}{_source(kind)} is tuned from {low:g} to {high:g}"
        scale = field.metadata.get("scale")
        if scale and taken and taken != scale:
            if least <= high and largest >= low:
                yield (
                    f"{named}, and {usual} on {scale}s over tokens, while {taken}s are taken here, which are as many "
                    f"times {'smaller' if taken == 'mean' else 'larger'} as an answer has tokens. "
                    f"Give a {'larger' if taken == 'mean' else 'smaller'} one"
                )
        elif largest < low / FAR or least > high * FAR:
            others = _others(kind.name, field.name, least, largest)
            hint = f"; this is usual for {', '.join(others)}" if others else ""
            yield f"{named}, and {usual}{hint}. Give another one, unless this is what is compared"


def _span(least: float, largest: float) -> str:
    return f"{least:g}" if least == largest else f"{least:g} to {largest:g}"


def _source(kind: Any) -> str:
    """The paper that an objective's documentation names first."""
    found = re.search(r"arXiv \d{4}\.\d{5}", f"{kind.__doc__} {sys.modules[kind.__module__].__doc__}")
    return f" ({found[0]})" if found else ""


def _others(objective: str, knob: str, least: float, largest: float) -> list[str]:
    """Up to three other objectives in whose range of the same knob these values lie."""
    ranges = {name: tuned_ranges(kind).get(knob) for name, kind in OBJECTIVES.items() if name != objective}
    return [name for name, known in ranges.items() if known and known[0] <= least and largest <= known[1]][:3]


def _shortened(places: list[str]) -> str:
    more = f" and {len(places) - 2} more" if len(places) > 2 else ""
    return ", ".join(places[:2]) + more
