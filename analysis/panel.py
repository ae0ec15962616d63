"""What a panel of judges says: each judge's own win rate, how far they agree, their noise, and the pooled win rate.

A judge's leniency is an effect on all of its verdicts. The main table's interval is of these judges alone. That of
judges in general takes the judges at hand for a draw from many: two-way analysis of variance over judges and prompts,
both random, which the judges' repeats enter through their means. Of fewer than FEWEST_JUDGES it is not given.
"""

from collections import defaultdict
from itertools import combinations

import numpy as np
import pandas as pd

from slime_ray.runs import results

from . import rows, statistics
from .printing import Column, Table, empty, interval_cells, numbers

FEWEST_JUDGES = 5
"""Judges that speak of judges in general: with fewer the intervals cover less than they say, or say nothing."""
SHOWN = 5
"""Prompts that are named."""
CLASSES = (0.0, 0.5, 1.0)
"""Points of a single verdict: what a judge decides between."""


def cohens_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Agreement beyond chance of two judges' points on the same verdicts (Cohen 1960); NaN where chance is certain."""
    shares = np.array([[np.mean((first == a) & (second == b)) for b in CLASSES] for a in CLASSES])
    chance = float(shares.sum(axis=1) @ shares.sum(axis=0))
    return float((np.trace(shares) - chance) / (1 - chance)) if chance < 1 else float("nan")


def pooled_interval(outcomes: np.ndarray, topics: np.ndarray | None = None) -> statistics.Interval | None:
    """The win rate with its interval over other judges and prompts; None of fewer than FEWEST_JUDGES judges.

    outcomes: (judges, prompts) means over seeds, turns and repeats. Prompts that a judge lacks are left out. topics:
    (prompts,) where prompts come in topics.
    """
    complete = ~np.isnan(outcomes).any(axis=0)
    if len(outcomes) < FEWEST_JUDGES or complete.sum() < statistics.FEWEST_UNITS:
        return None
    return statistics.row_interval(outcomes[:, complete], None if topics is None else topics[complete])


def noise(verdicts: pd.DataFrame) -> tuple[float, float]:
    """The judges' own noise: the variance of an outcome between repeats, and the share of the win rate's variance.

    The second is what the noise adds to the variance of the pooled win rate, over the whole of it: resampling prompts
    carries it, as each prompt's verdicts have noise of their own. Both NaN without repeats.
    """
    groups = verdicts.dropna(subset="outcome").groupby(["judge", "trial_id", "prompt_id", "turn"])["outcome"]
    repeats = groups.agg(["var", "size", "mean"]).reset_index()
    within = repeats[repeats["size"] > 1].groupby("judge")["var"].mean()
    judges = repeats["judge"].nunique()
    if len(within) < judges or not judges:
        return (float(within.mean()) if len(within) else float("nan")), float("nan")
    repeats["noise"] = repeats["judge"].map(within) / repeats["size"] / judges**2
    by_prompt = repeats.groupby("prompt_id")
    answers = by_prompt.size() / judges
    added = (by_prompt["noise"].sum() / answers**2).mean()
    spread = repeats.groupby(["prompt_id", "judge"])["mean"].mean().groupby("prompt_id").mean().var()
    return float(within.mean()), float(added / spread) if spread > 0 else float("nan")


def outcomes_by_judge(verdicts: pd.DataFrame) -> pd.DataFrame:
    """(judges, prompts) mean outcomes over seeds, turns and repeats; NaN where a judge has none."""
    answer = verdicts.groupby(["judge", "prompt_id", "trial_id", "turn"])["outcome"].mean()
    return answer.groupby(["judge", "prompt_id"]).mean().unstack("prompt_id")


def panel(run: results.Run, main: Table) -> Table:
    """A row for each row of the main table that a panel judged: the pooled win rate, in `frame` as a share."""
    verdicts = rows.judged_verdicts(run)
    shown = [row for row in main.frame.to_dict("records") if row["label"] in set(verdicts["label"])]
    if not shown:
        return empty("No panel judged this run.")
    found = []
    for row in shown:
        own = verdicts[verdicts["label"] == row["label"]]
        outcomes = outcomes_by_judge(own)
        topics = rows.topics_by_prompt(run, outcomes.columns)
        complete = outcomes.notna().all()
        variance, share = noise(own)
        found.append(
            {
                **{name: row[name] for name in ("label", "win_rate", "win_rate_low", "win_rate_high")},
                **statistics.columns({"any_judge": pooled_interval(outcomes.to_numpy(dtype=float), topics)}),
                "judges": len(outcomes),
                "lowest": outcomes.loc[:, complete].mean(axis=1).min(),
                "highest": outcomes.loc[:, complete].mean(axis=1).max(),
                "noise": np.sqrt(variance),
                "noise_share": share,
                "partial": int((~complete & outcomes.notna().any()).sum()),
                "prompts": int(complete.sum()),
            }
        )
    frame = pd.DataFrame(found)
    few = frame["judges"].max() < FEWEST_JUDGES
    scope = "any judge: interval over other judges and prompts, both random (two-way analysis of variance)."
    if few:
        scope = f"Of fewer than {FEWEST_JUDGES} judges nothing is claimed of others: the intervals are of these only."
    lacking = [
        f"{row['partial']} of {row['partial'] + row['prompts']} prompts of {row['label']}"
        for row in found
        if row["partial"]
    ]
    return Table(
        frame=frame,
        caption=f"{rows.name_of(run)}: the panel {rows.judge_of(run)}. Pooled win rate, the mean over judges, with the "
        "main table's interval, which is of these judges; lowest and highest: of a judge, on the prompts of all.",
        notes=[
            scope,
            *(
                [
                    "noise: standard deviation of one judge's outcome of an answer between repeats; its share of the "
                    "variance that the interval comes from. The interval has it already."
                ]
                if frame["noise"].notna().any()
                else []
            ),
            *(
                [
                    "Partial: not all judges have a verdict on "
                    + "; ".join(lacking)
                    + ". These prompts are in no pooled win rate."
                ]
                if lacking
                else []
            ),
        ],
        columns=(
            Column("label", tuple(frame["label"]), numeric=False, keep=10),
            Column("pooled % [95 %]", interval_cells(frame, "win_rate", 1, scale=100), keep=9),
            *(() if few else (Column("any judge % [95 %]", interval_cells(frame, "any_judge", 1, scale=100), keep=8),)),
            Column("judges", numbers(frame, "judges", 0)),
            Column("lowest %", numbers(frame, "lowest", 1, scale=100)),
            Column("highest %", numbers(frame, "highest", 1, scale=100)),
            *(
                (
                    Column("noise", numbers(frame, "noise", 2)),
                    Column("of variance %", numbers(frame, "noise_share", 0, scale=100)),
                )
                if frame["noise"].notna().any()
                else ()
            ),
        ),
    )


def agreement(run: results.Run) -> Table:
    """A row for each two judges of a panel: how often their single verdicts name the same winner, beyond chance."""
    verdicts = rows.judged_verdicts(run)
    first = verdicts[verdicts["repeat"] == 1]
    judges = sorted(first["judge"].unique())
    if len(judges) < 2:
        return empty("No two judges judged the same answers.")
    points = {judge: _points(first[first["judge"] == judge]) for judge in judges}
    apart: dict[str, float] = defaultdict(float)
    found = []
    for one, other in combinations(judges, 2):
        both = pd.concat([points[one], points[other]], axis=1, keys=[0, 1]).dropna()
        same, counts = both[0] == both[1], len(both)
        for prompt, gap in (both[0] - both[1]).abs().groupby("prompt_id").mean().items():
            apart[str(prompt)] += gap
        found.append(
            {
                "judge": one,
                "other": other,
                "verdicts": counts,
                "agreement": float(same.mean()) if counts else np.nan,
                "kappa": cohens_kappa(both[0].to_numpy(), both[1].to_numpy()) if counts else np.nan,
            }
        )
    frame = pd.DataFrame(found)
    most = [f"{prompt}" for prompt, gap in sorted(apart.items(), key=lambda item: (-item[1], item[0])) if gap][:SHOWN]
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


def _points(verdicts: pd.DataFrame) -> pd.Series:
    """The policy's points of each verdict, by trial, prompt, turn and order."""
    keys = verdicts.set_index(["trial_id", "prompt_id", "turn"])
    sides = {"ab": keys["verdict_ab"].map(statistics.POINTS), "ba": 1 - keys["verdict_ba"].map(statistics.POINTS)}
    return pd.concat(sides, names=["order"]).astype(float)
