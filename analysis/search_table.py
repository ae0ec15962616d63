"""Tables of a search: its trials, its winners as searched and as confirmed, and what else a report says of it.

The best of many trials on one set of prompts is partly luck (the winner's curse); on other prompts and seeds it is not.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.runs import results
from slime_ray.runs.stability_v1 import WITHIN_TOLERANCE

from . import front, stability, statistics
from .front import outcomes_of
from .knobs import Searched, importance, short_names, unit_of
from .printing import ABSENT, Column, Table, cells, empty, measure, numbers, one_line
from .rows import FINISHED, Outcomes, is_judged, judge_of, name_of, outcomes_by_label


def search_trials(run: results.Run) -> Table:
    """One row per search trial with what it set, measured on the selection prompts; the front first."""
    searched = Searched.of(run)
    trials = searched.trials
    if trials.empty:
        return empty("This run did not search.", "trial_id")
    knobs = [name for name in trials.columns if name.startswith(results.KNOB) and trials[name].notna().any()]
    shown = ["win_rate", "prompts", "stability", "chosen_drift", "preference_accuracy", "status", "reason"]
    judged, judge = is_judged(run), judge_of(run)
    lead = "win_rate" if judged else "preference_accuracy"
    frame = trials[["trial_id", *knobs, *shown]].assign(on_front=searched.on_front, eligible=searched.eligible)
    frame = frame.sort_values(
        ["on_front", lead, "trial_id"], ascending=[False, False, True], na_position="last", ignore_index=True
    )
    heads = short_names([name.removeprefix(results.KNOB) for name in knobs])
    words = "win rate %" if judged else "held-out accuracy %"
    rate = Column("win rate %" if judged else "acc. %", numbers(frame, lead, 1, scale=100), keep=9, words=words)
    goals = ", ".join(f"{name} ({way})" for name, way in (run.manifest.get("goals") or {}).items()) or "none recorded"
    prompts = int(frame["prompts"].max()) if frame["prompts"].notna().any() else 0
    where = f"{prompts} selection prompts, judge {judge}" if judged else "the held-out pairs; nothing was judged"
    kept = cells(frame, lambda row: "yes" if row["eligible"] else "no")
    return Table(
        frame=frame,
        caption=f"{name_of(run)}: {len(frame)} search trials, measured on {where}.",
        notes=[
            *_on_constraints(searched),
            f"Front: no other finished trial is at least as good in all goals and better in one. Goals: {goals}.",
            "The best of many trials on the selection prompts looks better than it is: judge a winner by its confirmed "
            "row, which was measured on other prompts.",
        ],
        columns=(
            Column("trial", tuple(frame["trial_id"]), numeric=False, keep=10),
            *(Column(heads[name.removeprefix(results.KNOB)], tuple(map(_knob, frame[name])), keep=4) for name in knobs),
            rate,
            Column("stability S", numbers(frame, "stability"), keep=9),
            Column("drift", numbers(frame, "chosen_drift", 3, signed=True), keep=6),
            Column("status", tuple(frame["status"]), numeric=False, keep=7),
            Column("front", cells(frame, lambda row: "yes" if row["on_front"] else ""), numeric=False, keep=8),
            *([Column("keeps all", kept, numeric=False, keep=7)] if searched.constraints else []),
        ),
        remarks=cells(frame, lambda row: "" if pd.isna(row["reason"]) else str(row["reason"])),
    )


def _on_constraints(searched: Searched) -> list[str]:
    """How many trials keep the constraints; none of the others can win or be on the front."""
    if not searched.constraints:
        return []
    kept, complete = int(searched.eligible.sum()), int(searched.complete.sum())
    said = f"{kept} of {complete} completed trials keep {' and '.join(map(str, searched.constraints))}"
    return [f"{said}; the others are on no front and cannot win." if kept else f"{said}: there is no winner."]


def _knob(value: Any) -> str:
    if pd.isna(value):
        return ABSENT
    return f"{value:.3g}" if isinstance(value, (int, float)) else one_line(str(value))


def winners(run: results.Run, searched: Searched, main: Table) -> Table:
    """One row per confirmed winner, by the first goal as confirmed: each goal in the search, confirmed, the change.

    main: win_rate_stability(run), which has the confirmed stability with its interval.
    """
    confirmed = run.trials[run.trials["phase"] == "confirm"]
    if confirmed.empty or not searched.names:
        return empty("No winner of the search was confirmed.", "trial_id")
    first = outcomes_of(searched, run.answers) if "win_rate" in searched.names else None
    drawn = searched.trials["trial_id"].tolist()
    outcomes = outcomes_by_label(run)
    remarks: dict[str, str] = {}
    # A confirmation that set something else than the trial does confirms another point.
    own = dict(zip(searched.trials["trial_id"], searched.trials["overrides"], strict=True))
    again = zip(confirmed["label"], confirmed["overrides"], strict=True)
    strange = sorted({label for label, knobs in again if label in own and json.loads(knobs) != json.loads(own[label])})
    rows = []
    for label, group in confirmed.groupby("label", sort=True):
        if label not in drawn or label in strange:
            continue
        place = drawn.index(label)
        confirmation = main.frame[main.frame["label"] == label].iloc[0]
        ended = group[group["status"] != FINISHED].groupby("status").size()
        remarks[str(label)] = "; ".join(f"{status} {count} of {len(group)}" for status, count in ended.items())
        row = {"trial_id": label, "seeds_finished": int((group["status"] == FINISHED).sum()), "seeds": len(group)}
        for goal in searched.names:
            if goal == "win_rate" and first is not None:
                row |= _win_rates(first[place], outcomes.get(str(label)), confirmation)
            else:
                row |= _plain(run, goal, searched.trials.loc[[place]], group, confirmation)
        rows.append(row)
    if not rows:
        return Table(pd.DataFrame(columns=["trial_id"]), "No winner of the search was confirmed.", _warnings(strange))
    lead = searched.names[0]
    order, ascending = [f"{lead}_confirmed", "trial_id"], [searched.ways[0] == "minimize", True]
    frame = pd.DataFrame(rows).sort_values(order, ascending=ascending, na_position="last", ignore_index=True)
    return Table(
        frame=frame,
        caption="The winners of the search, as the search measured them (one seed, the selection prompts, the best of "
        f"{int(searched.complete.sum())} completed trials) and confirmed (other seeds, the report prompts).",
        notes=[*_warnings(strange), *_notes(searched, frame)],
        columns=(
            Column("trial", tuple(frame["trial_id"]), numeric=False, keep=10),
            Column("seeds", cells(frame, lambda row: f"{row['seeds_finished']}/{row['seeds']}"), keep=5),
            *(column for goal in searched.names for column in _columns(frame, goal)),
        ),
        remarks=tuple(frame["trial_id"].map(remarks)),
    )


def _warnings(strange: list[str]) -> list[str]:
    return [
        f"Left out: {', '.join(strange)}, whose confirmations were trained with other knobs than the trial has. Delete "
        "their folders and resume the sweep to have it confirmed."
    ] * bool(strange)


def _win_rates(first: np.ndarray, again: Outcomes | None, row: pd.Series) -> dict[str, float]:
    """Both win rates and their difference; the two sets of prompts are independent.

    The confirmed one is that of the main table's row. The difference is of these checkpoints, over prompts.
    """
    searched, change = statistics.win_rate_interval(first[None]), None
    confirmed = statistics.Interval(*(float(row[f"win_rate{end}"]) for end in ("", "_low", "_high")))
    after = None if again is None else statistics.win_rate_interval(again[1])
    if searched is not None and after is not None:
        change = statistics.independent_difference(after, searched)
    found = {"win_rate_searched": searched, "win_rate_confirmed": confirmed, "win_rate_change": change}
    return statistics.columns(found)


def _plain(run: results.Run, goal: str, trial: pd.DataFrame, group: pd.DataFrame, row: pd.Series) -> dict[str, float]:
    """Both values of another goal; of stability with intervals, the confirmed one's as the main table's row has it."""
    both: dict[str, statistics.Interval | None] = {f"{goal}_searched": None, f"{goal}_confirmed": None}
    again = group[goal].mean()
    if goal == "stability":
        again, low, high = (float(row[f"stability{end}"]) for end in ("", "_low", "_high"))
        both = {
            "stability_searched": stability.intervals(run, trial).get("stability"),
            "stability_confirmed": statistics.Interval(again, low, high),
        }
    before = float(trial[goal].iloc[0])
    values = {f"{goal}_searched": before, f"{goal}_confirmed": again, f"{goal}_change": again - before}
    return statistics.columns(both) | values


def _columns(frame: pd.DataFrame, goal: str) -> list[Column]:
    head, scale, digits = unit_of(goal)
    heads = {"searched": (head, 8), "confirmed": (head, 9), "change": (head.removesuffix(" %"), 7)}
    return [
        measure(f"{name} {kind}", frame, f"{goal}_{kind}", digits, scale=scale, signed=kind == "change", keep=keep)
        for kind, (name, keep) in heads.items()
    ]


def _notes(searched: Searched, frame: pd.DataFrame) -> list[str]:
    notes = [
        "Report the confirmed values. What was chosen for being the best looks better in the search than it is; the "
        "confirmed values are of seeds and prompts that had no part in the choice."
    ]
    if "win_rate_change_low" in frame and frame["win_rate_change_low"].notna().any():
        notes.append(
            "change: confirmed minus searched, in points; its interval follows from both rates' own over prompts "
            "(Newcombe 1998). It is of these checkpoints, and also holds how hard the two sets are."
        )
        mean = 100 * frame["win_rate_change"].mean()
        notes.append(f"Over the {frame['win_rate_change'].notna().sum()} winners the win rate changed by {mean:+.1f}.")
    if "stability" in searched.names:
        notes.append("Stability: mean over seeds, one that failed or diverged as 0.")
    within = f" of these those whose stability is {WITHIN_TOLERANCE} or more first,"
    calm = within if "stability" in searched.trials else ""
    notes.append(
        f"How they were chosen: the trials that the fewest others beat in all goals,{calm} and then by "
        f"{unit_of(searched.names[0])[0].removesuffix(' %')}. The front's knee has no part in it."
    )
    return notes


@dataclass(frozen=True)
class Understanding:
    """Tables of what a search found; without rows where there is no such thing, as in a run that did not search."""

    searched: Searched
    spent: front.Spent | None
    front: Table
    importance: Table
    budget: Table
    winners: Table

    @classmethod
    def of(cls, run: results.Run, main: Table) -> "Understanding":
        """main: win_rate_stability(run)."""
        searched = Searched.of(run)
        spent = front.Spent.of(searched)
        return cls(
            searched=searched,
            spent=spent,
            front=front.front(searched, run),
            importance=importance(searched),
            budget=front.budget_curve(searched, spent),
            winners=winners(run, searched, main),
        )

    def of_league(self) -> "Understanding":
        """The winners alone: trials of several methods have no front, knobs or budget in common."""
        none = empty("The searches of a league have this each for itself.", "trial_id")
        searched = replace(self.searched, knobs=(), places=self.searched.places[:, :0])
        return replace(self, searched=searched, spent=None, front=none, importance=none, budget=none)

    def by_importance(self) -> list[int]:
        """The places of the knobs, the most important first; in the order of the space where that is not known."""
        paths = [knob.path for knob in self.searched.knobs]
        ranked = self.importance.frame["path"].tolist() if len(self.importance.frame) else []
        return [paths.index(path) for path in [*ranked, *(path for path in paths if path not in ranked)]]

    def sentences(self) -> list[str]:
        """Constraints, the knee and the most important knobs, as far as they are clear."""
        said = _on_constraints(self.searched)
        frame = self.front.frame
        if len(frame) and frame["knee"].any():
            row = frame[frame["knee"]].iloc[0]
            sure = f" (in {100 * row['knee_share']:.0f} % of resamples)" if "knee_share" in row else ""
            said.append(f"The knee of the search's front is {row['trial_id']}{sure}.")
        ranks = self.importance.frame
        for goal in self.searched.names if len(ranks) else ():
            first = ranks[ranks[f"{goal}_rank_high"] == 1]["knob"].tolist()
            if first:
                trials = int(self.searched.complete.sum())
                words = f"{first[0]} is the most important knob that was searched ({trials} trials, one seed each)"
                said.append(f"For {goal.replace('_', ' ')} {words}.")
        return said
