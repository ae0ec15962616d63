"""Tables of a run: result frames in, a table out. What a cell says is decided here; printing.py prints it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from slime_ray import results

from . import statistics
from .printing import ABSENT, Column, Mark, Table, one_line

PARTS = {
    "unlearning": "U",
    "rejected_collapse": "C",
    "entropy_shift": "H",
    "broken_outputs": "B",
    "length_shift": "L",
    "training_spikes": "T",
}
"""The scored parts of stability: column in trials.parquet -> letter."""
NO_CHANGE_KL = 0.005
"""Below this KL to the SFT checkpoint (nat/token), with a win interval that covers 50 %, a row is "no change"."""
CHECKPOINTS_ONLY = 5
"""With fewer seeds than this, the table speaks of its checkpoints only."""
FINISHED = "completed"
MEASURED = (FINISHED, "stopped")
"""How trials end that have a policy whose answers were judged. To leave out what was stopped would flatter its row."""
LOST = ("failed", "diverged")
"""How trials end that count as stability 0 and have no win rate."""


def is_judged(run: results.Run) -> bool:
    """Whether a judge compared answers in this run."""
    return run.manifest.get("judge") not in (None, "", "none") or bool(run.trials["win_rate"].notna().any())


def of_label(run: results.Run, frame: pd.DataFrame, label: str) -> pd.DataFrame:
    """The rows of a result frame that a row of the table stands for.

    A confirmed winner has its search trial's label, but not its phase; search trials stand only in a run without both
    arms and confirmed winners.
    """
    shown = frame["phase"].isin(["arm", "confirm"])
    if not run.trials["phase"].isin(["arm", "confirm"]).any():
        shown = ~shown
    return frame[shown & (frame["label"] == label)]


def outcomes_by_label(run: results.Run) -> dict[str, tuple[list[int], np.ndarray]]:
    """Seeds and (seeds, prompts) outcomes of every arm and confirmed winner; prompts in the same order for all."""
    measured = run.trials[run.trials["phase"].isin(["arm", "confirm"]) & run.trials["status"].isin(MEASURED)]
    answers = run.answers[run.answers["trial_id"].isin(measured["trial_id"]) & (run.answers["prompt_set"] == "report")]
    if answers.empty:
        return {}
    # Several answers to one prompt are averaged: the prompt is what the bootstrap draws.
    wide = answers.pivot_table(
        index=["label", "seed"], columns="prompt_id", values="outcome", aggfunc="mean", dropna=False
    )
    return {
        str(label): (rows.index.get_level_values("seed").tolist(), rows.to_numpy(dtype=float))
        for label, rows in wide.dropna(how="all").groupby(level="label")
    }


def win_rate_stability(run: results.Run) -> Table:
    """The main table: one row per arm and confirmed winner, over its seeds. Sorted by win rate.

    In `frame`, rates are shares (0..1), parts are means over the measured seeds (those that completed or were stopped),
    and `stability` is the mean over all seeds with 0 for those that failed or diverged.
    """
    trials = run.trials[run.trials["phase"].isin(["arm", "confirm"])]
    judged = is_judged(run)
    outcomes = outcomes_by_label(run)
    intervals = _win_rate_intervals(outcomes)
    rows = []
    for label, group in trials.groupby("label", sort=False):
        rows.append(_row(run, str(label), group, intervals.get(str(label)), outcomes.get(str(label)), judged=judged))
    frame = pd.DataFrame(rows, columns=None if rows else ["label"])
    if len(frame):
        lead = "win_rate" if judged else "preference_accuracy"
        frame = frame.sort_values(
            [lead, "stability", "label"], ascending=[False, False, True], na_position="last"
        ).reset_index(drop=True)
        frame["win_rate_mark"] = _win_rate_marks(frame, outcomes)
        frame["preference_accuracy_mark"] = _marks(frame["preference_accuracy"])
        frame["stability_mark"] = _marks(frame["stability"])
    return Table(
        frame=frame,
        caption=_caption(run, trials, judged=judged),
        notes=_notes(run, frame, judged=judged),
        columns=_main_columns(frame, judged=judged) if len(frame) else (),
        remarks=tuple(frame["note"]) if len(frame) else (),
    )


def _win_rate_intervals(outcomes: Mapping[str, tuple[list[int], np.ndarray]]) -> dict[str, statistics.Interval]:
    """statistics.win_rate_interval of every row.

    Rows that were judged on all prompts share one draw of the resamples, as they would with the same seed one by one.
    """
    means = {label: statistics.prompt_means(values) for label, (_, values) in outcomes.items()}
    complete = [label for label, row in means.items() if not np.isnan(row).any()]
    found: dict[str, statistics.Interval] = {}
    if complete:
        resampled = statistics.resample_means(np.stack([means[label] for label in complete]))
        for index, label in enumerate(complete):
            found[label] = statistics.interval(means[label].mean(), resampled[:, index])
    for label, (_, values) in outcomes.items():
        if label not in found and (interval := statistics.win_rate_interval(values)) is not None:
            found[label] = interval
    return found


def _row(
    run: results.Run,
    label: str,
    group: pd.DataFrame,
    interval: statistics.Interval | None,
    outcomes: tuple[list[int], np.ndarray] | None,
    *,
    judged: bool,
) -> dict[str, Any]:
    done = group[group["status"].isin(MEASURED)]
    # A trial that failed or diverged counts as 0, however far it got.
    scores = group["stability"].where(~group["status"].isin(LOST), 0.0)
    seed_rates = done["win_rate"].dropna()
    trained = not (len(done) and (done["updates"] == 0).all())
    kl = done["kl_to_sft"].mean()
    remarks = ["confirmed"] if (group["phase"] == "confirm").all() else []
    remarks += [] if trained else ["no updates"]
    if judged and interval is not None and interval.covers(0.5) and kl < NO_CHANGE_KL:
        remarks.append("no change")
    for status, ended in group[group["status"] != FINISHED].groupby("status"):
        reasons = "; ".join(dict.fromkeys(str(reason) for reason in ended["reason"].dropna()))
        remarks.append(f"{status} {len(ended)} of {len(group)}: {reasons or 'no reason was recorded'}")
    if again := int((group["attempts"].fillna(1) - 1).sum()):
        remarks.append(f"begun again {again} times" if again > 1 else "begun again once")
    phase = str(group["phase"].iloc[0])
    bounds = statistics.verdict_bounds(outcomes[1]) if outcomes else (math.nan, math.nan)
    if outcomes and np.isnan(outcomes[1]).any():
        missing = int(np.isnan(outcomes[1]).sum())
        remarks.append(f"{missing} verdicts missing: between {100 * bounds[0]:.1f} and {100 * bounds[1]:.1f} %")
    return {
        "label": label,
        "phase": phase,
        "objective": str(group["objective"].iloc[0]) if trained else "none",
        "seeds_finished": int((group["status"] == FINISHED).sum()),
        "seeds": max(len(group), _planned_seeds(run, phase)),
        "win_rate": interval.value if interval else math.nan,
        "win_rate_low": interval.low if interval else math.nan,
        "win_rate_high": interval.high if interval else math.nan,
        "prompts": int(done["prompts"].max()) if done["prompts"].notna().any() else 0,
        "sigma": seed_rates.std(ddof=1) if len(seed_rates) > 1 else math.nan,
        "stability": scores.mean(),
        "stability_min": scores.min(),
        "stability_max": scores.max(),
        **{column: done[column].mean() for column in PARTS},
        "kl_to_sft": kl,
        "chosen_drift": done["chosen_drift"].mean(),
        "format_valid": done["format_valid"].mean(),
        "preference_accuracy": done["preference_accuracy"].mean(),
        "mean_margin": done["mean_margin"].mean(),
        "note": "; ".join(remarks),
    }


def _planned_seeds(run: results.Run, phase: str) -> int:
    """How many seeds were asked for, where the manifest says so."""
    if phase == "arm":
        return len(run.manifest.get("seeds") or ())
    budget = (run.manifest.get("experiment") or {}).get("budget") or {}
    return int((budget.get("confirm") or {}).get("seeds") or 0)


def separable(one: tuple[list[int], np.ndarray] | None, other: tuple[list[int], np.ndarray] | None) -> bool:
    """Whether the interval of the paired difference of two rows' win rates leaves 0 out."""
    if one is None or other is None:
        return True
    (seeds, values), (other_seeds, other_values) = one, other
    if seeds != other_seeds:
        # Not the same seeds: only the prompts pair up.
        values = statistics.prompt_means(values)[None]
        other_values = statistics.prompt_means(other_values)[None]
    difference = statistics.paired_difference(values, other_values)
    return difference is None or not difference.covers(0.0)


def _win_rate_marks(frame: pd.DataFrame, outcomes: Mapping[str, tuple[list[int], np.ndarray]]) -> list[Mark]:
    """Best: the highest win rate and every row not separable from it. Second: the highest of the rest."""
    marks: list[Mark] = [""] * len(frame)
    known = [row for row in range(len(frame)) if frame["label"][row] in outcomes]
    for row in sorted(known, key=lambda row: -frame["win_rate"][row]):
        best = frame["label"][known[0]]
        if row == known[0] or not separable(outcomes[best], outcomes[frame["label"][row]]):
            marks[row] = "best"
        elif "second" not in marks:
            marks[row] = "second"
    return marks


def _marks(values: pd.Series) -> list[Mark]:
    """The highest and the second highest value; no claim."""
    levels = sorted(values.dropna().unique(), reverse=True)
    names: dict[float, Mark] = dict(zip(levels[:2], ("best", "second"), strict=False))
    return [names.get(value, "") for value in values]


def _number(value: float, digits: int = 2, *, scale: float = 1.0, signed: bool = False) -> str:
    if pd.isna(value):
        return ABSENT
    text = f"{scale * value:{'+' if signed else ''}.{digits}f}"
    # No minus before a rounded zero.
    return text[1:] if text.startswith("-") and float(text) == 0 else text


def _cells(frame: pd.DataFrame, say: Callable[[pd.Series], str]) -> tuple[str, ...]:
    return tuple(say(row) for _, row in frame.iterrows())


_DIGITS = {"training_spikes": 3}
"""T's tolerance is 0.01: with two digits a share that halves S and one that costs nothing could look the same."""


def _win_rate_cell(row: pd.Series) -> str:
    if pd.isna(row["win_rate"]):
        return ABSENT
    rate, low, high = (_number(row[name], 1, scale=100) for name in ("win_rate", "win_rate_low", "win_rate_high"))
    return f"{rate} [{low}, {high}]"


def _stability_cell(row: pd.Series) -> str:
    low, high = _number(row["stability_min"]), _number(row["stability_max"])
    mean = _number(row["stability"])
    return mean if low == high == mean else f"{mean} ({low}–{high})"


def _main_columns(frame: pd.DataFrame, *, judged: bool) -> tuple[Column, ...]:
    accuracy = Column(
        "acc. %",
        _cells(frame, lambda row: _number(row["preference_accuracy"], 1, scale=100)),
        () if judged else tuple(frame["preference_accuracy_mark"]),
        keep=4 if judged else 9,
    )
    margin = Column("margin", _cells(frame, lambda row: _number(row["mean_margin"])), keep=8)
    win_rate = Column(
        "win rate % [95 %]" if judged else "win rate",
        _cells(frame, _win_rate_cell) if judged else ("not judged",) * len(frame),
        tuple(frame["win_rate_mark"]) if judged else (),
        keep=9 if judged else 5,
    )
    sigma = Column("σ", _cells(frame, lambda row: _number(row["sigma"], 1, scale=100)), keep=6)
    return (
        Column("label", tuple(frame["label"]), numeric=False, keep=10),
        Column("objective", tuple(frame["objective"]), numeric=False, keep=1),
        Column("seeds", _cells(frame, lambda row: f"{row['seeds_finished']}/{row['seeds']}"), keep=8),
        *((win_rate, sigma) if judged else (accuracy, margin, win_rate)),
        Column("stability S", _cells(frame, _stability_cell), tuple(frame["stability_mark"]), keep=9),
        *(
            Column(letter, tuple(_number(value, _DIGITS.get(name, 2)) for value in frame[name]), keep=7)
            for name, letter in PARTS.items()
        ),
        Column("K", _cells(frame, lambda row: _number(row["kl_to_sft"], 3)), keep=7),
        Column("drift", _cells(frame, lambda row: _number(row["chosen_drift"], 3, signed=True)), keep=6),
        Column("format %", _cells(frame, lambda row: _number(row["format_valid"], 1, scale=100)), keep=3),
        *((accuracy,) if judged else ()),
    )


def decoding_words(manifest: Mapping[str, Any]) -> str:
    """The decoding settings, in one phrase."""
    decoding = dict(manifest.get("decoding") or {})
    by_category = decoding.pop("temperatures", {})
    words = [f"{name} {value}" for name, value in decoding.items()]
    words += [f"temperature {value} for {category}" for category, value in by_category.items()]
    return ", ".join(words) or "not recorded"


def _caption(run: results.Run, trials: pd.DataFrame, *, judged: bool) -> str:
    name = run.manifest.get("name", run.path.name)
    if trials.empty:
        return f"{name}: this run has no arms and no confirmed winner; its search trials are in a table of their own."
    version = run.manifest.get("stability_version") or trials["stability_version"].iloc[0]
    prompts = int(trials["prompts"].max()) if trials["prompts"].notna().any() else 0
    pairs = int(trials["pairs"].max()) if trials["pairs"].notna().any() else 0
    seeds = ", ".join(str(seed) for seed in sorted(trials["seed"].unique()))
    versus = (
        f"Win rate against the SFT checkpoint's answers (50 % is no change) on {prompts} report prompts, judge "
        f"{run.manifest.get('judge')}; 95 % percentile bootstrap over prompts, "
        f"{statistics.RESAMPLES:,} resamples, both orders and all seeds of a prompt together."
        if judged
        else f"Not judged: preference accuracy and mean margin on {pairs} held-out pairs lead instead; report prompts."
    )
    return (
        f"{name}: win rate and stability. {versus} Stability S by {version}: mean over seeds, failed ones as 0 "
        f"(lowest–highest seed). Seeds {seeds}. Decoding: {decoding_words(run.manifest)}."
    )


def _notes(run: results.Run, frame: pd.DataFrame, *, judged: bool) -> list[str]:
    if frame.empty:
        return []
    notes = []
    if seeds := few_seeds(frame):
        notes.append(
            f"These checkpoints only: {seeds} per row cannot say how a method does over other seeds. "
            "The intervals are over prompts."
        )
    if judged:
        notes.append(
            "Bold win rate: the highest and every row not separable from it (the 95 % interval of the paired "
            "difference covers 0; seeds and prompts resampled where the seeds agree). Underlined: the highest of the "
            "rest. Marks of S go by the mean alone and claim nothing."
        )
    else:
        notes.append("Bold and underlined go by the mean alone and claim nothing.")
    parts = (
        "U unlearning (nat/token), C rejected collapse (share of rejected tokens), H entropy shift (|log ratio|), "
        "B broken outputs (added share of answers), L length shift (|log ratio|), T training spikes (share of "
        "updates), K KL to the SFT checkpoint (nat/token, not scored): means over measured seeds, 0 is no change."
    )
    notes.append(parts)
    notes.append(
        ("σ: standard deviation of the win rate over seeds, in points. " if judged else "")
        + "drift: mean change of the chosen log-probability (nat/token). format: share of answers that pass the "
        "task's format check. acc.: share of held-out pairs with a positive margin."
    )
    if frame["note"].str.contains("no change").any():
        notes.append(f'"no change": K below {NO_CHANGE_KL} nat/token and a win interval that covers 50 %.')
    begun = run.trials["attempts"].fillna(1)
    if (begun > 1).any():
        notes.append(
            f"{int((begun > 1).sum())} of {len(begun)} trials were begun again after an interruption, "
            f"{int((begun - 1).sum())} times in all, and went on from their checkpoints; "
            f"{run.trials['lost_seconds'].fillna(0).sum():.0f} worker-seconds were computed twice."
        )
    return notes


def few_seeds(frame: pd.DataFrame) -> str:
    """How many seeds the rows of the main table have finished, in words; empty where five or more have everywhere."""
    finished = frame["seeds_finished"][frame["seeds_finished"] > 0]
    if finished.empty or (few := int(finished.min())) >= CHECKPOINTS_ONLY:
        return ""
    most = int(finished.max())
    return f"{few} finished seed{'s' * (few > 1)}" if few == most else f"{few} to {most} finished seeds"


def front_mask(run: results.Run, trials: pd.DataFrame) -> np.ndarray:
    """(trials,) whether each is on the front of the run's goals; trials that did not finish never are."""
    goals = {name: way for name, way in (run.manifest.get("goals") or {}).items() if name in trials.columns}
    points = trials[list(goals)].to_numpy(dtype=float) * [-1 if way == "minimize" else 1 for way in goals.values()]
    ranked = (trials["status"] == FINISHED).to_numpy() & np.isfinite(points).all(axis=1)
    mask = np.zeros(len(trials), dtype=bool)
    if goals and ranked.any():
        mask[ranked] = statistics.on_front(points[ranked])
    return mask


def search_trials(run: results.Run) -> Table:
    """One row per search trial with what it set, measured on the selection prompts; the front first."""
    trials = run.trials[run.trials["phase"] == "search"]
    if trials.empty:
        return Table(frame=pd.DataFrame(columns=["trial_id"]), caption="This run did not search.", notes=[])
    knobs = [name for name in trials.columns if name.startswith(results.KNOB) and trials[name].notna().any()]
    shown = ["win_rate", "prompts", "stability", "chosen_drift", "preference_accuracy", "status", "reason"]
    frame = trials[["trial_id", *knobs, *shown]].copy()
    frame["on_front"] = front_mask(run, trials)
    judged = is_judged(run)
    lead = "win_rate" if judged else "preference_accuracy"
    order = ["on_front", lead, "trial_id"]
    frame = frame.sort_values(order, ascending=[False, False, True], na_position="last").reset_index(drop=True)
    short = {name: name.rpartition(".")[2] for name in knobs}
    heads = (
        short if len(set(short.values())) == len(short) else {name: name.removeprefix(results.KNOB) for name in knobs}
    )
    rate = (
        Column("win rate %", _cells(frame, lambda row: _number(row["win_rate"], 1, scale=100)), keep=9)
        if judged
        else Column("acc. %", _cells(frame, lambda row: _number(row["preference_accuracy"], 1, scale=100)), keep=9)
    )
    goals = ", ".join(f"{name} ({way})" for name, way in (run.manifest.get("goals") or {}).items()) or "none recorded"
    prompts = int(frame["prompts"].max()) if frame["prompts"].notna().any() else 0
    where = f"{prompts} selection prompts" if judged else "the held-out pairs; nothing was judged"
    return Table(
        frame=frame,
        caption=f"{run.manifest.get('name', run.path.name)}: {len(frame)} search trials, measured on {where}.",
        notes=[
            f"Front: no other finished trial is at least as good in all goals and better in one. Goals: {goals}.",
            "The best of many trials on the selection prompts looks better than it is: judge a winner by its confirmed "
            "row, which was measured on other prompts.",
        ],
        columns=(
            Column("trial", tuple(frame["trial_id"]), numeric=False, keep=10),
            *(Column(heads[name], tuple(map(_knob, frame[name])), keep=4) for name in knobs),
            rate,
            Column("stability S", _cells(frame, lambda row: _number(row["stability"])), keep=9),
            Column("drift", _cells(frame, lambda row: _number(row["chosen_drift"], 3, signed=True)), keep=6),
            Column("status", tuple(frame["status"]), numeric=False, keep=7),
            Column("front", _cells(frame, lambda row: "yes" if row["on_front"] else ""), numeric=False, keep=8),
        ),
        remarks=_cells(frame, lambda row: "" if pd.isna(row["reason"]) else str(row["reason"])),
    )


def _knob(value: Any) -> str:
    if pd.isna(value):
        return ABSENT
    return f"{value:.3g}" if isinstance(value, (int, float)) else one_line(str(value))


def failures(run: results.Run) -> Table:
    """Every trial that did not complete, with its reason; also those that the manifest alone knows."""
    known = run.trials[run.trials["status"] != FINISHED][["trial_id", "phase", "label", "seed", "status", "reason"]]
    listed = run.manifest.get("failed_trials") or []
    seen = set(run.trials["trial_id"])
    others = pd.DataFrame([item for item in listed if isinstance(item, dict) and item.get("trial_id") not in seen])
    frame = pd.concat([known, others], ignore_index=True) if len(others) else known.reset_index(drop=True)
    frame = frame.sort_values("trial_id").reset_index(drop=True)
    texts = {name: tuple(ABSENT if pd.isna(value) else str(value) for value in frame[name]) for name in frame.columns}
    return Table(
        frame=frame,
        caption=f"{len(frame)} of {len(run.trials) + len(others)} trials did not complete.",
        notes=["Failed and diverged trials count as stability 0 and have no win rate; stopped ones count as measured."]
        if len(frame)
        else [],
        columns=tuple(Column(name, texts[name], numeric=False) for name in ("trial_id", "status", "reason")),
    )
