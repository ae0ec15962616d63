"""A design of `ablate`, expanded: the arms that are run, and the cells that the tables compare."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from slime_ray.config.ablation import Ablation, Unfit, Values
from slime_ray.config.complaints import FilePart
from slime_ray.config.design import Cell, Design
from slime_ray.config.experiment import Arm, with_values
from slime_ray.config.presets import flat
from slime_ray.config.settings import Settings, fingerprint
from slime_ray.config.yaml_source import KeyPath
from slime_ray.objectives.gradients import probe

SHARED = ("model", "data", "sft", "evaluation")
"""What all cells have in common: SFT checkpoint, pairs and their order, prompts, decoding, judge."""


def expand(ablation: Ablation, base: Mapping[str, Any], fixed: Settings, file: FilePart) -> tuple[list[Arm], Design]:
    """Every center crossed with every cell of the design, each valid and none the same as another.

    Args:
        ablation: The key `ablate`.
        base: Of the experiment, as plain values.
        fixed: The same as settings.
        file: In which the key stands.

    Returns:
        The arms, one a cell and in the same order, and the design.

    Raises:
        Unfit: There is no such design.
        Complaint: A cell's settings are wrong.
    """
    arms: list[Arm] = []
    cells: list[Cell] = []
    standing: dict[tuple[str, str], str] = {}

    def add(values: Values, what: str, keys: KeyPath, group: str) -> Settings:
        """Check what it has to have in common with all others, and what not with those of its group."""
        settings: Settings = file.check(Settings, with_values(base, values), ("ablate", *keys), where=f"{what}: ")
        for part in SHARED:
            if getattr(settings, part) != getattr(fixed, part):
                raise Unfit(
                    f"{what} has a {part} of its own, and cells of one design share the SFT checkpoint, data, prompts, "
                    f"decoding and judge. Set {part} in `base`, for all of them",
                    *keys,
                )
        if (same := standing.setdefault((group, trained(settings)), what)) != what:
            raise Unfit(f"{what} would train just as {same} does: nothing that has an effect differs", *keys)
        return settings

    around = ablation.around()
    for center, center_values in around.items():
        settings = add(center_values, f"center {center}", ("centers", center), "")
        prefix = f"{center}-" if len(around) > 1 else ""
        planned = ablation.cells(center, settings)
        if len(planned) == 1:
            raise Unfit(f"around {center} there is no cell but the center itself, so that nothing is compared")
        [reference] = [prefix + one.variant for one in planned if one.reference]
        for one in planned:
            label, keys = prefix + one.variant, one.keys or ("centers", center)
            values = lay(fixed.objective.name, center_values, one.values)
            add(values, f"cell {label}", keys, center)
            arms.append(Arm(label=label, set=values))
            cells.append(
                Cell(
                    label=label,
                    center=center,
                    variant=one.variant,
                    reference=reference,
                    levels=dict(one.levels),
                    control=one.control,
                )
            )
    try:
        return arms, Design(kind=ablation.design, cells=cells, metric=ablation.metric)
    except ValidationError as error:
        raise Unfit(str(error.errors()[0]["ctx"]["error"])) from None


def lay(objective: str, under: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """`over` laid on `under`, as flat paths. objective: that of base, which either may replace."""
    nested: dict[str, Any] = {"objective": {"name": objective}}
    values = flat(with_values(with_values(nested, under), over))
    return {path: value for path, value in values.items() if (path, value) != ("objective.name", objective)}


def trained(settings: Settings) -> str:
    """Equal for settings of which the same policy comes, since what differs between them has no effect."""
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
