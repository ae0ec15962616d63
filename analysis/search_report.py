"""What a report says of a run's search beside the table of its trials: further tables and a few sentences."""

from dataclasses import dataclass

from slime_ray.runs.results import Run

from . import budget_curve, front, importance, winners
from .knobs import Searched
from .printing import Table


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
    def of(cls, run: Run, main: Table) -> "Understanding | None":
        """None of a run that did not search. main: win_rate_stability(run)."""
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
            winners=winners.winners(run, searched, main),
        )

    def by_importance(self) -> list[int]:
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
