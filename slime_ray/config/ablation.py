"""The key `ablate` of an experiment: one class per design, which says what its cells set around one center.

Nothing is started here, and nothing is read but presets. `slime_ray.config.expansion` makes arms of it.
"""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from slime_ray.config.design import COMPONENTS, Kind, Level, Metric
from slime_ray.config.parts import (
    KNOBS,
    MARGINS,
    REMOVE,
    Unfit,
    absent,
    full_objective,
    idle_knobs,
    parts_of,
    removed,
    slime_objective,
)
from slime_ray.config.points import value_at
from slime_ray.config.presets import merge, preset_base
from slime_ray.config.settings import Settings
from slime_ray.config.space import Scalar
from slime_ray.config.strict import Label, Positive, Strict
from slime_ray.config.yaml_source import KeyPath
from slime_ray.errors import InputError, near
from slime_ray.objectives import SlimeObjective, matched_knobs, matched_strength

Values = dict[str, Any]
EXPONENT, STRENGTH = "objective.stabilizer_exponent", "objective.stabilizer_strength"


@dataclass(frozen=True)
class Planned:
    """One cell around a center: what it sets there.

    reference: it is what the others are compared with. keys: where in `ablate` it is asked for.
    """

    variant: str
    values: Mapping[str, Any] = field(default_factory=dict)
    levels: Mapping[str, Level] = field(default_factory=dict)
    reference: bool = False
    control: bool = False
    keys: KeyPath = ()


def _once(values: list[Any]) -> list[Any]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{value!r} stands there twice")
    return values


Once = AfterValidator(_once)


class Ablation(Strict):
    """What all designs have."""

    design: Kind
    """Which cells there are."""
    centers: dict[Label, Values] = {}
    """Configurations around which the design is run, by name, each as what it sets over `base`; default: `base`
    alone."""
    metric: Metric = "win_rate"
    """The one by which cells are said to differ."""

    @property
    def takes_away(self) -> tuple[str, ...]:
        """Parts of the objective that cells of it lack."""
        return ()

    def around(self) -> dict[str, Values]:
        """What each center sets; without any, `base` is the only one. Raises Unfit for an unknown preset."""
        return {name: with_preset(values, "centers", name) for name, values in self.centers.items()} or {"base": {}}

    def cells(self, center: str, settings: Settings) -> list[Planned]:
        """The cells around one center, exactly one of them a reference. Raises Unfit."""
        raise NotImplementedError


class LeaveOneOut(Ablation):
    """The full objective, and the same without each of its components."""

    design: Literal["leave_one_out"]
    """One component less in each cell."""
    components: Annotated[list[str], Field(min_length=1), Once] | None = None
    """Parts of the objective that are left out in turn; null is each whose removal changes it. hard_margin_clip is
    another reading of SLIME's hard_margin."""
    controls: Literal["gradient_matched"] | None = None
    """Whether each variant is run also with the weight that makes its pair term push like the full one at step 0;
    SLIME's at D = 0."""
    at_logp: Annotated[float, Field(lt=0)] | None = None
    """Mean log-prob at which pushes of other objectives than SLIME are the same, in nats; null is -1."""
    at_tokens: Positive | None = None
    """Tokens of a completion there; null is 64. It matters where sums take the place of means."""

    @model_validator(mode="after")
    def _at_has_an_effect(self) -> "LeaveOneOut":
        for name in ("at_logp", "at_tokens"):
            if getattr(self, name) is not None and self.controls is None:
                raise ValueError(f"{name} has no effect without `controls: gradient_matched`")
        return self

    @property
    def takes_away(self) -> tuple[str, ...]:
        return tuple(KNOBS if self.components is None else self.components)

    def cells(self, center: str, settings: Settings) -> list[Planned]:
        objective, components = full_objective(center, settings, self.components, default=tuple(KNOBS))
        slime = isinstance(objective, SlimeObjective)
        if self.controls and not slime and not hasattr(objective, "push_term"):
            raise Unfit(f"{settings.objective.name} does not say which term pushes: it has no push_term", "controls")
        planned = [Planned("full", levels=dict.fromkeys(components, True), reference=True)]
        for index, gone in enumerate(components):
            plain = without((gone,), components, ("components", index) if self.components else ())
            planned.append(plain)
            if self.controls and (not slime or gone.endswith(("margin", "margin_clip"))):
                planned += self._matched(objective, plain)
        if self.controls and not slime and not any(one.control for one in planned):
            raise Unfit(
                f"around center {center} no removal changes how hard {settings.objective.name} pushes beside its other "
                "terms, and of a single term Adam takes no notice. Leave controls out",
                "controls",
            )
        return planned

    def _matched(self, objective: Any, plain: Planned) -> list[Planned]:
        at: dict[str, Any] = {"logp": self.at_logp or -1.0, "tokens": self.at_tokens or 64}
        try:
            knobs = matched_knobs(objective, tuple(plain.values[REMOVE]), **at)
            values = {**plain.values, **{f"objective.{knob}": value for knob, value in knobs.items()}}
        except ValueError as error:
            raise Unfit(f"{plain.variant} can have no gradient-matched control: {error}", "controls") from None
        matched = Planned(f"{plain.variant}-matched", values, plain.levels, control=True, keys=("controls",))
        return [matched] if knobs else []


class Factorial(Ablation):
    """Every combination of components that are there or not: 2^4 cells, if nothing else is said."""

    design: Literal["factorial"]
    """All combinations."""
    components: Annotated[list[str], Field(min_length=2), Once] | None = None
    """Parts of the objective that are there or not; null is each part that it has and whose removal changes it. Of
    SLIME: anchor, stabilizer, soft_margin, hard_margin."""

    @field_validator("components")
    @classmethod
    def _one_reading(cls, components: list[str] | None) -> list[str] | None:
        if {"hard_margin", "hard_margin_clip"} <= set(components or ()):
            raise ValueError("hard_margin and hard_margin_clip are two readings of one ablation. Name one of them")
        return components

    @property
    def takes_away(self) -> tuple[str, ...]:
        return tuple(COMPONENTS if self.components is None else self.components)

    def cells(self, center: str, settings: Settings) -> list[Planned]:
        objective, components = full_objective(center, settings, self.components, default=COMPONENTS)
        if len(components) < 2:
            raise Unfit(
                f"a factorial needs two parts or more, and center {center} has {', '.join(components)}", "design"
            )
        # Cells are called by what they lack, and not by the order in which it was listed.
        components = [part for part in parts_of(objective) if part in components]
        planned = [Planned("full", levels=dict.fromkeys(components, True), reference=True)]
        for count in range(1, len(components) + 1):
            planned += [without(gone, components, ("components",)) for gone in combinations(components, count)]
        return planned


class Sensitivity(Ablation):
    """One knob at a time around the center.

    The center's own value is the reference, so that it is not run again where it is among the values.
    """

    design: Literal["sensitivity"]
    """Other values of single knobs."""
    knobs: Annotated[dict[str, Annotated[list[Scalar], Field(min_length=1), Once]], Field(min_length=1)]
    """Paths into `objective` and `training`, each with the values that it is given."""

    def cells(self, center: str, settings: Settings) -> list[Planned]:
        levels_there = {path: self._center_value(center, settings, path) for path in self.knobs}
        planned = [Planned("center", levels=levels_there, reference=True)]
        for path, values in self.knobs.items():
            knob = path.rsplit(".", 1)[-1]
            planned += [
                Planned(f"{knob}-{_worded(value)}", {path: value}, {path: value}, keys=("knobs", path, index))
                for index, value in enumerate(values)
                if value != levels_there[path]
            ]
        return planned

    def _center_value(self, center: str, settings: Settings, path: str) -> Level:
        try:
            value = value_at(settings, path)
        except KeyError:
            known = [f"{part}.{knob}" for part in ("objective", "training") for knob in dict(getattr(settings, part))]
            raise Unfit(f"{path}: there is no such setting{near(path, known)}", "knobs", path) from None
        if not isinstance(value, Level):
            raise Unfit(f"{path} is not one number, word or flag around {center}", "knobs", path)
        if (gone := idle_knobs(removed(settings)).get(path)) is not None:
            raise Unfit(f"{path} has no effect around {center}: {REMOVE} takes {gone} away there", "knobs", path)
        return value


class Exponent(Ablation):
    """The stabilizer's exponent p, as in the paper's Table 5."""

    design: Literal["exponent"]
    """Other exponents."""
    exponents: Annotated[list[float], Field(min_length=1), Once] = [1.0, 1.5, 2.0, 2.5, 3.0]
    """The values of p; the center's own is always among the cells."""
    controls: Literal["strength_matched"] | None = None
    """Beside each other exponent the same with the strength that gives a rejected token of `at_logp` nats the same
    penalty as at the center."""
    at_logp: Annotated[float, Field(le=0)] | None = None
    """Where the penalties are the same, in nats; null is -5."""
    AT_LOGP: ClassVar[float] = -5.0

    @model_validator(mode="after")
    def _at_logp_has_an_effect(self) -> "Exponent":
        if self.at_logp is not None and self.controls is None:
            raise ValueError("at_logp has no effect without `controls: strength_matched`")
        return self

    def cells(self, center: str, settings: Settings) -> list[Planned]:
        objective = slime_objective(center, settings)
        if "stabilizer" in absent(objective):
            raise Unfit(f"center {center} has no stabilizer, whose exponent could be varied", "centers", center)
        planned = []
        for exponent in sorted({*self.exponents, objective.stabilizer_exponent}):
            keys = ("exponents", self.exponents.index(exponent)) if exponent in self.exponents else ()
            variant, levels = f"p-{exponent}", {EXPONENT: exponent}
            if exponent == objective.stabilizer_exponent:
                planned.append(Planned(variant, levels=levels, reference=True))
                continue
            planned.append(Planned(variant, {EXPONENT: exponent}, levels, keys=keys))
            if self.controls:
                values = {EXPONENT: exponent, STRENGTH: self._matched(objective, exponent, variant)}
                planned.append(Planned(f"{variant}-matched", values, levels, control=True, keys=("controls",)))
        return planned

    def _matched(self, objective: SlimeObjective, exponent: float, variant: str) -> float:
        try:
            return matched_strength(objective, exponent, self.AT_LOGP if self.at_logp is None else self.at_logp)
        except ValueError as error:
            raise Unfit(f"{variant} can have no control of matched strength: {error}", "controls") from None


class Baselines(Ablation):
    """Methods side by side."""

    design: Literal["baselines"]
    """Other objectives."""
    methods: Annotated[dict[Label, Values], Field(min_length=2)] = {
        "sft": {"training.updates": 0},
        "dpo": {"objective": {"name": "dpo"}},
        "simpo": {"objective": {"name": "simpo"}},
        "slime": {"objective": {"name": "slime"}},
    }
    """By name, each as what it sets over the center; `preset: name` stands for that preset's objective."""
    against: str = "slime"
    """The one that the others are compared with."""

    def cells(self, center: str, settings: Settings) -> list[Planned]:
        if self.against not in self.methods:
            raise Unfit(
                f"the methods are compared with {self.against!r}, which is none of them"
                f"{near(self.against, self.methods)}",
                "against",
            )
        return [
            Planned(name, with_preset(values, "methods", name), reference=name == self.against, keys=("methods", name))
            for name, values in self.methods.items()
        ]


DESIGNS: dict[str, type[Ablation]] = {
    "leave_one_out": LeaveOneOut,
    "factorial": Factorial,
    "sensitivity": Sensitivity,
    "exponent": Exponent,
    "baselines": Baselines,
}
AnyAblation = Annotated[
    LeaveOneOut | Factorial | Sensitivity | Exponent | Baselines,
    Field(discriminator="design"),
]


def with_preset(values: Values, *keys: str) -> Values:
    """What a center or method sets, with the objective of the preset that it may name under the rest. Raises Unfit."""
    gone = values.get(REMOVE)
    idle = idle_knobs(map(str, gone)) if isinstance(gone, list) else {}
    if both := [path for path in values if path in idle]:
        raise Unfit(f"{both[0]} is set, and has no effect since {REMOVE} takes {idle[both[0]]} away", *keys, both[0])
    if "preset" not in values:
        return values
    name, rest = values["preset"], {path: value for path, value in values.items() if path != "preset"}
    try:
        base = preset_base(str(name))
    except InputError as error:
        raise Unfit(str(error).rstrip("."), *keys, "preset") from None
    if "objective" not in base:
        raise Unfit(f"the preset {name} has no objective", *keys, "preset")
    return merge({"objective": base["objective"]}, rest)


def without(gone: Sequence[str], components: Iterable[str], keys: KeyPath) -> Planned:
    """The cell that lacks some of a design's components."""
    levels = {component: component not in gone for component in components}
    return Planned(without_words(gone), {REMOVE: [*gone]}, levels, keys=keys)


def without_words(gone: Sequence[str]) -> str:
    """What a cell is called by what it lacks, such as `without-anchor-soft-margin`."""
    words = [component.replace("_", "-") for component in gone]
    if gone[-2:] == MARGINS:
        words[-2:] = ["margins"]
    return "-".join(["without", *words])


def _worded(value: Hashable) -> str:
    """A value as part of a label."""
    word = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9._-]+", "", word)
