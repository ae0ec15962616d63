"""The objectives by name. A new one is a file beside `slime.py` and a line in `OBJECTIVES`."""

import dataclasses
from typing import Any

from slime_ray.objectives.activity import component_activity
from slime_ray.objectives.base import (
    Objective,
    ObjectiveOutput,
    ReferenceLogps,
    Term,
    Unit,
    pair_means,
    pair_sums,
)
from slime_ray.objectives.dpo import DpoObjective
from slime_ray.objectives.matching import margin_push, matched_margin_weight, matched_strength
from slime_ray.objectives.sft import SftObjective
from slime_ray.objectives.simpo import SimpoObjective
from slime_ray.objectives.slime import SlimeObjective, SlimeOutput
from slime_ray.objectives.slime_released import ReleasedSlimeObjective

OBJECTIVES: dict[str, type[Objective]] = {
    "slime": SlimeObjective,
    "slime-released": ReleasedSlimeObjective,
    "dpo": DpoObjective,
    "simpo": SimpoObjective,
    "sft": SftObjective,
}
"""Each objective's class by the name that stands in YAML."""


def build_objective(name: str, **settings: Any) -> Objective:
    """An objective by its registered name. `settings` are the fields of its dataclass.

    Raises ValueError for an unknown name, an unknown field or a value out of range.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"name is {name!r}: must be one of {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name]
    fields = [field.name for field in dataclasses.fields(objective)]  # type: ignore[arg-type]
    for field in settings:
        if field not in fields:
            raise ValueError(f"{field} is not a field of {name}: it has {', '.join(fields) or 'none'}")
    return objective(**settings)


__all__ = [
    "OBJECTIVES",
    "DpoObjective",
    "Objective",
    "ObjectiveOutput",
    "ReferenceLogps",
    "ReleasedSlimeObjective",
    "SftObjective",
    "SimpoObjective",
    "SlimeObjective",
    "SlimeOutput",
    "Term",
    "Unit",
    "build_objective",
    "component_activity",
    "margin_push",
    "matched_margin_weight",
    "matched_strength",
    "pair_means",
    "pair_sums",
]
