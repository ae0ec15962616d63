"""What a search's winners came to in the search and when they were run again: both estimates in one table.

The best of many trials on one set of prompts is partly luck (the winner's curse); on other prompts and seeds it is not.
"""

import json

import numpy as np
import pandas as pd

from slime_ray.runs import results
from slime_ray.runs.stability_v1 import WITHIN_TOLERANCE

from . import stability, statistics
from .front import outcomes_of
from .knobs import Searched, unit_of
from .printing import Column, Table, cells, interval_cells, number
from .rows import FINISHED, Outcomes, outcomes_by_label

AGAIN = 1
"""Seed of the resampling of the report prompts, apart from that of the selection prompts, which is 0."""


def winners(run: results.Run, searched: Searched, main: Table) -> Table:
    """One row per confirmed winner, by the first goal as confirmed: each goal in the search, confirmed, the change.

    main: win_rate_stability(run), which has the confirmed stability with its interval.
    """
    confirmed = run.trials[run.trials["phase"] == "confirm"]
    if confirmed.empty or not searched.names:
        return Table(pd.DataFrame(columns=["trial_id"]), "No winner of the search was confirmed.", [])
    first = outcomes_of(searched, run.answers) if "win_rate" in searched.names else None
    drawn = searched.trials["trial_id"].tolist()
    outcomes = outcomes_by_label(run)
    rows, strange = [], _of_other_knobs(confirmed, searched)
    for label, group in confirmed.groupby("label", sort=True):
        if label not in drawn or label in strange:
            continue
        place = drawn.index(label)
        row = {"trial_id": label, "seeds_finished": int((group["status"] == FINISHED).sum()), "seeds": len(group)}
        for goal in searched.names:
            if goal == "win_rate" and first is not None:
                row |= _win_rates(first[place], outcomes.get(str(label)))
            else:
                row |= _plain(
                    run, goal, searched.trials.loc[[place]], group, main.frame[main.frame["label"] == label].iloc[0]
                )
        rows.append(row)
    if not rows:
        return Table(pd.DataFrame(columns=["trial_id"]), "No winner of the search was confirmed.", _warnings(strange))
    lead = searched.names[0]
    frame = pd.DataFrame(rows).sort_values(
        [f"{lead}_confirmed", "trial_id"], ascending=[searched.ways[0] == "minimize", True], na_position="last"
    )
    frame = frame.reset_index(drop=True)
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
        remarks=tuple(_remark(group) for group in _groups(confirmed, frame)),
    )


def _of_other_knobs(confirmed: pd.DataFrame, searched: Searched) -> list[str]:
    """Labels whose confirmations set something else than the trial does: they confirm another point."""
    own = dict(zip(searched.trials["trial_id"], searched.trials["overrides"], strict=True))
    again = zip(confirmed["label"], confirmed["overrides"], strict=True)
    return sorted({label for label, knobs in again if label in own and json.loads(knobs) != json.loads(own[label])})


def _warnings(strange: list[str]) -> list[str]:
    return [
        f"Left out: {', '.join(strange)}, whose confirmations were trained with other knobs than the trial has. Delete "
        "their folders and resume the sweep to have it confirmed."
    ] * bool(strange)


def _win_rates(first: np.ndarray, again: Outcomes | None) -> dict[str, float]:
    """Both win rates and their difference, with intervals over prompts; the two sets of prompts are independent."""
    searched, confirmed, change = statistics.win_rate_interval(first[None]), None, None
    if again is not None:
        means = statistics.prompt_means(again[1])
        confirmed = statistics.win_rate_interval(again[1], seed=AGAIN)
        if searched is not None and confirmed is not None:
            before, after = first[~np.isnan(first)], means[~np.isnan(means)]
            drawn = statistics.resample_means(after, seed=AGAIN) - statistics.resample_means(before)
            units = min(before.size, after.size)
            change = statistics.interval(confirmed.value - searched.value, drawn, units=units)
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
    name, unit = head.removesuffix(" %"), " %" * head.endswith("%")

    def column(kind: str, unit: str, keep: int, *, signed: bool = False) -> Column:
        words = f"{name}{unit} {kind}"
        ends = f"{goal}_{kind}_low"
        if ends in frame and frame[ends].notna().any():
            return Column(
                f"{words} [95 %]",
                interval_cells(frame, f"{goal}_{kind}", digits, scale=scale, signed=signed),
                keep=keep,
            )
        shown = cells(frame, lambda row: number(row[f"{goal}_{kind}"], digits, scale=scale, signed=signed))
        return Column(words, shown, keep=keep)

    return [column("searched", unit, 8), column("confirmed", unit, 9), column("change", "", 7, signed=True)]


def _groups(confirmed: pd.DataFrame, frame: pd.DataFrame) -> list[pd.DataFrame]:
    return [confirmed[confirmed["label"] == label] for label in frame["trial_id"]]


def _remark(group: pd.DataFrame) -> str:
    ended = group[group["status"] != FINISHED]
    return "; ".join(f"{status} {len(rows)} of {len(group)}" for status, rows in ended.groupby("status"))


def _notes(searched: Searched, frame: pd.DataFrame) -> list[str]:
    notes = [
        "Report the confirmed values. What was chosen for being the best looks better in the search than it is; the "
        "confirmed values are of seeds and prompts that had no part in the choice."
    ]
    if "win_rate_change_low" in frame and frame["win_rate_change_low"].notna().any():
        notes.append(
            "change: confirmed minus searched, in points; both sets of prompts drawn anew, each by itself, "
            f"{statistics.RESAMPLES:,} times. It is of these checkpoints, and also holds how hard the two sets are."
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
