"""The objectives by name. A new one is a class in a file here and an entry of `OBJECTIVES`, or a user's own class."""

import dataclasses
import importlib
from typing import Any

from slime_ray.objectives.base import (
    Objective,
    ObjectiveOutput,
    ReferenceLogps,
    Term,
    Unit,
    objective_at,
    pair_sums,
)
from slime_ray.objectives.composed import ComposedObjective
from slime_ray.objectives.dpo import (
    ApoObjective,
    DiscopopObjective,
    DpoObjective,
    DpopObjective,
    DpoShiftObjective,
    ExoObjective,
    HingeObjective,
    IpoObjective,
    NcaObjective,
    RobustObjective,
    SppoObjective,
)
from slime_ray.objectives.gradients import component_activity, differ, matched_knobs, matched_strength
from slime_ray.objectives.pairwise import tuned_ranges
from slime_ray.objectives.simpo import (
    AlphapoObjective,
    CpoObjective,
    OrpoObjective,
    SftObjective,
    SimperObjective,
    SimpoObjective,
)
from slime_ray.objectives.slime import SlimeObjective
from slime_ray.objectives.slime_released import ReleasedSlimeObjective

OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind
    for kind in (
        SlimeObjective,
        ReleasedSlimeObjective,
        DpoObjective,
        IpoObjective,
        HingeObjective,
        RobustObjective,
        ExoObjective,
        NcaObjective,
        SppoObjective,
        ApoObjective,
        DpopObjective,
        DpoShiftObjective,
        DiscopopObjective,
        SimpoObjective,
        CpoObjective,
        AlphapoObjective,
        OrpoObjective,
        SimperObjective,
        ComposedObjective,
        SftObjective,
    )
}
"""Each objective's class by the name that stands in YAML."""


def find_objective(name: str) -> type[Objective]:
    """Return the class of a registered objective, or import the user's own, `package.module:Class`.

    Raises ValueError for a name that leads nowhere, or to no frozen dataclass whose knobs all have defaults.
    """
    module, colon, kind = name.partition(":")
    if not colon:
        if name not in OBJECTIVES:
            raise ValueError(f"name is {name!r}: must be one of {', '.join(OBJECTIVES)}")
        return OBJECTIVES[name]
    try:
        objective_class = getattr(importlib.import_module(module), kind)
    except Exception as error:  # whatever the user's own file raises
        raise ValueError(
            f"name is {name!r}, which cannot be imported: {error}. Write package.module:Class, with its folder on "
            "PYTHONPATH"
        ) from None
    fields = dataclasses.fields(objective_class) if dataclasses.is_dataclass(objective_class) else None
    if not isinstance(objective_class, type) or fields is None or not objective_class.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(f"name is {name!r}, which is no frozen dataclass, as an objective is")
    missing = [
        attribute
        for attribute in ("name", "needs_reference", "pairs_together")
        if not hasattr(objective_class, attribute)
    ]
    missing += [field.name for field in fields if field.default is dataclasses.MISSING]
    if missing:
        raise ValueError(f"name is {name!r}, whose {missing[0]} has no value: give its class one")
    return objective_class


def build_objective(name: str, **settings: Any) -> Objective:
    """Build an objective by its registered name, or `package.module:Class`.

    settings: the fields of its dataclass. Raises ValueError for an unknown name, an unknown field or a value out of
    range.
    """
    objective_class = find_objective(name)
    fields = [field.name for field in dataclasses.fields(objective_class)]  # type: ignore[arg-type]
    for field in settings:
        if field not in fields:
            raise ValueError(f"{field} is not a field of {name}: it has {', '.join(fields) or 'none'}")
    return objective_class(**settings)


__all__ = [
    "OBJECTIVES",
    "ComposedObjective",
    "DpoObjective",
    "Objective",
    "ObjectiveOutput",
    "ReferenceLogps",
    "ReleasedSlimeObjective",
    "SftObjective",
    "SimpoObjective",
    "SlimeObjective",
    "Term",
    "Unit",
    "build_objective",
    "component_activity",
    "differ",
    "find_objective",
    "matched_knobs",
    "matched_strength",
    "objective_at",
    "pair_sums",
    "tuned_ranges",
]
