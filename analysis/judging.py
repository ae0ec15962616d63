"""What verdicts say beyond the win rate: Arena-Hard's score, adjusted rates, consistency, and what a panel agrees on.

A judge's leniency is an effect on all of its verdicts. The main table's interval is of these judges alone; that of
judges in general takes them for a draw from many, in a two-way analysis of variance over judges and prompts.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.runs import results

from . import adjusted, rows, statistics
from .adjusted import Difficulties
from .printing import Column, Table, empty, interval_cells, measure, names, numbers

FEWEST_EQUAL = 0.1
"""Below this share of answers near equal length LC rests on the form of the curve: it is extrapolated."""
EXTRAPOLATED = "length_controlled_extrapolated"
RATES = (
    ("W_AH", "arena_hard", "as Arena-Hard counts"),
    ("LC", "length_controlled", "length-controlled"),
    ("AlpacaEval LC", "alpaca_eval", ""),
    ("SC", "style_controlled", "style-controlled"),
)
"""Heads and columns of the rates, with the words for the heads on the page."""
EXACT = "exact"
"""Its verdicts depend on neither order nor luck: only missing ones have to be spoken of."""
FEWEST_JUDGES = 5
"""Judges that speak of judges in general: with fewer the intervals cover less than they say, or say nothing."""
SHOWN = 5
"""Prompts that are named where judges disagree."""
ASIDE = {
    "failed": "comparisons were not judged, since an answer is $ERROR$, a failed generation",
    "empty": "comparisons have an empty answer, judged as it is",
}
"""What a trial's judging.json counts apart, in words."""


@dataclass(frozen=True)
class Votes:
    """The verdicts on some answers, the policy's answer shown first and then second.

    points: (answers, 2) 1 win, 0.5 tie, 0 loss of the policy; NaN where invalid. weights: (answers, 2) as how many
    votes each counts in Arena-Hard's score. prompts: (answers,) each one's prompt, from 0. more_tokens: (answers,) the
    answer's tokens minus the baseline answer's.
    """

    points: np.ndarray
    weights: np.ndarray
    prompts: np.ndarray
    more_tokens: np.ndarray
    answers: pd.DataFrame | None = None
    """The rows of answers.parquet, where they have the texts."""

    @classmethod
    def of(cls, answers: pd.DataFrame) -> "Votes":
        """Collect the votes in rows of answers.parquet."""
        first, second = answers["verdict_ab"], answers["verdict_ba"]
        return cls(
            points=np.column_stack([first.map(statistics.POINTS), 1 - second.map(statistics.POINTS)]).astype(float),
            weights=answers[["verdict_ab", "verdict_ba"]].map(statistics.VOTES.get).fillna(0).to_numpy(dtype=float),
            prompts=pd.factorize(answers["prompt_id"], sort=True)[0],
            more_tokens=(answers["answer_tokens"] - answers["baseline_tokens"]).to_numpy(dtype=float),
            answers=answers if "answer" in answers else None,
        )

    @property
    def invalid(self) -> int:
        """How many verdicts are missing, of two to every answer."""
        return int(np.isnan(self.points).sum())

    @property
    def outcomes(self) -> np.ndarray:
        """(answers,) mean over the valid orders; NaN where there is none."""
        return statistics.prompt_means(self.points.T)

    def bounds(self) -> tuple[float, float]:
        """Return the win rates if every invalid verdict were a loss, and if it were a win."""
        outcomes = (np.nan_to_num(self.points, nan=missing).mean(axis=1) for missing in (0.0, 1.0))
        worst, best = (np.bincount(self.prompts, each) / np.bincount(self.prompts) for each in outcomes)
        return float(worst.mean()), float(best.mean())

    def arena_hard(self) -> statistics.Interval | None:
        """Return W_AH with its interval over prompts: `A>>B` is 3 votes, `A>B` is 1, a tie one vote of 0.5."""
        won = np.bincount(self.prompts, (self.weights * np.nan_to_num(self.points)).sum(axis=1))
        cast = np.bincount(self.prompts, self.weights.sum(axis=1))
        return statistics.ratio_interval(won, cast)

    def length_controlled(self) -> statistics.Interval | None:
        """Return LC with its interval over prompts."""
        return adjusted.rate_at_equal_length(self.outcomes, self.more_tokens, self.prompts)

    def equal_lengths(self) -> float:
        """Return the share of answers within a quarter sd of the baseline's length; NaN where none has a length."""
        d = self.more_tokens[~(np.isnan(self.outcomes) | np.isnan(self.more_tokens))]
        return float((np.abs(d) <= d.std() / 4).mean()) if len(d) else np.nan

    def consistency(self) -> float | None:
        """Return the share of answers whose two valid verdicts name the same winner or a tie; None without any."""
        both = self.points[~np.isnan(self.points).any(axis=1)]
        return float((both[:, 0] == both[:, 1]).mean()) if len(both) else None


def votes_by_label(run: results.Run) -> dict[str, Votes]:
    """Return the votes of every arm and confirmed winner that one judge judged."""
    answers = rows.judged_answers(run)
    by_panel = answers["trial_id"].isin(rows.judged_verdicts(run)["trial_id"])
    answers = answers[answers["trial_id"].isin(rows.judged_trials(run)["trial_id"]) & ~by_panel]
    return {str(label): Votes.of(group) for label, group in answers.groupby("label")}


def of_panel(run: results.Run, row: Mapping[Any, Any]) -> list[tuple[dict[Any, Any], Votes]]:
    """Split a row of the main table by the judges of a panel, with each one's win rate and votes."""
    answer = ["trial_id", "prompt_id", "turn"]
    texts = ["answer", "answer_tokens", "baseline_answer", "baseline_tokens"]
    verdicts = rows.judged_verdicts(run)
    verdicts = verdicts[verdicts["label"] == row["label"]].merge(run.answers[[*answer, *texts]], on=answer)
    judge_rows = []
    for judge, judge_verdicts in verdicts.groupby("judge"):
        wide = judge_verdicts.pivot_table(index="seed", columns="prompt_id", values="outcome", dropna=False)
        rate = statistics.row_interval(wide.to_numpy(dtype=float), rows.topics_by_prompt(run, wide.columns))
        judge_row = {**row, **statistics.columns({"win_rate": rate}), "judge": str(judge)}
        judge_rows.append((judge_row, Votes.of(judge_verdicts)))
    return judge_rows


def judging(run: results.Run, main: Table, difficulties: Difficulties | None = None) -> Table:
    """Return a row for each judged row of the main table; none where the exact judge gave all verdicts.

    In `frame` all rates are shares (0..1). difficulties: of the prompts, for AlpacaEval's rate; those of other prompts
    raise InputError.
    """
    judge, votes = rows.judge_of(run), votes_by_label(run)
    if judge.partition(":")[0] == EXACT and not difficulties and not any(each.invalid for each in votes.values()):
        votes = {}
    judged_rows: list[tuple[dict[Any, Any], Votes]] = []
    for row in main.frame.to_dict("records"):
        judged_rows += [(row, votes[row["label"]])] if row["label"] in votes else of_panel(run, row)
    if not judged_rows:
        return empty("Of the judging there is nothing to say.")
    frame = pd.DataFrame([_row(run, row, row_votes, difficulties) for row, row_votes in judged_rows])
    low, high = (numbers(frame, name, 1, scale=100) for name in ("worst_case", "best_case"))
    counts = zip(frame["invalid_verdicts"], frame["verdicts"], low, high, strict=True)
    scope = "of each judge by itself" if "judge" in frame else "as in the main table"
    return Table(
        frame=frame,
        caption=f"{rows.name_of(run)}: what the verdicts say beyond the win rate. Judge {judge}; win rate {scope}, "
        "95 % intervals over prompts: of W_AH Wilson's score on the effective number of prompts, of LC and SC "
        "Student's on the log odds with robust errors.",
        notes=[*_notes(frame, difficulties), *_took(run)],
        columns=(
            names("label", frame),
            *((names("judge", frame),) if "judge" in frame else ()),
            measure("win rate %", frame, "win_rate", 1, scale=100),
            *(
                Column(f"{head} % [95 %]", _rate_cells(frame, name), words=words and f"{words}, {head} % [95 %]")
                for head, name, words in RATES
                if name in frame
            ),
            Column("longer", numbers(frame, "more_tokens", 1, signed=True), keep=4),
            Column("near %", numbers(frame, "equal_lengths", 0, scale=100), keep=4),
            Column("consistent %", numbers(frame, "order_consistency", 1, scale=100)),
            Column("missing", tuple(f"{n} of {all_}{f' ({a}–{b})' * bool(n)}" for n, all_, a, b in counts)),
        ),
    )


def _notes(frame: pd.DataFrame, difficulties: Difficulties | None) -> list[str]:
    has_interval, rates = frame["win_rate_low"].notna(), ("length_controlled", "style_controlled")
    far = f"; below {FEWEST_EQUAL:.0%} LC is extrapolated (*), and its interval does not say how far"
    notes = [
        "W_AH: Arena-Hard's score, in which A>>B counts as 3 votes, A>B as 1 and a tie as one vote of 0.5.",
        "LC: sigmoid(b0) of a binomial GLM of the outcomes on tanh(d / sd), d the answer's tokens minus the "
        "baseline answer's (Dubois et al. 2024, without terms for model and prompt): the win rate at equal lengths, "
        "which is not AlpacaEval's number. longer: mean of d. "
        f"near: share of the answers with |d| of at most sd / 4{far if frame[EXTRAPOLATED].any() else ''}.",
    ]
    if difficulties is not None:
        lacks = "" if len(difficulties.outcomes) else ", without its rows of a brief and a verbose answerer"
        notes.append(
            f"AlpacaEval LC: its own model with the prompts' difficulties in {difficulties.place.name}{lacks}, each "
            "seed fitted alone; interval like the win rate's. Beside its leaderboard only with its prompts, baseline "
            "and judge."
        )
    notes.append(
        "SC: rate at equal style, by Arena-Hard's features of length, headers, lists and bold texts; from "
        f"{adjusted.FEWEST} prompts a coefficient on. Arena-Hard's own number fits all models at once."
    )
    if any((has_interval & frame[rate].notna() & frame[f"{rate}_low"].isna()).any() for rate in rates):
        notes.append("LC and SC have no ends where all outcomes are the same.")
    if (frame["win_rate"].notna() & frame["length_controlled"].isna()).any():
        notes.append("No LC: length alone tells wins from losses, or equal length is too far from all answers.")
    notes.append(
        "consistent: share of the answers with two valid verdicts that name the same winner, or a tie, in both orders. "
        "missing: verdicts that are missing, with the win rate if all of them were losses and if all were wins."
    )
    return notes + [f"Without ends: {statistics.TOO_FEW}."] * bool((frame["win_rate"].notna() & ~has_interval).any())


def _took(run: results.Run) -> list[str]:
    """Say what the judge took in the whole run, and why verdicts are missing, from the trials' own files."""
    files = [run.path / "trials" / str(trial_id) / results.JUDGING for trial_id in run.trials["trial_id"]]
    records = [_read(file) for file in files if file.exists()]
    reasons: Counter[str] = Counter()
    for record in records:
        reasons.update(record["missing"])
        reasons["no valid verdict, however often it was asked for"] += record["invalid"]
    missing = [f"{count} since {reason}" for reason, count in sorted((+reasons).items())]
    judged, scope = len(rows.judged_trials(run)), "all trials"
    if len(records) < judged:
        scope = f"{len(records)} of {judged} trials, whose {results.JUDGING} is there"
    sentences = [f"Missing verdicts of {scope}: {'; '.join(missing)}."] if missing else []
    for name, words in ASIDE.items():
        if count := sum(record.get(name, 0) for record in records):
            sentences.append(f"Of {scope} {count} {words}.")
    # Each trial tells of the run so far.
    if records and (last := max(records, key=lambda record: record["requests"]))["requests"]:
        cost = "" if last["cost"] is None else f", cost {last['cost']:.2f}"
        tokens = last["input_tokens"] + last["output_tokens"]
        sentences.append(
            f"The judge took {last['requests']:,} requests and {tokens:,} tokens in this run so far{cost}."
        )
    return sentences


def _read(file: Path) -> dict[str, Any]:
    """Read what a trial's judge took. Raises InputError where that cannot be read."""
    with rows.reading(str(file), "Copy it again, or delete it to report without it."):
        record = json.loads(file.read_text(encoding="utf-8"))
        counts = [record[name] for name in ("invalid", "requests", "input_tokens", "output_tokens")]
        if not all(isinstance(count, int) for count in [*counts, *record["missing"].values()]):
            raise ValueError("it is not what a trial writes")
        return {"cost": None, **record}


def _rate_cells(frame: pd.DataFrame, name: str) -> tuple[str, ...]:
    far = frame[EXTRAPOLATED] & (name in ("length_controlled", "alpaca_eval"))
    intervals = interval_cells(frame, name, 1, scale=100)
    return tuple(f"{cell}{'*' * starred}" for cell, starred in zip(intervals, far, strict=True))


def _row(
    run: results.Run, main: Mapping[Any, Any], votes: Votes, difficulties: Difficulties | None
) -> dict[str, object]:
    low, high = votes.bounds()
    equal = votes.equal_lengths()
    rates = {"arena_hard": votes.arena_hard(), "length_controlled": votes.length_controlled(), "style_controlled": None}
    of_alpaca: dict[str, statistics.Interval | None] = {} if difficulties is None else {"alpaca_eval": None}
    if (answers := votes.answers) is not None:
        style = adjusted.features(answers)
        rates["style_controlled"] = adjusted.rate_at_equal_style(votes.outcomes, style, votes.prompts)
        if difficulties is not None:
            prompts = pd.Index(answers["prompt_id"].unique())
            topics = rows.topics_by_prompt(run, prompts)
            by_prompt = None if topics is None else pd.Series(topics, index=prompts)
            of_alpaca["alpaca_eval"] = adjusted.alpaca_eval_rate(answers, difficulties, by_prompt)
    return {
        "label": str(main["label"]),
        **({"judge": main["judge"]} if "judge" in main else {}),
        **{name: main[name] for name in statistics.interval_names("win_rate")},
        **statistics.columns(rates),
        EXTRAPOLATED: rates["length_controlled"] is not None and equal < FEWEST_EQUAL,
        "equal_lengths": equal,
        "more_tokens": float(pd.Series(votes.more_tokens).mean()),
        "order_consistency": votes.consistency(),
        "verdicts": votes.points.size,
        "invalid_verdicts": votes.invalid,
        "worst_case": low,
        "best_case": high,
        **statistics.columns(of_alpaca),
    }


def cohens_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Return two judges' agreement beyond chance on the same verdicts (Cohen 1960); NaN where chance is certain."""
    classes = sorted(set(statistics.POINTS.values()))
    shares = np.array([[np.mean((first == a) & (second == b)) for b in classes] for a in classes])
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
    verdicts, records = rows.judged_verdicts(run), []
    for row in main.frame.to_dict("records"):
        row_verdicts = verdicts[verdicts["label"] == row["label"]]
        if row_verdicts.empty:
            continue
        answer = row_verdicts.groupby(["judge", "prompt_id", "trial_id", "turn"])["outcome"].mean()
        outcomes = answer.groupby(["judge", "prompt_id"]).mean().unstack("prompt_id")
        topics, complete = rows.topics_by_prompt(run, outcomes.columns), outcomes.notna().all()
        by_judge = outcomes.loc[:, complete].mean(axis=1)
        records.append(
            {
                **{name: row[name] for name in ("label", *statistics.interval_names("win_rate"))},
                **statistics.columns({"any_judge": pooled_interval(outcomes.to_numpy(dtype=float), topics)}),
                "judges": len(outcomes),
                "lowest": by_judge.min(),
                "highest": by_judge.max(),
                "noise": np.sqrt(noise(row_verdicts)),
                "partial": int((~complete & outcomes.notna().any()).sum()),
                "prompts": int(complete.sum()),
            }
        )
    if not records:
        return empty("No panel judged this run.")
    frame = pd.DataFrame(records)
    few, repeated = frame["judges"].max() < FEWEST_JUDGES, frame["noise"].notna().any()
    notes = ["any judge: interval over other judges and prompts, both random (two-way analysis of variance)."]
    if few:
        notes = [f"Of fewer than {FEWEST_JUDGES} judges nothing is claimed of others: the intervals are of these only."]
    if repeated:
        notes.append("noise: standard deviation of a judge's outcome between repeats. The interval has it.")
    lacking = [(r["partial"], r["partial"] + r["prompts"], r["label"]) for r in records if r["partial"]]
    if words := "; ".join(f"{some} of {every} prompts of {label}" for some, every, label in lacking):
        notes.append(f"Partial: not all judges have a verdict on {words}. These prompts are in no pooled win rate.")
    return Table(
        frame=frame,
        caption=f"{rows.name_of(run)}: the panel {rows.judge_of(run)}. Pooled win rate, the mean over judges, with the "
        "main table's interval, which is of these judges; lowest and highest: of a judge, on the prompts of all.",
        notes=notes,
        columns=(
            names("label", frame),
            measure("pooled %", frame, "win_rate", 1, scale=100, keep=9),
            *(() if few else (measure("any judge %", frame, "any_judge", 1, scale=100, keep=8),)),
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
    for pair in combinations(judges, 2):
        both = points[list(pair)].dropna()
        first_points, second_points = both.to_numpy().T
        for prompt, gap in both.diff(axis=1).iloc[:, 1].abs().groupby("prompt_id").mean().items():
            distances[str(prompt)] += gap
        records.append(
            {
                **dict(zip(("judge", "other"), pair, strict=True)),
                "verdicts": len(both),
                "agreement": float((first_points == second_points).mean()) if len(both) else np.nan,
                "kappa": cohens_kappa(first_points, second_points) if len(both) else np.nan,
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
            names("judge", frame),
            names("other", frame),
            Column("verdicts", numbers(frame, "verdicts", 0)),
            Column("agree %", numbers(frame, "agreement", 1, scale=100)),
            Column("kappa", numbers(frame, "kappa", 2)),
        ),
    )
