"""The design of an ablation: its cells, and what each is compared with. Data alone: results carry it to the tables."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from slime_ray.config.strict import Strict, at_checkpoint

Kind = Literal["leave_one_out", "factorial", "sensitivity", "exponent", "baselines"]
COMPONENTS = ("anchor", "stabilizer", "soft_margin", "hard_margin")
"""The parts of SLIME that a design takes away, in the order of the paper's Table 4."""
Level = float | int | bool | str
Metric = Literal["win_rate", "stability", "preference_accuracy"]
FEWEST_SEEDS = 5
"""With fewer seeds than this nothing is said beyond the checkpoints at hand."""


class Cell(Strict):
    """One cell: an arm of the experiment, where it stands in the design.

    label: of the arm. center: the configuration around which it is one. variant: what it is there, such as
    `without-anchor`; the same in every center. reference: label of the cell that it is compared with; its own for that
    cell itself. levels: what the design varies, and its value here: whether a component is present (factorial,
    leave_one_out), or the value at a path (exponent; sensitivity, where a cell has the one knob that it sets, and the
    reference has all of them). control: beside the cells of the design, such as a
    gradient-matched variant; it is compared like them, but is no part of effects that are summed over the design.
    sft_seed: of the SFT checkpoint, where the design is run across several; then label, center and reference end by it.
    """

    label: str
    center: str
    variant: str
    reference: str
    levels: dict[str, Level] = {}
    control: bool = False
    sft_seed: int | None = None

    @property
    def home(self) -> str:
        """The center without the checkpoint."""
        return self.center if self.sft_seed is None else self.center.removesuffix(at_checkpoint("", self.sft_seed))


class Design(Strict):
    """All cells of an ablation. Every center has exactly one reference, and cells are compared within their center.

    metric: the one by which components are said to matter; declared beforehand, since every further one would be
    another test.
    """

    kind: Kind
    cells: Annotated[list[Cell], Field(min_length=2)]
    metric: Metric = "win_rate"

    @model_validator(mode="after")
    def _cells_fit(self) -> "Design":
        labels = [cell.label for cell in self.cells]
        if len(set(labels)) < len(labels):
            raise ValueError("cells: two have the same label")
        for cell in self.cells:
            reference = self.reference(cell.center)
            if cell.reference != reference.label:
                raise ValueError(f"cells: {cell.label} is compared with {cell.reference}, not with {reference.label}")
        return self

    @property
    def centers(self) -> list[str]:
        """The centers, in the order of the cells."""
        return list(dict.fromkeys(cell.center for cell in self.cells))

    @property
    def sft_seeds(self) -> list[int]:
        """Seeds of the SFT checkpoints that it is run across; none where it is run from one."""
        return list(dict.fromkeys(cell.sft_seed for cell in self.cells if cell.sft_seed is not None))

    def across(self, seeds: Sequence[int]) -> "Design":
        """The design with every center at every checkpoint, where its cells are compared."""
        cells = []
        for seed in seeds:
            for cell in self.cells:
                labels = {name: at_checkpoint(getattr(cell, name), seed) for name in ("label", "center", "reference")}
                cells.append(cell.model_copy(update={**labels, "sft_seed": seed}))
        return Design(kind=self.kind, cells=cells, metric=self.metric)

    def around(self, center: str) -> list[Cell]:
        """The cells of one center, its reference among them."""
        return [cell for cell in self.cells if cell.center == center]

    def reference(self, center: str) -> Cell:
        """The cell that those of a center are compared with."""
        references = [cell for cell in self.around(center) if cell.reference == cell.label]
        if len(references) != 1:
            raise ValueError(f"cells: {center} has {len(references)} cells that others are compared with; it needs one")
        return references[0]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Design | None":
        """The design that a run's manifest keeps; None where the run is no ablation."""
        design = (manifest.get("experiment") or {}).get("design")
        return None if design is None else cls.model_validate(design)

    def description(self, seeds: Sequence[int]) -> str:
        """What it is and how much of it, in a sentence."""
        controls = sum(cell.control for cell in self.cells)
        cells = f"{len(self.cells)} cells" + (f" ({controls} of them controls)" if controls else "")
        around = ", ".join(f"{center} (against {self.reference(center).label})" for center in self.centers)
        return (
            f"{self.kind}: {cells} around {around}, compared by {self.metric}; "
            f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}, {len(self.cells) * len(seeds)} trials."
        )

    def announcement(self, seeds: Sequence[int]) -> list[str]:
        """What it is and what few seeds will not be able to say, a line each."""
        warning = caution(seeds)
        return [self.description(seeds), *([f"warning: {warning}"] if warning else [])]


def caution(seeds: Sequence[int]) -> str | None:
    """What a design with few seeds will not be able to say, and the way out; None where there are enough."""
    if len(seeds) >= FEWEST_SEEDS:
        return None
    reach = f"{len(seeds)} seeds say" if len(seeds) > 1 else "one seed says"
    table = "" if len(seeds) > 1 else ", without a table of significance"
    return (
        f"{reach} nothing about other seeds: the tables will be about these checkpoints only{table}. Give "
        f"{FEWEST_SEEDS} or more with --seeds; a run that has finished takes further ones with --resume."
    )
