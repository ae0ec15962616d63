"""What a panel of judges agrees on, and win rates that a few strong verdicts correct.

**A panel.** A judge's leniency is an effect on all of its verdicts. The main table's interval is of these judges alone.
That of judges in general takes the judges at hand for a draw from many: two-way analysis of variance over judges and
prompts, both random, which the judges' repeats enter through their means. Of fewer than FEWEST_JUDGES it is not given.

**Labels.** The judge says something of every prompt, people (or a stronger judge) of a few. With y their outcomes, f
the judge's on the same answers, n labelled prompts and N others, the corrected rate is

    mean(y) + l (mean_N(f) - mean_n(f)),    l = cov(y, f) / ((1 + n / N) var(f)),

whatever the judge's bias is (Angelopoulos et al. 2023, PPI++, arXiv 2311.01453, with its power tuning). Labelled
prompts have to be drawn at random from all.
"""

import json
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.errors import InputError
from slime_ray.runs import results

from . import rows, statistics
from .printing import Column, Table, cells, empty, interval_cells, numbers

FEWEST_JUDGES = 5
"""Judges that speak of judges in general: with fewer the intervals cover less than they say, or say nothing."""
SHOWN = 5
"""Prompts that are named."""
CLASSES = (0.0, 0.5, 1.0)
"""Points of a single verdict: what a judge decides between."""
FEWEST_LABELLED = 20
"""Labelled prompts that a corrected rate takes: the spread of fewer says too little of its error."""
UNSEEN = 0.25
"""Labels that are added at either extreme of what judge and label may differ by: rare errors may not have been seen."""
KEYS = ("trial_id", "prompt_id")


def cohens_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Return two judges' agreement beyond chance on the same verdicts (Cohen 1960); NaN where chance is certain."""
    shares = np.array([[np.mean((first == a) & (second == b)) for b in CLASSES] for a in CLASSES])
    chance = float(shares.sum(axis=1) @ shares.sum(axis=0))
    return float((np.trace(shares) - chance) / (1 - chance)) if chance < 1 else float("nan")


def pooled_interval(outcomes: np.ndarray, topics: np.ndarray | None = None) -> statistics.Interval | None:
    """Return the win rate with its interval over other judges and prompts; None below FEWEST_JUDGES judges.

    outcomes: (judges, prompts) means over seeds, turns and repeats. Prompts that a judge lacks are left out. topics:
    (prompts,) where prompts come in topics.
    """
    complete = ~np.isnan(outcomes).any(axis=0)
    if len(outcomes) < FEWEST_JUDGES or complete.sum() < statistics.FEWEST_UNITS:
        return None
    return statistics.row_interval(outcomes[:, complete], None if topics is None else topics[complete])


def noise(verdicts: pd.DataFrame) -> float:
    """Return the mean variance of a judge's outcome between repeats; NaN without repeats."""
    groups = verdicts.dropna(subset="outcome").groupby(["judge", "trial_id", "prompt_id", "turn"])["outcome"]
    return float(groups.var().groupby("judge").mean().mean())


def panel(run: results.Run, main: Table) -> Table:
    """Return the pooled win rate of each row of the main table that a panel judged; in `frame` it is a share."""
    verdicts = rows.judged_verdicts(run)
    judged_rows = [row for row in main.frame.to_dict("records") if row["label"] in set(verdicts["label"])]
    if not judged_rows:
        return empty("No panel judged this run.")
    records = []
    for row in judged_rows:
        row_verdicts = verdicts[verdicts["label"] == row["label"]]
        answer = row_verdicts.groupby(["judge", "prompt_id", "trial_id", "turn"])["outcome"].mean()
        outcomes = answer.groupby(["judge", "prompt_id"]).mean().unstack("prompt_id")
        topics = rows.topics_by_prompt(run, outcomes.columns)
        complete = outcomes.notna().all()
        records.append(
            {
                **{name: row[name] for name in ("label", *statistics.interval_names("win_rate"))},
                **statistics.columns({"any_judge": pooled_interval(outcomes.to_numpy(dtype=float), topics)}),
                "judges": len(outcomes),
                "lowest": outcomes.loc[:, complete].mean(axis=1).min(),
                "highest": outcomes.loc[:, complete].mean(axis=1).max(),
                "noise": np.sqrt(noise(row_verdicts)),
                "partial": int((~complete & outcomes.notna().any()).sum()),
                "prompts": int(complete.sum()),
            }
        )
    frame = pd.DataFrame(records)
    few, repeated = frame["judges"].max() < FEWEST_JUDGES, frame["noise"].notna().any()
    notes = ["any judge: interval over other judges and prompts, both random (two-way analysis of variance)."]
    if few:
        notes = [f"Of fewer than {FEWEST_JUDGES} judges nothing is claimed of others: the intervals are of these only."]
    if repeated:
        notes.append(
            "noise: standard deviation of a judge's outcome of an answer between repeats. The interval has it."
        )
    lacking = [
        f"{row['partial']} of {row['partial'] + row['prompts']} prompts of {row['label']}"
        for row in records
        if row["partial"]
    ]
    if lacking:
        words = "; ".join(lacking)
        notes.append(f"Partial: not all judges have a verdict on {words}. These prompts are in no pooled win rate.")
    return Table(
        frame=frame,
        caption=f"{rows.name_of(run)}: the panel {rows.judge_of(run)}. Pooled win rate, the mean over judges, with the "
        "main table's interval, which is of these judges; lowest and highest: of a judge, on the prompts of all.",
        notes=notes,
        columns=(
            Column("label", tuple(frame["label"]), numeric=False, keep=10),
            Column("pooled % [95 %]", interval_cells(frame, "win_rate", 1, scale=100), keep=9),
            *(() if few else (Column("any judge % [95 %]", interval_cells(frame, "any_judge", 1, scale=100), keep=8),)),
            Column("judges", numbers(frame, "judges", 0)),
            Column("lowest %", numbers(frame, "lowest", 1, scale=100)),
            Column("highest %", numbers(frame, "highest", 1, scale=100)),
            *((Column("noise", numbers(frame, "noise", 2)),) if repeated else ()),
        ),
    )


def agreement(run: results.Run) -> Table:
    """Return how often the single verdicts of each two judges name the same winner, and that beyond chance."""
    verdicts = rows.judged_verdicts(run)
    first = verdicts[verdicts["repeat"] == 1]
    judges = sorted(first["judge"].unique())
    if len(judges) < 2:
        return empty("No two judges judged the same answers.")
    keys = first.set_index(["judge", "trial_id", "prompt_id", "turn"])
    # The policy's points of each verdict, in both orders.
    sides = {"ab": keys["verdict_ab"].map(statistics.POINTS), "ba": 1 - keys["verdict_ba"].map(statistics.POINTS)}
    points = pd.concat(sides, names=["order"]).astype(float).unstack("judge")
    distances: dict[str, float] = defaultdict(float)
    records = []
    for first_judge, second_judge in combinations(judges, 2):
        both = points[[first_judge, second_judge]].dropna()
        same, counts = both[first_judge] == both[second_judge], len(both)
        for prompt, gap in (both[first_judge] - both[second_judge]).abs().groupby("prompt_id").mean().items():
            distances[str(prompt)] += gap
        records.append(
            {
                "judge": first_judge,
                "other": second_judge,
                "verdicts": counts,
                "agreement": float(same.mean()) if counts else np.nan,
                "kappa": cohens_kappa(*both.to_numpy().T) if counts else np.nan,
            }
        )
    frame = pd.DataFrame(records)
    most = [prompt for prompt, gap in sorted(distances.items(), key=lambda item: (-item[1], item[0])) if gap][:SHOWN]
    return Table(
        frame=frame,
        caption=f"{rows.name_of(run)}: agreement of the panel's judges, of single verdicts on the same answers in the "
        "same order: win, tie or loss, however strong. kappa: Cohen's, unweighted.",
        notes=[f"The judges are farthest apart on the prompts {', '.join(most)}."] if most else [],
        columns=(
            Column("judge", tuple(frame["judge"]), numeric=False, keep=10),
            Column("other", tuple(frame["other"]), numeric=False, keep=10),
            Column("verdicts", numbers(frame, "verdicts", 0)),
            Column("agree %", numbers(frame, "agreement", 1, scale=100)),
            Column("kappa", numbers(frame, "kappa", 2)),
        ),
    )


def corrected_rate(
    labels: np.ndarray, judged: np.ndarray, unlabelled: np.ndarray
) -> tuple[statistics.Interval, float] | None:
    """Return a judge's corrected rate, and the weight l of its verdicts; None below FEWEST_LABELLED labels.

    Wilson's score interval on the effective number of labels. labels, judged: (n,) outcomes of labelled prompts by the
    labels and by the judge. unlabelled: (N,) the judge's outcomes of the other prompts, maybe none.
    """
    n = len(labels)
    if n < FEWEST_LABELLED:
        return None
    weight = gain = spread_of_gain = 0.0
    if len(unlabelled) > 1 and (spread := float(np.concatenate([judged, unlabelled]).var(ddof=1))) > 0:
        weight = float(np.clip(np.cov(labels, judged)[0, 1] / ((1 + n / len(unlabelled)) * spread), 0.0, 1.0))
        gain, spread_of_gain = weight * unlabelled.mean(), weight**2 * unlabelled.var(ddof=1) / len(unlabelled)
    rectified = labels - weight * judged
    mean = rectified.mean()
    squares = ((rectified - mean) ** 2).sum() + UNSEEN * ((1 - mean) ** 2 + (-weight - mean) ** 2)
    variance = squares / (n - 1 + 2 * UNSEEN) / n + spread_of_gain
    rate = float(np.clip(mean + gain, 0.0, 1.0))
    return statistics.score_interval(rate, statistics.Scatter(variance, n - 1, n)), weight


def read_labels(path: Path) -> pd.DataFrame:
    """Read `trial_id`, `prompt_id`, `turn` and `outcome` (1 win, 0.5 tie, 0 loss) from a CSV or JSONL file.

    Raises:
        InputError: The file cannot be read, or a label is none.
    """
    with rows.reading(f"--labels {path}", "a CSV or JSONL file with trial_id, prompt_id and outcome"):
        if path.suffix == ".csv":
            labels = pd.read_csv(path, dtype=dict.fromkeys(KEYS, str))
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            labels = pd.DataFrame([_object(line, number) for number, line in enumerate(lines, 1) if line.strip()])
    missing = [name for name in (*KEYS, "outcome") if name not in labels]
    if missing:
        raise InputError(f"--labels {path}: lacks {', '.join(missing)}. Give trial_id, prompt_id and outcome.")
    outcomes = pd.to_numeric(labels["outcome"], errors="coerce")
    if len(bad := np.flatnonzero(~outcomes.between(0, 1))):
        raise InputError(
            f"--labels {path}: label {bad[0] + 1} has the outcome {labels['outcome'].iloc[bad[0]]!r}. "
            "Give 1 for a win of the trial's answer over the baseline's, 0.5 for a tie, 0 for a loss."
        )
    return labels.assign(outcome=outcomes, **{key: labels[key].astype(str) for key in KEYS})


def _object(line: str, number: int) -> dict[str, Any]:
    """Read a line of JSON; a list or an object in it is no label's, and read as missing. Raises ValueError."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"line {number} holds no object")
    return {name: None if isinstance(item, (list, dict)) else item for name, item in value.items()}


def corrected(run: results.Run, main: Table, labels: pd.DataFrame) -> Table:
    """Return a corrected win rate for each row of the main table that has labels.

    Raises:
        InputError: Labels are of trials or prompts that the run has no judged answer of.
    """
    answers = _answers_with_labels(run, labels)
    records, few, unjudged = [], [], 0
    for row in main.frame.to_dict("records"):
        answered = answers[answers["label"] == row["label"]]
        unjudged += int(answered[answered["outcome"].isna()]["strong"].count())
        answered = answered.dropna(subset="outcome")
        by_prompt = answered.groupby("prompt_id")["outcome"].mean()
        labelled = answered.dropna(subset="strong").groupby("prompt_id")[["strong", "outcome"]].mean()
        if labelled.empty:
            continue
        strong, judged = labelled.to_numpy(dtype=float).T
        estimate = corrected_rate(strong, judged, by_prompt.drop(labelled.index).to_numpy(dtype=float))
        if estimate is None:
            few.append(f"{row['label']} ({len(labelled)})")
            continue
        records.append(
            {
                "label": row["label"],
                "win_rate": row["win_rate"],
                **statistics.columns({"corrected": estimate[0]}),
                "labels_alone": strong.mean(),
                "bias": (judged - strong).mean(),
                "weight": estimate[1],
                "labelled": len(labelled),
                "prompts": len(by_prompt),
            }
        )
    lacking = [f"Fewer than {FEWEST_LABELLED} labelled prompts: {', '.join(few)}."] if few else []
    if unjudged:
        lacking.append(f"{unjudged} labels count for nothing: the judge has no valid verdict on their answers.")
    frame = pd.DataFrame(records, columns=None if records else ["label"])
    return Table(
        frame=frame,
        caption=f"{rows.name_of(run)}: the win rate of {rows.judge_of(run)}, corrected by labels "
        "(prediction-powered inference).",
        notes=[
            "Intervals are over prompts, of these checkpoints; labelled prompts are taken to be drawn at random. bias: "
            "what the judge gives more than the labels. weight: how much its verdicts on the other prompts count.",
            *lacking,
        ],
        columns=(
            Column("label", tuple(frame["label"]), numeric=False, keep=10),
            Column("judge %", numbers(frame, "win_rate", 1, scale=100)),
            Column("corrected % [95 %]", interval_cells(frame, "corrected", 1, scale=100), keep=9),
            Column("labels alone %", numbers(frame, "labels_alone", 1, scale=100)),
            Column("bias", numbers(frame, "bias", 1, scale=100, signed=True)),
            Column("weight", numbers(frame, "weight", 2)),
            Column("labelled", cells(frame, lambda row: f"{row['labelled']} of {row['prompts']}")),
        ),
    )


def _answers_with_labels(run: results.Run, labels: pd.DataFrame) -> pd.DataFrame:
    """Return answers to report prompts: the judge's `outcome`, and the labels' as `strong`."""
    keys = [*KEYS, "turn"] if "turn" in labels else list(KEYS)
    # Of a prompt with several turns, or labelled by several people, the mean.
    judged = rows.judged_answers(run).groupby([*keys, "label"], as_index=False)["outcome"].mean()
    strong = labels.rename(columns={"outcome": "strong"}).groupby(keys, as_index=False)["strong"].mean()
    both = judged.merge(strong, on=keys, how="outer", indicator=True)
    if len(strange := both[both["_merge"] == "right_only"]):
        first = strange.iloc[0]
        raise InputError(
            f"{len(strange)} of {len(strong)} labels are of no answer of {rows.name_of(run)} to a report prompt, the "
            f"first of trial {first['trial_id']}, prompt {first['prompt_id']}. Take both from its answers.parquet."
        )
    return both
