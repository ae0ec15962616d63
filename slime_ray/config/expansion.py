"""A design of `ablate`, expanded: the arms that are run, and the cells that the tables compare."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from slime_ray.config.ablation import Ablation, DesignError, Values
from slime_ray.config.complaints import FilePart
from slime_ray.config.design import Cell, Design
from slime_ray.config.experiment import Arm, with_values
from slime_ray.config.presets import flat
from slime_ray.config.settings import Settings, fingerprint
from slime_ray.config.yaml_source import KeyPath
from slime_ray.objectives.gradients import probe

SHARED_PARTS = ("model", "data", "sft", "evaluation")
"""What all cells have in common: SFT checkpoint, pairs and their order, prompts, decoding, judge."""


def expand(
    ablation: Ablation, base: Mapping[str, Any], base_settings: Settings, file: FilePart
) -> tuple[list[Arm], Design]:
    """Every center crossed with every cell of the design, each valid and none the same as another.

    Args:
        ablation: The key `ablate`.
        base: Of the experiment, as plain values.
        base_settings: The same as settings.
        file: In which the key stands.

    Returns:
        The arms, one a cell and in the same order, and the design.

    Raises:
        DesignError: There is no such design.
        Complaint: A cell's settings are wrong.
    """
    arms: list[Arm] = []
    cells: list[Cell] = []
    first_cells: dict[tuple[str, str], str] = {}

    def add(values: Values, name: str, keys: KeyPath, group: str) -> Settings:
        """Refuse a cell whose shared settings differ, or that trains like another of its group."""
        settings: Settings = file.check(Settings, with_values(base, values), ("ablate", *keys), where=f"{name}: ")
        for part in SHARED_PARTS:
            if getattr(settings, part) != getattr(base_settings, part):
                raise DesignError(
                    f"{name} has a {part} of its own, and cells of one design share the SFT checkpoint, data, prompts, "
                    f"decoding and judge. Set {part} in `base`, for all of them",
                    *keys,
                )
        if (twin := first_cells.setdefault((group, policy_hash(settings)), name)) != name:
            raise DesignError(f"{name} would train just as {twin} does: nothing that has an effect differs", *keys)
        return settings

    centers = ablation.center_values()
    for center, center_values in centers.items():
        settings = add(center_values, f"center {center}", ("centers", center), "")
        prefix = f"{center}-" if len(centers) > 1 else ""
        specs = ablation.cells(center, settings)
        if len(specs) == 1:
            raise DesignError(f"around {center} there is no cell but the center itself, so that nothing is compared")
        [reference] = [prefix + spec.variant for spec in specs if spec.reference]
        for spec in specs:
            label, keys = prefix + spec.variant, spec.keys or ("centers", center)
            values = lay(base_settings.objective.name, center_values, spec.values)
            add(values, f"cell {label}", keys, center)
            arms.append(Arm(label=label, set=values))
            cells.append(
                Cell(
                    label=label,
                    center=center,
                    variant=spec.variant,
                    reference=reference,
                    levels=dict(spec.levels),
                    control=spec.control,
                )
            )
    try:
        return arms, Design(kind=ablation.design, cells=cells, metric=ablation.metric)
    except ValidationError as error:
        raise DesignError(str(error.errors()[0]["ctx"]["error"])) from None


def lay(objective: str, under: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """`over` laid on `under`, as flat paths. objective: that of base, which either may replace."""
    nested: dict[str, Any] = {"objective": {"name": objective}}
    values = flat(with_values(with_values(nested, under), over))
    return {path: value for path, value in values.items() if (path, value) != ("objective.name", objective)}


def policy_hash(settings: Settings) -> str:
    """Hash what the policy follows from: equal where all that differs has no effect."""
    plain = settings.model_dump(mode="json")
    objective = settings.objective.build()
    if settings.training.updates == 0:
        return fingerprint({**plain, "objective": None, "training": None})
    idle = bool(getattr(objective, "remove", ())) or 0 in plain["objective"].values()
    if idle and objective.pairs_together is None:
        # Without a part, or with a weight of 0, knobs may be idle, which loss and gradients tell. A sum makes 0 of -0.
        # Where it matters which pairs lie together, or this batch is refused, the knobs alone tell objectives apart.
        with suppress(ValueError):
            plain["objective"] = [(value + 0.0).tolist() for value in probe(objective)]
    return fingerprint(plain)
