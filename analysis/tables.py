"""The main table of a run: result frames in, a table out. What a cell says is decided here; printing.py prints it."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.runs import results

from . import printing, rows, stability, statistics, trial_tables
from .judging import Votes, votes_by_label
from .printing import Column, Sentences, Table, cells, interval_cells, join_words, measure, names, number, numbers
from .rows import FINISHED, LOST, MEASURED, PARTS, Outcomes, difference, is_judged, judge_of
from .stability import stability_cell

NO_CHANGE_KL = 0.005
"""Below this KL to the SFT checkpoint (nat/token), with a win interval that covers 50 %, a row is "no change"."""

OVER = ("prompts", "seeds and prompts")
"""What the interval of a row's win rate is over: with few seeds, and with enough of them."""


def win_rate_stability(run: results.Run) -> Table:
    """Return the main table: a row per arm and confirmed winner, sorted by win rate.

    A row is over its seeds. In `frame`, rates are shares (0..1), parts are means over the measured seeds (those that
    completed or were stopped), and `stability` is the mean over all seeds with 0 for those that failed or diverged.
    """
    trials = run.trials[run.trials["phase"].isin(["arm", "confirm"])]
    judged, judge = is_judged(run), judge_of(run)
    if trials.empty:
        return printing.empty(
            f"{rows.name_of(run)}: this run has no arms and no confirmed winner; its search trials are in a table of "
            "their own."
        )
    outcomes, topics = rows.outcomes_by_label(run), rows.topics_by_prompt(run)
    votes, retention = votes_by_label(run), rows.retention_by_label(run)
    groups = {str(label): group for label, group in trials.groupby("label", sort=False)}
    records = [
        _row(run, label, group, outcomes.get(label), topics, votes.get(label), judged=judged)
        # A scorer's values have no bounds that are known.
        | statistics.columns(
            {"retention": statistics.mean_interval(retention[label][1]) if label in retention else None}
        )
        for label, group in groups.items()
    ]
    lead = "win_rate" if judged else "preference_accuracy"
    frame = pd.DataFrame(records).sort_values(
        [lead, "stability", "label"], ascending=[False, False, True], na_position="last", ignore_index=True
    )
    starts = frame["label"].map(rows.starts_of(groups))
    if starts.nunique() > 1:
        frame[rows.START] = starts
    for _, start_rows in frame.groupby(starts, sort=False):
        rates = dict(zip(start_rows["label"], start_rows["win_rate"], strict=True))
        frame.loc[start_rows.index, "win_rate_mark"] = best_marks(rates, outcomes, topics)
    frame["preference_accuracy_mark"] = _marks(frame["preference_accuracy"])
    frame["stability_mark"] = _marks(frame["stability"])
    return Table(
        frame=frame,
        caption=_caption(run, trials, frame, judge=judge if judged else None),
        notes=_notes(run, frame, outcomes, judged=judged),
        columns=_main_columns(frame, judged=judged),
        remarks=tuple(frame["note"]),
    )


def _row(
    run: results.Run,
    label: str,
    group: pd.DataFrame,
    outcomes: Outcomes | None,
    topics: np.ndarray | None,
    votes: Votes | None,
    *,
    judged: bool,
) -> dict[str, Any]:
    interval = None if outcomes is None else statistics.row_interval(outcomes[1], topics)
    parts = stability.intervals(run, group)
    done = group[group["status"].isin(MEASURED)]
    # A trial that failed or diverged counts as 0, however far it got.
    scores = group["stability"].where(~group["status"].isin(LOST), 0.0)
    seed_rates = done["win_rate"].dropna()
    trained, kl = done.empty or not (done["updates"] == 0).all(), done["kl_to_sft"].mean()
    remarks = ["confirmed"] if (group["phase"] == "confirm").all() else []
    remarks += [] if trained else ["no updates"]
    if judged and interval is not None and interval.covers(0.5) and kl < NO_CHANGE_KL:
        remarks.append("no change")
    for status, ended in group[group["status"] != FINISHED].groupby("status"):
        reasons = "; ".join(dict.fromkeys(str(reason) for reason in ended["reason"].dropna()))
        remarks.append(f"{status} {len(ended)} of {len(group)}: {reasons or 'no reason was recorded'}")
    if restarts := int((group["attempts"].fillna(1) - 1).sum()):
        remarks.append(f"begun again {restarts} times" if restarts > 1 else "begun again once")
    if judged and interval is not None and math.isnan(interval.low):
        remarks.append(statistics.TOO_FEW)
    phase = str(group["phase"].iloc[0])
    confirm = ((run.manifest.get("experiment") or {}).get("budget") or {}).get("confirm") or {}
    planned = len(run.manifest.get("seeds") or ()) if phase == "arm" else int(confirm.get("seeds") or 0)
    if votes and votes.invalid:
        low, high = votes.bounds()
        remarks.append(f"{votes.invalid} missing verdicts: between {100 * low:.1f} and {100 * high:.1f} %")
    return {
        "label": label,
        "phase": phase,
        "objective": str(group["objective"].iloc[0]) if trained else "none",
        "seeds_finished": int((group["status"] == FINISHED).sum()),
        "seeds": max(len(group), planned),
        **statistics.columns({"win_rate": interval}),
        "win_rate_over": OVER[outcomes is not None and statistics.is_of_method(outcomes[1])],
        "prompts": int(done["prompts"].fillna(0).max()) if len(done) else 0,
        "sigma": seed_rates.std(ddof=1) if len(seed_rates) > 1 else math.nan,
        "stability_min": scores.min(),
        "stability_max": scores.max(),
        **statistics.columns({name: parts.get(name) for name in ("stability", *PARTS)}),
        "stability": scores.mean(),
        **{name: done[name].mean() for name in PARTS},
        **{f"{name}_share": share for name, share in stability.damage_shares(group).items()},
        "kl_to_sft": kl,
        "chosen_drift": done["chosen_drift"].mean(),
        "format_valid": done["format_valid"].mean(),
        "preference_accuracy": done["preference_accuracy"].mean(),
        "mean_margin": done["mean_margin"].mean(),
        "note": "; ".join(remarks),
    }


def separable(first: Outcomes | None, second: Outcomes | None, topics: np.ndarray | None = None) -> bool:
    """Tell whether the interval of the paired difference of two rows' win rates leaves 0 out, on common seeds.

    Rows without anything in common are not told apart; one without outcomes has no win rate to be confused with.
    """
    if first is None or second is None:
        return True
    gap = rows.difference_interval(first, second, topics)
    return gap is not None and gap.excludes(0.0)


def best_marks(
    rates: Mapping[str, float], outcomes: Mapping[str, Outcomes], topics: np.ndarray | None = None
) -> list[printing.Mark]:
    """Mark the highest rate and all not separable from it best, the highest of the rest second, in their order."""
    order = sorted((label for label in rates if label in outcomes), key=lambda label: -rates[label])
    marks: dict[str, printing.Mark] = {}
    for label in order:
        if label == order[0] or not separable(outcomes[order[0]], outcomes[label], topics):
            marks[label] = "best"
        elif "second" not in marks.values():
            marks[label] = "second"
    return [marks.get(label, "") for label in rates]


def _marks(values: pd.Series) -> list[printing.Mark]:
    """Mark the highest and the second highest value; no claim."""
    marks: dict[float, printing.Mark] = {1.0: "best", 2.0: "second"}
    return [marks.get(rank, "") for rank in values.rank(method="dense", ascending=False)]


def _main_columns(frame: pd.DataFrame, *, judged: bool) -> tuple[Column, ...]:
    marks = {name: tuple(frame[f"{name}_mark"]) for name in ("preference_accuracy", "stability")}
    accuracy = measure("acc. %", frame, "preference_accuracy", 1, scale=100, keep=4, words="held-out accuracy %")
    lead = [
        replace(accuracy, marks=marks["preference_accuracy"], keep=9),
        Column("margin", numbers(frame, "mean_margin"), keep=8),
        Column("win rate", ("not judged",) * len(frame)),
    ]
    if judged:
        rates = interval_cells(frame, "win_rate", 1, scale=100)
        sigma = Column("σ", numbers(frame, "sigma", 1, scale=100), keep=6, words="deviation σ")
        lead = [Column("win rate % [95 %]", rates, tuple(frame["win_rate_mark"]), keep=9), sigma]
    has_retention, has_ends = (frame[name].notna().any() for name in ("retention", "stability_low"))
    return (
        names("label", frame),
        names("objective", frame, keep=1),
        printing.seeds_column(frame, keep=8),
        *lead,
        Column(f"stability S{' [95 %]' if has_ends else ''}", cells(frame, stability_cell), marks["stability"], keep=9),
        *stability.part_columns(frame, keep=7),
        Column("K", numbers(frame, "kl_to_sft", 3), keep=7, words="KL to SFT K"),
        Column("drift", numbers(frame, "chosen_drift", 3, signed=True), keep=6, words="drift of chosen"),
        *([measure("retention", frame, "retention", 3, signed=True, keep=8)] if has_retention else []),
        Column("format %", numbers(frame, "format_valid", 1, scale=100), keep=3),
        *([accuracy] if judged else []),
    )


def _caption(run: results.Run, trials: pd.DataFrame, frame: pd.DataFrame, *, judge: str | None) -> str:
    prompts, pairs = trials[["prompts", "pairs"]].max().fillna(0).astype(int)
    versus = (
        f"Win rate against {rows.baseline_of(run)}'s answers (50 % is no change) on {prompts} report prompts, judge "
        f"{judge}; {_interval_words(frame)}."
        if judge
        else f"Not judged: preference accuracy and mean margin on {pairs} held-out pairs lead instead; report prompts."
    )
    return f"{rows.name_of(run)}: win rate and stability. {versus}"


def _interval_words(frame: pd.DataFrame) -> str:
    """Say what the intervals of the rows' win rates are."""
    over_prompts = "95 % score interval over prompts, both orders and all seeds of a prompt together"
    over_both = "95 % score interval over seeds and prompts (two-way analysis of variance, random effects)"
    kinds = set(frame["win_rate_over"][frame["win_rate"].notna()])
    if len(kinds) > 1:
        return f"{over_both} of rows with {statistics.FEWEST_SEEDS} seeds or more; of the others {over_prompts}"
    return over_both if OVER[1] in kinds else over_prompts


def _left_out_notes(frame: pd.DataFrame, outcomes: Mapping[str, Outcomes]) -> list[str]:
    """Say which seeds not all rows have, and which rows cannot be compared with the best one."""
    rated_outcomes = {
        label: outcomes[label] for label in frame["label"][frame["win_rate"].notna()] if label in outcomes
    }
    notes = rows.left_out_notes({label: seeds for label, (seeds, _) in rated_outcomes.items()})
    best, *others = rated_outcomes or [""]
    if incomparable := [label for label in others if difference(rated_outcomes[best], rated_outcomes[label]) is None]:
        notes.append(
            f"No seed, or no prompt, in common with {best}, so neither compared with it nor told apart: "
            f"{', '.join(incomparable)}."
        )
    return notes


def _notes(run: results.Run, frame: pd.DataFrame, outcomes: Mapping[str, Outcomes], *, judged: bool) -> list[str]:
    planned = sorted(run.trials.loc[run.trials["phase"].isin(["arm", "confirm"]), "seed"].unique())
    notes = [
        f"Stability S by {rows.version_of(run)}: mean over seeds, failed ones as 0. Seeds "
        f"{', '.join(map(str, planned))}. Decoding: {rows.decoding_words(run.manifest)}."
    ]
    notes += rows.few_seeds_notes(frame["seeds_finished"])
    enough = (frame["seeds_finished"] >= statistics.FEWEST_SEEDS) & frame["win_rate"].notna()
    if judged and len(lone := frame["label"][enough & (frame["win_rate_over"] == OVER[0])]):
        notes.append(
            f"Fewer than {statistics.FEWEST_UNITS} prompts have a verdict with every seed of {', '.join(lone)}: the "
            "interval is of these checkpoints, over prompts."
        )
    if judged:
        notes.append(
            "Bold win rate: the highest and every row not separable from it: the 95 % interval of the paired "
            f"difference covers 0 (over prompts; with {statistics.FEWEST_SEEDS} or more common seeds over seeds and "
            "prompts). Underlined: the highest of the rest. Marks of S go by the mean alone and claim nothing."
        )
        starts = rows.by_start(frame)
        if len(starts) > 1:
            notes.append(
                f"Rows start from {len(starts)} SFT checkpoints, and each has its win rate against the answers of its "
                "own: rows are compared, and bold or underlined, among those from the same checkpoint."
            )
        notes += [note for group in starts for note in _left_out_notes(group, outcomes)] + rows.topic_notes(run)
    else:
        notes.append("Bold and underlined go by the mean alone and claim nothing.")
    notes.append(
        "U unlearning (nat/token), C rejected collapse (share of rejected tokens), H entropy shift (|log ratio|), "
        "B broken outputs (added share of answers), L length shift (|log ratio|), T training spikes (share of "
        "updates), K full-vocabulary KL to the SFT checkpoint per token of the policy's own answers (nat, not scored): "
        "means over measured seeds, 0 is no change."
    )
    if frame["stability_low"].notna().any():
        notes.append(
            "[95 %] of S: percentile bootstrap over held-out pairs, prompts and blocks of updates together, of these "
            "checkpoints; rows without it, as where pairs or prompts are too few, give the lowest and highest seed. "
            "The parts' own are in the table of parts."
        )
    else:
        notes.append("In parentheses: S of the lowest and highest seed.")
    notes.append(
        ("σ: standard deviation (n − 1) of the win rate over seeds, in points. " if judged else "")
        + "drift: mean change of the held-out chosen log-probability from the SFT checkpoint (nat/token). format: "
        "share of answers that pass the task's format check. acc.: share of held-out pairs with a positive margin."
    )
    if frame["retention"].notna().any():
        notes.append(
            "retention: mean score on the retention prompts minus the SFT checkpoint's, paired by prompt; its interval "
            "over what those of the win rate are. An interval that covers 0 does not show that nothing was lost."
        )
    if frame["note"].str.contains("no change").any():
        notes.append(f'"no change": K below {NO_CHANGE_KL} nat/token and a win interval that covers 50 %.')
    training = [json.loads(settings).get("training") or {} for settings in run.trials["settings"].dropna()]
    if count := sum(stage.get("keep", "last") != "last" for stage in training):
        notes.append(
            f"{count} of {len(run.trials)} trials keep the weights of their best evaluation (training.keep). Where it "
            "was chosen by held-out pairs, what is measured on these, acc. and S among it, flatters them."
        )
    begun = run.trials["attempts"].fillna(1)
    if (begun > 1).any():
        notes.append(
            f"{int((begun > 1).sum())} of {len(begun)} trials were begun again after an interruption, "
            f"{int((begun - 1).sum())} times in all, and went on from their checkpoints; "
            f"{run.trials['lost_seconds'].fillna(0).sum():.0f} worker-seconds were computed twice."
        )
    return notes


def answer(run: results.Run, main: Table, *, of_design: Sentences = ([], [])) -> Sentences:
    """Say what the run does not settle, and what it shows. of_design: the same of its design, where it has one."""
    frame, judged = main.frame, is_judged(run)
    open_: list[str] = []
    settled: list[str] = []
    lost = run.trials["status"].isin(LOST)
    if not run.manifest.get("finished"):
        open_.append("The run has not finished: this is what there is so far.")
    if lost.any():
        open_.append(
            f"{int(lost.sum())} of {len(run.trials)} trials failed or diverged. They count as stability 0; win rates "
            "are of the seeds that finished."
        )
    if not judged:
        open_.append("Which answers are better: nothing was judged, so there is no win rate.")
    # A league has sentences of its entries.
    league = bool((run.manifest.get("experiment") or {}).get("league"))
    lead = "win_rate" if judged else "preference_accuracy"
    scored = frame.dropna(subset=[lead]) if len(frame) else frame
    if len(scored):
        if seeds := rows.few_seeds(frame["seeds_finished"]):
            open_.append(
                f"Whether this holds for other seeds: with {seeds} finished per row it is about these checkpoints only."
            )
        for start_rows in () if league else rows.by_start(scored):
            more = _on_win_rates(run, start_rows) if judged else ([], [_on_accuracy(run, start_rows)])
            open_ += [*more[0], *stability.ties(run, start_rows, judged=judged)]
            settled += more[1]
        if judged and not league and not ((scored["stability"] >= 0.5) & (scored["win_rate_low"] > 0.5)).any():
            settled.append("No row both wins with an interval above 50 % and keeps a stability of 0.5 or more.")
    elif len(frame):
        open_.append(f"No arm and no confirmed winner has a {lead.replace('_', ' ')}, so nothing can be compared.")
    of_search = ([], []) if league else trial_tables.search_sentences(run, main)
    # What is said of the rows from each SFT checkpoint may be the same.
    unsettled = dict.fromkeys(map(printing.unbroken, chain(open_, of_design[0], of_search[0])))
    return [*unsettled], [*dict.fromkeys(map(printing.unbroken, chain(settled, of_design[1], of_search[1])))]


def _percent(row: pd.Series, column: str = "win_rate") -> str:
    return f"{100 * row[column]:.1f} %"


def _at_stability(row: pd.Series) -> str:
    return f", at stability {number(row['stability'])}" if pd.notna(row["stability"]) else ""


def _on_win_rates(run: results.Run, scored: pd.DataFrame) -> Sentences:
    open_: list[str] = []
    best, from_ = scored.iloc[0], " from its SFT checkpoint" if rows.START in scored else ""
    tied = scored[scored["win_rate_mark"] == "best"]
    if len(tied) > 1:
        open_.append(
            f"Which of {join_words(tied['label'])} wins most: their win rates cannot be told apart on these prompts."
        )
    covers = (scored["win_rate_low"] <= 0.5) & (scored["win_rate_high"] >= 0.5)
    # An arm without updates is the SFT checkpoint.
    unclear = scored[covers & (scored["objective"] != "none")]["label"].tolist()
    if unclear:
        are = "is" if len(unclear) == 1 else "are"
        open_.append(
            f"Whether {join_words(unclear)} {are} better or worse than the SFT checkpoint: the win interval covers "
            "50 %."
        )
    prompts = int(scored["prompts"].max())
    if few := prompts < statistics.FEWEST_PROMPTS:
        open_.append(
            f"Everything here: {prompts} prompts were answered and judged; below {statistics.FEWEST_PROMPTS} intervals "
            "are rough. See evaluation.prompts, and selection_prompts and data.held_out_pairs beside it."
        )
    # Nor where it is open whether it is better than the SFT checkpoint, which is a row or stands behind all of them.
    shared = len(tied) > 1 or len(scored) == 1 or few or best["label"] in unclear
    separable = "" if shared else f", separable from every other row{from_}"
    low, high = 100 * best["win_rate_low"], 100 * best["win_rate_high"]
    ends = f"({statistics.TOO_FEW})" if pd.isna(low) else f"[{low:.1f}, {high:.1f}]"
    rests = rows.basis(run, best["seeds_finished"], best["prompts"], label=best["label"])
    settled = [
        f"{best['label']} has the highest win rate{from_}: {_percent(best)} {ends}{separable}{_at_stability(best)} "
        f"({rests})."
    ]
    if len(tied) > 1 and tied["stability"].notna().any():
        calm = tied.sort_values("stability", ascending=False, kind="stable").iloc[0]
        settled.append(
            f"Of the rows that cannot be told apart, {calm['label']} has the highest stability: "
            f"{number(calm['stability'])}."
        )
    worse = scored[scored["win_rate_high"] < 0.5]
    if len(worse):
        rests = rows.basis(run, int(worse["seeds_finished"].min()), int(worse["prompts"].min()))
        settled.append(f"Worse than the baseline on these prompts: {join_words(worse['label'])} (at least {rests}).")
    return open_, settled


def _on_accuracy(run: results.Run, scored: pd.DataFrame) -> str:
    best, from_ = scored.iloc[0], " from its SFT checkpoint" if rows.START in scored else ""
    pairs = int(run.trials["pairs"].fillna(0).max())
    value = _percent(best, "preference_accuracy")
    tied = scored[scored["preference_accuracy"] == best["preference_accuracy"]]
    rests = rows.basis(run, int(tied["seeds_finished"].min()), pairs)
    if len(scored) == 1:
        claim = f"The held-out preference accuracy of {best['label']} is {value}{_at_stability(best)}"
    elif len(tied) > 1:
        rests = f"at least {rests}"
        claim = f"{join_words(tied['label'])} have the same held-out preference accuracy{from_}, the highest: {value}"
    else:
        claim = f"{best['label']} has the highest held-out preference accuracy{from_}: {value}{_at_stability(best)}"
    return f"{claim} ({rests}). Accuracy can rise while answers get worse."
