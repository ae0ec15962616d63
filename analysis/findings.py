"""What a report is made from: a run, and what several of its tables and figures need, each computed once."""

from dataclasses import dataclass
from functools import cached_property

from slime_ray.config.design import Design
from slime_ray.runs.results import Run

from . import ablation_table, factorial_table, search_table, tables
from .design_cells import Cells
from .printing import Sentences, Table
from .search_report import Understanding


@dataclass(frozen=True)
class Findings:
    """A run and what was found in it. What the run has nothing of is None."""

    run: Run

    @cached_property
    def main(self) -> Table:
        """Win rate and stability by arm and confirmed winner."""
        return tables.win_rate_stability(self.run)

    @cached_property
    def cells(self) -> Cells | None:
        """What was measured of the run's design."""
        design = Design.of(self.run.manifest)
        return None if design is None else Cells.of(self.run, design)

    @cached_property
    def ablation(self) -> Table | None:
        """What each cell of the design does."""
        return None if self.cells is None else ablation_table.ablation(self.run, self.cells, self.main)

    @cached_property
    def factorial(self) -> Table | None:
        """The effects of a factorial design's components."""
        return None if self.cells is None else factorial_table.factorial_effects(self.run, self.cells)

    @cached_property
    def search_trials(self) -> Table:
        """The trials of the search; without rows in a run that did not search."""
        return search_table.search_trials(self.run)

    @cached_property
    def search(self) -> Understanding | None:
        """What the search says of its knobs, its front and its budget."""
        return Understanding.of(self.run, self.main)

    def of_design(self) -> Sentences:
        """Of a factorial design its main effects, which are what it declares; of others the cells."""
        if self.cells is None or self.ablation is None or self.factorial is None:
            return [], []
        if self.cells.design.kind == "factorial":
            return factorial_table.sentences(self.cells, self.factorial)
        return ablation_table.sentences(self.cells, self.ablation)
