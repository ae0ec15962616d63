"""The key `ablate` of an experiment: one class per design, which says what its cells set around one center.

Nothing is started here, and nothing is read but presets. `slime_ray.config.expansion` makes arms of it.
"""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from slime_ray.config.design import Kind, Level, Metric
from slime_ray.config.points import value_at
from slime_ray.config.presets import merge, preset_base
from slime_ray.config.settings import Settings
from slime_ray.config.space import Scalar
from slime_ray.config.strict import Label, Once, Strict
from slime_ray.config.yaml_source import KeyPath
from slime_ray.errors import InputError, near
from slime_ray.objectives import Objective, SlimeObjective, differ, matched_knobs, matched_strength

Values = dict[str, Any]
EXPONENT, STRENGTH = "objective.stabilizer_exponent", "objective.stabilizer_strength"
REMOVE = "objective.remove"
MARGINS = ("soft_margin", "hard_margin")


class DesignError(ValueError):
    """A design that has no cells to compare, as a sentence. keys: where in `ablate` the reason stands."""

    def __init__(self, sentence: str, *keys: str | int):
        super().__init__(sentence)
        self.keys: KeyPath = keys


@dataclass(frozen=True)
class CellSpec:
    """One cell around a center: what it sets there.

    reference: it is what the others are compared with. keys: where in `ablate` it is asked for.
    """

    variant: str
    values: Mapping[str, Any] = field(default_factory=dict)
    levels: Mapping[str, Level] = field(default_factory=dict)
    reference: bool = False
    control: bool = False
    keys: KeyPath = ()


class Ablation(Strict):
    """What all designs have."""

    design: Kind
    """Which cells there are."""
    centers: dict[Label, Values] = {}
    """Configurations to run the design around, by name, laid over `base`; empty is `base` alone."""
    metric: Metric = "win_rate"
    """The metric by which cells are said to differ."""

    def center_values(self) -> dict[str, Values]:
        """Return what each center sets; `base` alone where there are none. Raises DesignError."""
        return {name: with_preset(values, "centers", name) for name, values in self.centers.items()} or {"base": {}}

    def cells(self, center: str, settings: Settings) -> list[CellSpec]:
        """Return the cells around one center, exactly one of them a reference. Raises DesignError."""
        raise NotImplementedError


class LeaveOneOut(Ablation):
    """The full objective, and it without each of its components."""

    design: Literal["leave_one_out"]
    """One component less in each cell."""
    components: Annotated[list[str], Field(min_length=1), Once] | None = None
    """Parts to leave out; null is each whose removal changes the objective."""
    controls: Literal["gradient_matched"] | None = None
    """Also each variant with the weight at which its pair term pushes like the full one."""

    def cells(self, center: str, settings: Settings) -> list[CellSpec]:
        objective, components = full_objective(center, settings, self.components)
        if self.controls and not hasattr(objective, "push_term"):
            sentence = f"{settings.objective.name} does not say which term pushes: it has no push_term"
            raise DesignError(sentence, "controls")
        cells = [CellSpec("full", levels=dict.fromkeys(components, True), reference=True)]
        for index, component in enumerate(components):
            variant = reduced_cell((component,), components, ("components", index) if self.components else ())
            cells += [variant, *(_matched_control(objective, variant) if self.controls else ())]
        if self.controls and not any(cell.control for cell in cells):
            raise DesignError(
                f"around center {center} no removal changes how hard {settings.objective.name} pushes beside its other "
                "terms, so nothing is to be matched: of a single term Adam takes no notice. Leave controls out",
                "controls",
            )
        return cells


def _matched_control(objective: Any, cell: CellSpec) -> list[CellSpec]:
    try:
        knobs = matched_knobs(objective, tuple(cell.values[REMOVE]))
    except ValueError as error:
        raise DesignError(f"{cell.variant} can have no gradient-matched control: {error}", "controls") from None
    values = {**cell.values, **{f"objective.{knob}": value for knob, value in knobs.items()}}
    control = CellSpec(f"{cell.variant}-matched", values, cell.levels, control=True, keys=("controls",))
    return [control] if knobs else []


class Factorial(Ablation):
    """Every combination of components."""

    design: Literal["factorial"]
    """All combinations."""
    components: Annotated[list[str], Field(min_length=2), Once] | None = None
    """Parts that are there or not; null is each whose removal changes the objective, but hard_margin_clip."""

    @field_validator("components")
    @classmethod
    def _refuse_two_readings(cls, components: list[str] | None) -> list[str] | None:
        if {"hard_margin", "hard_margin_clip"} <= set(components or ()):
            raise ValueError("hard_margin and hard_margin_clip are two readings of one ablation. Name one of them")
        return components

    def cells(self, center: str, settings: Settings) -> list[CellSpec]:
        objective, components = full_objective(center, settings, self.components, leave_out=("hard_margin_clip",))
        if len(components) < 2:
            raise DesignError(
                f"a factorial needs two parts or more, and center {center} has {', '.join(components)}", "design"
            )
        # Cells are called by what they lack, and not by the order in which it was listed.
        components = [part for part in parts_of(objective) if part in components]
        cells = [CellSpec("full", levels=dict.fromkeys(components, True), reference=True)]
        for count in range(1, len(components) + 1):
            cells += [reduced_cell(removal, components, ("components",)) for removal in combinations(components, count)]
        return cells


class Sensitivity(Ablation):
    """One knob at a time around the center."""

    design: Literal["sensitivity"]
    """Other values of single knobs."""
    knobs: Annotated[dict[str, Annotated[list[Scalar], Field(min_length=1), Once]], Field(min_length=1)]
    """Paths into `objective` and `training`, each with its other values."""

    def cells(self, center: str, settings: Settings) -> list[CellSpec]:
        center_levels = {path: self._center_value(center, settings, path) for path in self.knobs}
        cells = [CellSpec("center", levels=center_levels, reference=True)]
        for path, values in self.knobs.items():
            knob = path.rsplit(".", 1)[-1]
            cells += [
                CellSpec(f"{knob}-{_label_part(value)}", {path: value}, {path: value}, keys=("knobs", path, index))
                for index, value in enumerate(values)
                if value != center_levels[path]
            ]
        return cells

    def _center_value(self, center: str, settings: Settings, path: str) -> Level:
        try:
            value = value_at(settings, path)
        except KeyError:
            paths = [f"{part}.{knob}" for part in ("objective", "training") for knob in dict(getattr(settings, part))]
            raise DesignError(f"{path}: there is no such setting{near(path, paths)}", "knobs", path) from None
        if not isinstance(value, Level):
            raise DesignError(f"{path} is not one number, word or flag around {center}", "knobs", path)
        return value


class Exponent(Ablation):
    """The stabilizer's exponent p, as in the paper's Table 5."""

    design: Literal["exponent"]
    """Other exponents."""
    exponents: Annotated[list[float], Field(min_length=1), Once] = [1.0, 1.5, 2.0, 2.5, 3.0]
    """Values of p, besides the center's own."""
    controls: Literal["strength_matched"] | None = None
    """Also each other p with the strength that gives a rejected token of -5 nats the center's penalty."""

    def cells(self, center: str, settings: Settings) -> list[CellSpec]:
        objective = settings.objective.build()
        if not isinstance(objective, SlimeObjective):
            name = settings.objective.name
            raise DesignError(
                f"this design is about parts of SLIME, and the objective of center {center} is {name}", "design"
            )
        if not has_effect(objective, "stabilizer"):
            sentence = f"center {center} has no stabilizer, whose exponent could be varied, or one without any effect"
            raise DesignError(sentence, "centers", center)
        cells = []
        for exponent in sorted({*self.exponents, objective.stabilizer_exponent}):
            keys = ("exponents", self.exponents.index(exponent)) if exponent in self.exponents else ()
            variant, levels = f"p-{exponent}", {EXPONENT: exponent}
            if exponent == objective.stabilizer_exponent:
                cells.append(CellSpec(variant, levels=levels, reference=True))
                continue
            cells.append(CellSpec(variant, {EXPONENT: exponent}, levels, keys=keys))
            if self.controls:
                try:
                    values = {EXPONENT: exponent, STRENGTH: matched_strength(objective, exponent)}
                except ValueError as error:
                    sentence = f"{variant} can have no control of matched strength: {error}"
                    raise DesignError(sentence, "controls") from None
                cells.append(CellSpec(f"{variant}-matched", values, levels, control=True, keys=("controls",)))
        return cells


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
    """Methods by name, each as what it sets over the center; `preset: name` takes a preset's objective."""
    against: str = "slime"
    """The method that the others are compared with."""

    def cells(self, center: str, settings: Settings) -> list[CellSpec]:
        if self.against not in self.methods:
            raise DesignError(
                f"the methods are compared with {self.against!r}, which is none of them"
                f"{near(self.against, self.methods)}",
                "against",
            )
        return [
            CellSpec(name, with_preset(values, "methods", name), reference=name == self.against, keys=("methods", name))
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


def full_objective(
    center: str, settings: Settings, component_names: Sequence[str] | None, *, leave_out: Sequence[str] = ()
) -> tuple[Objective, list[str]]:
    """Return the objective at a center and the parts that a design takes away from it.

    Args:
        center: Its name.
        settings: Of the center.
        component_names: Parts as the file has them; None is each part whose removal changes the objective.
        leave_out: Parts that are not taken away where none is named.

    Raises:
        DesignError: The objective has no such part, lacks some already, or would train alike without one.
    """
    objective, name = settings.objective.build(), settings.objective.name
    parts = parts_of(objective)
    if not parts:
        raise DesignError(
            f"the objective of center {center}, {name}, declares no parts that this design could take away", "design"
        )
    if removal := getattr(settings.objective, "remove", ()):
        raise DesignError(
            f"center {center} has no full objective to compare with: {REMOVE} takes {', '.join(removal)} away "
            "there. Leave it out; the design removes components itself",
            "centers", center,
        )  # fmt: skip
    for index, part in enumerate(component_names or ()):
        if part not in parts:
            raise DesignError(f"{part!r} is no part of {name}{near(part, parts)}", "components", index)
    components = component_names or [part for part in parts if part not in leave_out]
    idle_parts = [part for part in components if not has_effect(objective, part)]
    # SLIME is known by its parts; another objective may declare some that its knobs have switched off.
    if idle_parts and (component_names or isinstance(objective, SlimeObjective)):
        raise DesignError(
            f"center {center}: {name} trains alike with and without {idle_parts[0]} there, so that their cells would "
            "be equal. Give it an effect, or leave the component out of `components`",
            "centers", center,
        )  # fmt: skip
    if len(idle_parts) == len(components):
        raise DesignError(f"center {center}: no part of {name} has an effect there", "design")
    return objective, [part for part in components if part not in idle_parts]


def parts_of(objective: Objective) -> tuple[str, ...]:
    """The parts of an objective that its `remove` takes away; none where it declares none."""
    return tuple(getattr(objective, "parts", ()))


def has_effect(objective: Any, part: str) -> bool:
    """Whether an objective trains otherwise without a part. One that leaves nothing to train does not count."""
    try:
        return differ(objective, replace(objective, remove=(*objective.remove, part)))
    except ValueError:
        return False


def with_preset(values: Values, *keys: str) -> Values:
    """Lay what a center or method sets over the objective of its preset. Raises DesignError."""
    if "preset" not in values:
        return values
    name, rest = values["preset"], {path: value for path, value in values.items() if path != "preset"}
    try:
        base = preset_base(str(name))
    except InputError as error:
        raise DesignError(str(error).rstrip("."), *keys, "preset") from None
    if "objective" not in base:
        raise DesignError(f"the preset {name} has no objective", *keys, "preset")
    return merge({"objective": base["objective"]}, rest)


def reduced_cell(removal: Sequence[str], components: Iterable[str], keys: KeyPath) -> CellSpec:
    """Return the cell that lacks some of a design's components."""
    levels = {component: component not in removal for component in components}
    return CellSpec(reduced_label(removal), {REMOVE: [*removal]}, levels, keys=keys)


def reduced_label(removal: Sequence[str]) -> str:
    """Return a cell's label by what it lacks, such as `without-anchor-soft-margin`."""
    words = [component.replace("_", "-") for component in removal]
    if removal[-2:] == MARGINS:
        words[-2:] = ["margins"]
    return "-".join(["without", *words])


def _label_part(value: Hashable) -> str:
    """Return a value as part of a label."""
    word = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9._-]+", "", word)
