"""What a report says of a run's search beside the table of its trials: further tables, figures and a sentence."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slime_ray.results import Run

from . import budget_curve, front, importance, search_figures, winners
from .knobs import Searched
from .printing import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {
    "search_importance": "How unlike the best trials' values of a knob are to all trials' (PED-ANOVA); bars: 95 % "
    "intervals, the trials drawn anew.",
    "search_slices": "Every completed trial of the search, the most important knobs first; later trials lighter, the "
    "front ringed.",
    "search_contours": "The two most important knobs. Dots: completed trials. Shades: the mean of the trials near by, "
    "blank where none is near.",
    "search_parallel": "Every completed trial as a line through its knobs and goals, coloured by the first goal; the "
    "front thick. The figures are the ends of each axis.",
    "search_budget": "Blue: the search as it went. Orange: the same trials in random order, mean or expectation with "
    "95 %.",
}
"""By the name of a figure's files."""


@dataclass(frozen=True)
class Understanding:
    """The tables; those without rows are empty, not absent."""

    searched: Searched
    spent: budget_curve.Spent | None
    front: Table
    importance: Table
    budget: Table
    winners: Table

    @classmethod
    def of(cls, run: Run) -> "Understanding | None":
        """None of a run that did not search."""
        searched = Searched.of(run)
        if searched.trials.empty:
            return None
        spent = budget_curve.Spent.of(searched)
        return cls(
            searched=searched,
            spent=spent,
            front=front.front(searched, run.answers),
            importance=importance.importance(searched),
            budget=budget_curve.budget_curve(searched, spent),
            winners=winners.winners(run, searched),
        )

    @property
    def tables(self) -> dict[str, Table]:
        """Those that have rows, by the name of their files."""
        found = {
            "search_winners": self.winners,
            "search_front": self.front,
            "search_importance": self.importance,
            "search_budget": self.budget,
        }
        return {name: table for name, table in found.items() if len(table.frame)}

    def text(self) -> str:
        """For a terminal: the winners, the front and the importance."""
        shown = (self.winners, self.front, self.importance)
        return "\n\n\n".join(table.text() for table in shown if len(table.frame))

    def figures(self) -> "dict[str, Figure]":
        """By the name of their files, those that have something to show."""
        searched = self.searched
        by_importance = self._columns()
        drawn: dict[str, Figure] = {}
        if len(self.importance.frame):
            drawn["search_importance"] = search_figures.importance(searched, self.importance)
        if searched.complete.sum() > 1 and by_importance:
            drawn["search_slices"] = search_figures.slices(searched, by_importance)
            if len(by_importance) > 1:
                drawn["search_contours"] = search_figures.contours(searched, by_importance)
            drawn["search_parallel"] = search_figures.parallel(searched, by_importance)
        if self.spent is not None:
            drawn["search_budget"] = search_figures.budget(searched, self.spent)
        return drawn

    def _columns(self) -> list[int]:
        """The places of the knobs, the most important first; in the order of the space where that is not known."""
        paths = [knob.path for knob in self.searched.knobs]
        ranked = self.importance.frame["path"].tolist() if len(self.importance.frame) else []
        return [paths.index(path) for path in [*ranked, *(path for path in paths if path not in ranked)]]

    def sentences(self) -> list[str]:
        """The knee and the most important knobs, as far as they are clear."""
        said = []
        frame = self.front.frame
        if len(frame) and frame["knee"].any():
            row = frame[frame["knee"]].iloc[0]
            sure = f" (in {100 * row['knee_share']:.0f} % of resamples of the prompts)" if "knee_share" in row else ""
            said.append(f"The knee of the search's front is {row['trial_id']}{sure}.")
        ranks = self.importance.frame
        for goal in self.searched.names if len(ranks) else ():
            first = ranks[ranks[f"{goal}_rank_high"] == 1]["knob"].tolist()
            if first:
                said.append(f"For {goal.replace('_', ' ')} {first[0]} is the most important knob that was searched.")
        return said
