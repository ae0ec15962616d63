"""Tables of a run's trials: of its search, what they took, the sentinel's alarms, and what did not complete.

The best of many trials on one set of prompts is partly luck (the winner's curse); on other prompts and seeds it is not.
"""

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.runs import results
from slime_ray.runs.results import Run
from slime_ray.runs.stability_v1 import WITHIN_TOLERANCE

from . import printing, stability, statistics
from .front import knob_notes, outcomes_of
from .knobs import Searched
from .printing import ABSENT, Column, Sentences, Table, cells, empty, measure, names, short, unit_of
from .rows import FINISHED, MEASURED, Outcomes, basis, is_judged, judge_of, name_of, outcomes_by_label

PHASES = {"arm": "arms", "search": "search", "confirm": "confirmation"}
LIMITS = {"trials": "search trials", "hours": "hours", "gpu_hours": "GPU-hours", "judge_calls": "calls of the judge",
          "cost": "cost"}  # fmt: skip
IN_MINUTES = 10 * 3600.0
"""Runs of fewer seconds are told in minutes."""
COLLAPSED = 0.05
"""Final stability below which the table's note counts a run as collapsed: parts that cost 19 tolerances squared."""


def search_trials(run: Run) -> Table:
    """Return a row per search trial with what it set, measured on the selection prompts, the front first."""
    searched = Searched.of(run)
    trials = searched.trials
    if trials.empty:
        return empty("This run did not search.", "trial_id")
    knobs = [name for name in trials.columns if name.startswith(results.KNOB) and trials[name].notna().any()]
    measures = ["win_rate", "prompts", "stability", "chosen_drift", "preference_accuracy", "status", "reason"]
    judged, judge = is_judged(run), judge_of(run)
    lead = "win_rate" if judged else "preference_accuracy"
    frame = trials[["trial_id", *knobs, *measures]].assign(on_front=searched.on_front, eligible=searched.eligible)
    frame = frame.sort_values(
        ["on_front", lead, "trial_id"], ascending=[False, False, True], na_position="last", ignore_index=True
    )
    heads = printing.short_names([name.removeprefix(results.KNOB) for name in knobs])
    rate, words = ("win rate %", "win rate %") if judged else ("acc. %", "held-out accuracy %")
    goals = ", ".join(f"{name} ({way})" for name, way in (run.manifest.get("goals") or {}).items()) or "none recorded"
    prompts = int(frame["prompts"].max()) if frame["prompts"].notna().any() else 0
    where = f"{prompts} selection prompts, judge {judge}" if judged else "the held-out pairs; nothing was judged"
    return Table(
        frame=frame,
        caption=f"{name_of(run)}: {len(frame)} search trials, measured on {where}.",
        notes=[
            *constraint_notes(searched),
            *_partly_judged(frame, prompts),
            f"Front: no other finished trial is at least as good in all goals and better in one. Goals: {goals}.",
            "The best of many trials on the selection prompts looks better than it is: judge a winner by its confirmed "
            "row, which was measured on other prompts.",
        ],
        columns=(
            names("trial", frame, "trial_id"),
            *(Column(heads[name.removeprefix(results.KNOB)], tuple(map(short, frame[name])), keep=4) for name in knobs),
            measure(rate, frame, lead, 1, scale=100, keep=9, words=words),
            measure("stability S", frame, "stability", keep=9),
            measure("drift", frame, "chosen_drift", 3, signed=True, keep=6),
            names("status", frame, keep=7),
            Column("front", tuple(frame["on_front"].map({True: "yes", False: ""})), numeric=False, keep=8),
            *(
                [Column("keeps all", tuple(frame["eligible"].map({True: "yes", False: "no"})), numeric=False, keep=7)]
                if searched.constraints
                else []
            ),
        ),
        remarks=tuple(frame["reason"].fillna("")),
    )


def _partly_judged(frame: pd.DataFrame, most: int) -> list[str]:
    """Say whose win rates are of fewer prompts than `most`."""
    fewer = frame[frame["win_rate"].notna() & (frame["prompts"] < most)]
    trials = ", ".join(
        f"{trial} ({count:.0f})" for trial, count in zip(fewer["trial_id"], fewer["prompts"], strict=True)
    )
    words = "Judged on fewer prompts, as judge_first has it or verdicts are missing"
    return [f"{words}: {trials}."] if trials else []


def search_sentences(run: Run, main: Table) -> Sentences:
    """Say what of a search is open, and how many trials are on its front."""
    search = search_trials(run).frame
    if search.empty:
        return [], []
    confirmed = len(main.frame) and (main.frame["phase"] == "confirm").any()
    open_ = (
        [] if confirmed else ["How good the search's trials are on other prompts and seeds: no winner was confirmed."]
    )
    if not (front := int(search["on_front"].sum())):
        return open_, []
    judged = is_judged(run)
    lead, where = (
        ("win_rate", "on the selection prompts") if judged else ("preference_accuracy", "by held-out accuracy")
    )
    top = search[search["eligible"]].sort_values(lead, ascending=False, na_position="last", kind="stable").iloc[0]
    highest = f", highest {100 * top[lead]:.1f} % ({top['trial_id']})" if pd.notna(top[lead]) else ""
    items = search["prompts"].max() if judged else run.trials["pairs"].max()
    rests = f" (a trial: {basis(run, 1, int(items))})" if pd.notna(items) else ""
    return open_, [f"Search: {front} of {len(search)} trials on the front{highest} {where}{rests}."]


def constraint_notes(searched: Searched) -> list[str]:
    """Say how many trials keep the constraints; the others can neither win nor be on the front."""
    if not searched.constraints:
        return []
    eligible, complete = int(searched.eligible.sum()), int(searched.complete.sum())
    words = f"{eligible} of {complete} completed trials keep {' and '.join(map(str, searched.constraints))}"
    return [f"{words}; the others are on no front and cannot win." if eligible else f"{words}: there is no winner."]


def winners(run: Run, searched: Searched, main: Table) -> Table:
    """Return a row per confirmed winner, by the first goal: each goal in the search, as confirmed, the change.

    main: win_rate_stability(run), which has the confirmed stability with its interval.
    """
    confirmed = run.trials[run.trials["phase"] == "confirm"]
    if confirmed.empty or not searched.names:
        return empty("No winner of the search was confirmed.", "trial_id")
    first = outcomes_of(searched, run.answers) if "win_rate" in searched.names else None
    trials, outcomes = searched.trials.set_index("trial_id"), outcomes_by_label(run)
    rows, remarks, strange = [], {}, []
    for label, group in confirmed[confirmed["label"].isin(trials.index)].groupby("label", sort=True):
        # A confirmation that set something else than the trial does confirms another point.
        if any(json.loads(knobs) != json.loads(trials["overrides"][label]) for knobs in group["overrides"]):
            strange.append(label)
            continue
        place = trials.index.get_loc(label)
        confirmation = main.frame[main.frame["label"] == label].iloc[0]
        ended = group[group["status"] != FINISHED].groupby("status").size()
        remarks[label] = "; ".join(f"{status} {count} of {len(group)}" for status, count in ended.items())
        row = {"trial_id": label, "seeds_finished": int((group["status"] == FINISHED).sum()), "seeds": len(group)}
        for goal in searched.names:
            if goal == "win_rate" and first is not None:
                row |= _win_rates(first[place], outcomes.get(str(label)), confirmation)
            else:
                row |= _plain(run, goal, searched.trials[searched.trials["trial_id"] == label], group, confirmation)
        rows.append(row)
    left_out = ", ".join(map(str, strange))
    warnings = [
        f"Left out: {left_out}, whose confirmations were trained with other knobs than the trial has. Delete their "
        "folders and resume the sweep to have it confirmed."
    ] * bool(strange)
    if not rows:
        return Table(pd.DataFrame(columns=["trial_id"]), "No winner of the search was confirmed.", warnings)
    order, ascending = [f"{searched.names[0]}_confirmed", "trial_id"], [searched.ways[0] == "minimize", True]
    frame = pd.DataFrame(rows).sort_values(order, ascending=ascending, na_position="last", ignore_index=True)
    return Table(
        frame=frame,
        caption="The winners of the search, as the search measured them (one seed, the selection prompts, the best of "
        f"{int(searched.complete.sum())} completed trials) and confirmed (other seeds, the report prompts).",
        notes=[*warnings, *knob_notes(searched, frame["trial_id"]), *_winner_notes(searched, frame)],
        columns=(
            names("trial", frame, "trial_id"),
            printing.seeds_column(frame, keep=5),
            *(column for goal in searched.names for column in _winner_columns(frame, goal)),
        ),
        remarks=tuple(frame["trial_id"].map(remarks)),
    )


def _win_rates(first: np.ndarray, confirmed_outcomes: Outcomes | None, row: pd.Series) -> dict[str, float]:
    """Return both win rates and their difference; the two sets of prompts are independent.

    The confirmed one is that of the main table's row. The difference is of these checkpoints, over prompts.
    """
    searched, change = statistics.win_rate_interval(first[None]), None
    confirmed = statistics.Interval(*(float(row[f"win_rate{end}"]) for end in ("", "_low", "_high")))
    confirmation = None if confirmed_outcomes is None else statistics.win_rate_interval(confirmed_outcomes[1])
    if searched is not None and confirmation is not None:
        change = statistics.independent_difference(confirmation, searched)
    rates = {"win_rate_searched": searched, "win_rate_confirmed": confirmed, "win_rate_change": change}
    return statistics.columns(rates)


def _plain(run: Run, goal: str, trial: pd.DataFrame, group: pd.DataFrame, row: pd.Series) -> dict[str, float]:
    """Return both values of another goal; S with intervals, the confirmed one's as in the main table's row."""
    both: dict[str, statistics.Interval | None] = {f"{goal}_searched": None, f"{goal}_confirmed": None}
    # A seed that was lost has no other result either, though it took seconds and tokens.
    confirmed = group.loc[group["status"].isin(MEASURED), goal].mean()
    if goal == "stability":
        confirmed, low, high = (float(row[f"stability{end}"]) for end in ("", "_low", "_high"))
        both = {
            "stability_searched": stability.intervals(run, trial).get("stability"),
            "stability_confirmed": statistics.Interval(confirmed, low, high),
        }
    searched = float(trial[goal].iloc[0])
    values = {f"{goal}_searched": searched, f"{goal}_confirmed": confirmed, f"{goal}_change": confirmed - searched}
    return statistics.columns(both) | values


def _winner_columns(frame: pd.DataFrame, goal: str) -> list[Column]:
    head, scale, digits = unit_of(goal)
    heads = {"searched": (head, 8), "confirmed": (head, 9), "change": (head.removesuffix(" %"), 7)}
    return [
        measure(f"{name} {kind}", frame, f"{goal}_{kind}", digits, scale=scale, signed=kind == "change", keep=keep)
        for kind, (name, keep) in heads.items()
    ]


def _winner_notes(searched: Searched, frame: pd.DataFrame) -> list[str]:
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


def cost(run: Run) -> Table:
    """Return trials, updates (made and planned), training tokens and seconds: a row per phase, and one for all."""
    groups = {words: run.trials[run.trials["phase"] == phase] for phase, words in PHASES.items()}
    groups = {words: group for words, group in groups.items() if len(group)} | {"all": run.trials}
    frame = pd.DataFrame([_cost_row(words, group) for words, group in groups.items()])
    frame["of_planned"] = frame["updates"] / frame["planned_updates"].where(frame["planned_updates"] > 0)
    unit, per = ("min", 60.0) if run.trials["total_seconds"].sum() < IN_MINUTES else ("h", 3600.0)
    seconds = (
        ("training", "train_seconds", 7),
        ("evaluation", "evaluation_seconds", 6),
        ("in all", "total_seconds", 9),
        ("computed twice", "lost_seconds", 4),
    )

    def counts(name: str) -> tuple[str, ...]:
        return tuple(map("{:,.0f}".format, frame[name]))

    return Table(
        frame=frame.drop(columns="of_planned"),
        caption=f"{name_of(run)}: what the trials took, added up over trials that ran side by side.",
        notes=_cost_notes(run),
        columns=(
            names("phase", frame),
            *(
                Column(name, counts(name), keep=keep)
                for name, keep in (("trials", 9), ("completed", 8), ("updates", 6))
            ),
            measure("of planned %", frame, "of_planned", 0, scale=100, keep=3),
            Column("training tokens", counts("tokens"), keep=7),
            *(measure(f"{head} {unit}", frame, name, 1, scale=1 / per, keep=keep) for head, name, keep in seconds),
        ),
    )


def _cost_row(words: str, group: pd.DataFrame) -> dict[str, Any]:
    has_plan = group["planned_updates"].notna()
    return {
        "phase": words,
        "trials": len(group),
        "completed": int((group["status"] == FINISHED).sum()),
        "updates": int(group["updates"].sum()),
        "planned_updates": group["planned_updates"].sum() if has_plan.all() else np.nan,
        "tokens": int(group["tokens"].sum()),
        **{name: float(group[name].sum()) for name in ("train_seconds", "evaluation_seconds", "total_seconds")},
        "lost_seconds": float(group["lost_seconds"].fillna(0).sum()),
    }


def _cost_notes(run: Run) -> list[str]:
    manifest = run.manifest
    spent, budget = manifest.get("spent") or {}, (manifest.get("experiment") or {}).get("budget") or {}
    trial_ids = run.trials.loc[run.trials["phase"] == "search", "trial_id"]
    clones = sum(map(results.is_clone, trial_ids))
    searched, beside = len(trial_ids) - clones, f", and {clones} clone{'s' * (clones > 1)}" if clones else ""
    spent = {**spent, "trials": searched}
    amounts = []
    for name, words in LIMITS.items():
        if budget.get(name) is not None and (searched or name != "trials"):
            amounts.append(f"{_amount(spent.get(name))} of {_amount(budget[name])} {words}")
        elif spent.get(name) and name != "trials":
            amounts.append(f"{_amount(spent[name])} {words}, without a limit")
    notes = []
    if amounts:
        notes.append(
            f"Spent: {'; '.join(amounts)}{beside}. Hours are of the last start of the sweep, all else of the whole run."
        )
    if manifest.get("ended_by"):
        notes.append(f"The search ended by {manifest['ended_by']}.")
    if manifest.get("stage_seconds"):
        seconds = f"{manifest['stage_seconds']:.0f} s"
        notes.append(f"Not in the table: {seconds} for what trials share, such as the SFT checkpoint.")
    return notes


def _amount(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def alarms(run: Run) -> Table:
    """Return alarms and stability of each arm and of the search; empty where the sentinel raised no alarm."""
    trials = run.trials[run.trials["status"] != "failed"]
    if trials["alarm"].isna().all():
        return empty("The sentinel raised no alarm.")
    rows = []
    for label, group in trials.groupby(trials["label"].where(trials["phase"] != "search", "search"), sort=False):
        alarm_texts = group["alarm"].dropna()
        steps = alarm_texts.str.extract(r" at step (\d{1,9})$")[0].dropna().astype(int)
        # An alarm begins with the name of its sign.
        signs = Counter(re.split(r", | at step ", alarm, maxsplit=1)[0] for alarm in alarm_texts)
        rows.append(
            {
                "label": str(label),
                "runs": len(group),
                "alarms": len(alarm_texts),
                "first_step": steps.min() if len(steps) else pd.NA,
                "last_step": steps.max() if len(steps) else pd.NA,
                "stability_min": group["stability"].min(),
                "stability_max": group["stability"].max(),
                "signs": ", ".join(f"{sign} {count}" for sign, count in signs.most_common()),
            }
        )
    frame = pd.DataFrame(rows)
    scores, raised = trials["stability"], trials["alarm"].notna()
    collapsed, others = scores < COLLAPSED, scores >= COLLAPSED
    unscored = f"; {scores.isna().sum()} that were stopped early have no S" if scores.isna().any() else ""
    return Table(
        frame=frame,
        caption=f"{name_of(run)}: the sentinel's alarms, {raised.sum()} in {len(trials)} runs.",
        notes=[
            f"Of {collapsed.sum()} runs that ended with S below {COLLAPSED}, {(raised & collapsed).sum()} had raised "
            f"an alarm; of {others.sum()} others, {(raised & others).sum()}{unscored}. A run that was stopped by its "
            "alarm counts as it was then.",
        ],
        columns=(
            names("label", frame),
            measure("runs", frame, "runs", 0, keep=8),
            measure("alarms", frame, "alarms", 0, keep=9),
            Column("first at step", cells(frame, _first_steps), keep=9),
            Column("stability S", printing.ranges(frame, "stability_min", "stability_max"), keep=8),
            Column("signs", tuple(sign or ABSENT for sign in frame["signs"]), numeric=False, keep=5),
        ),
    )


def _first_steps(row: pd.Series) -> str:
    ends = (row["first_step"], row["last_step"])
    return ABSENT if pd.isna(ends[0]) else "–".join(dict.fromkeys(map(str, ends)))


def failures(run: Run) -> Table:
    """Return every trial that did not complete, with its reason, also those that the manifest alone knows."""
    columns = ["trial_id", "phase", "label", "seed", "status", "reason"]
    incomplete = run.trials.loc[run.trials["status"] != FINISHED, columns]
    recorded, failed_trials = set(run.trials["trial_id"]), run.manifest.get("failed_trials") or []
    unrecorded = [item for item in failed_trials if isinstance(item, dict) and item.get("trial_id") not in recorded]
    frame = pd.concat([incomplete, pd.DataFrame(unrecorded)]) if unrecorded else incomplete
    frame = frame.sort_values("trial_id", ignore_index=True)
    if frame.empty:
        return Table(frame, f"All {len(run.trials)} trials completed.", [])
    texts = frame.astype(object).fillna(ABSENT).astype(str)
    return Table(
        frame=frame,
        caption=f"{len(frame)} of {len(run.trials) + len(unrecorded)} trials did not complete.",
        notes=["Failed and diverged trials count as stability 0 and have no win rate; stopped ones count as measured."],
        columns=tuple(names(name, texts, keep=5) for name in ("trial_id", "status", "reason")),
    )
