"""The parts of an objective that a design takes away, and what has no effect without them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from slime_ray.config.settings import Settings
from slime_ray.config.yaml_source import KeyPath
from slime_ray.errors import near
from slime_ray.objectives import Objective, SlimeObjective
from slime_ray.objectives.probe import differ

KNOBS: dict[str, tuple[str, ...]] = {
    "anchor": ("anchor_weight",),
    "stabilizer": ("stabilizer_strength", "stabilizer_threshold", "stabilizer_exponent"),
    "soft_margin": ("soft_margin", "gate_sharpness"),
    "hard_margin": ("hard_margin",),
    "hard_margin_clip": (),
}
"""The knobs of SLIME that have no effect without a component. `margin_weight` has none without both margins."""
WEIGHTS = {
    "anchor": "anchor_weight",
    "stabilizer": "stabilizer_strength",
    "soft_margin": "margin_weight",
    "hard_margin": "margin_weight",
}
"""The knob of SLIME that takes a component away where it is 0."""
MARGINS = ("soft_margin", "hard_margin")
REMOVE, MARGIN_WEIGHT = "objective.remove", "objective.margin_weight"


class Unfit(ValueError):
    """A design that has no cells to compare, as a sentence. keys: where in `ablate` the reason stands."""

    def __init__(self, sentence: str, *keys: str | int):
        super().__init__(sentence)
        self.keys: KeyPath = keys


def slime_objective(center: str, settings: Settings) -> SlimeObjective:
    """The objective at a center. Raises Unfit where it is another than SLIME."""
    objective = settings.objective.build()
    if not isinstance(objective, SlimeObjective):
        name = settings.objective.name
        raise Unfit(f"this design is about parts of SLIME, and the objective of center {center} is {name}", "design")
    return objective


def parts_of(objective: Objective) -> tuple[str, ...]:
    """The parts of an objective that its `remove` takes away; none where it declares none."""
    return tuple(getattr(objective, "parts", ()))


def full_objective(
    center: str, settings: Settings, named: Sequence[str] | None, *, default: Sequence[str]
) -> tuple[Objective, list[str]]:
    """Return the objective at a center and the parts that a design takes away from it.

    Args:
        center: Its name.
        settings: Of the center.
        named: Parts as the file has them; None is `default` of SLIME, and of another objective each part whose removal
            changes it.
        default: Parts of SLIME.

    Raises:
        Unfit: The objective has no such part, lacks some already, or would train alike without one.
    """
    objective, name = settings.objective.build(), settings.objective.name
    parts = parts_of(objective)
    if not parts:
        raise Unfit(
            f"the objective of center {center}, {name}, declares no parts that this design could take away",
            "design",
        )  # fmt: skip
    if gone := removed(settings):
        raise Unfit(
            f"center {center} has no full objective to compare with: {REMOVE} takes {', '.join(gone)} away "
            "there. Leave it out; the design removes components itself",
            "centers", center,
        )  # fmt: skip
    for index, part in enumerate(named or ()):
        if part not in parts:
            raise Unfit(
                f"{part!r} is no part of {name}{near(part, parts)}. Allowed: {', '.join(parts)}", "components", index
            )  # fmt: skip
    if isinstance(objective, SlimeObjective):
        _check_weights(center, objective, named or default)
        return objective, list(named or default)
    alike = [part for part in named or parts if not _changes(objective, part)]
    if named and alike:
        raise Unfit(
            f"center {center}: {name} trains alike with and without {alike[0]} there, so that their cells would be "
            "equal. Give it an effect, or leave the component out of `components`",
            "centers", center,
        )  # fmt: skip
    components = [part for part in named or parts if part not in alike]
    if not components:
        raise Unfit(f"center {center}: no part of {name} has an effect there", "design")
    return objective, components


def _changes(objective: Any, part: str) -> bool:
    """Whether an objective trains otherwise without a part. One that leaves nothing to train does not count."""
    try:
        return differ(objective, replace(objective, remove=(part,)))
    except ValueError:
        return False


def _check_weights(center: str, objective: SlimeObjective, components: Iterable[str]) -> None:
    """Raise Unfit where SLIME has a component of weight 0."""
    for component in components:
        knob = WEIGHTS[component.removesuffix("_clip")]
        if getattr(objective, knob) == 0:
            raise Unfit(
                f"center {center}: objective.{knob} is 0, so that its cells with and without {component} would be "
                "equal. Give it a value above 0, or leave the component out of `components`",
                "centers", center,
            )  # fmt: skip


def absent(objective: SlimeObjective) -> set[str]:
    """Components that an objective lacks: removed, or of weight 0."""
    gone = {*objective.remove} | {part for part, knob in WEIGHTS.items() if getattr(objective, knob) == 0}
    return gone - {"hard_margin_clip"} if "hard_margin" in gone else gone


def idle_knobs(gone: Iterable[str]) -> dict[str, str]:
    """Paths of SLIME's knobs that have no effect without some components, and which it is each time."""
    gone = {*gone}
    knobs = {f"objective.{knob}": part for part, names in KNOBS.items() if part in gone for knob in names}
    return knobs | ({MARGIN_WEIGHT: "both margins"} if {*MARGINS} <= gone else {})


def removed(settings: Settings) -> tuple[str, ...]:
    """The components that `objective.remove` takes away; none where the objective has no such key."""
    return tuple(getattr(settings.objective, "remove", ()))
