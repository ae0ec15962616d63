"""What verdicts say beyond the win rate: Arena-Hard's score, rates at equal length and style, consistency."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.errors import InputError
from slime_ray.runs import results

from . import controlled, rows, statistics
from .controlled import Difficulties
from .printing import Column, Table, cells, empty, interval_cells, numbers

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
"""Its verdicts depend on neither order nor strength nor luck: only those that are missing have to be spoken of."""
ASIDE = {
    "failed": "comparisons were not judged, since an answer is $ERROR$, a failed generation",
    "empty": "comparisons have an empty answer, judged as it is",
}
"""What a trial's judging.json counts apart, in words."""


@dataclass(frozen=True)
class Votes:
    """The verdicts on some answers, the policy's answer shown first and then second.

    points: (answers, 2) 1 win, 0.5 tie, 0 loss of the policy; NaN where the verdict is invalid. weights: (answers, 2)
    votes that a verdict counts as in Arena-Hard's score, 0 where it is invalid. prompts: (answers,) each one's prompt,
    from 0. more_tokens: (answers,) the answer's tokens minus the baseline answer's.
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
        votes = [verdicts.map(statistics.VOTES).fillna(0) for verdicts in (first, second)]
        return cls(
            points=np.column_stack([first.map(statistics.POINTS), 1 - second.map(statistics.POINTS)]).astype(float),
            weights=np.column_stack(votes).astype(float),
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
        return controlled.rate_at_equal_length(self.outcomes, self.more_tokens, self.prompts)

    def equal_lengths(self) -> float:
        """Return the share of answers within a quarter sd of the baseline's length; NaN where none has a length."""
        d = self.more_tokens[~(np.isnan(self.outcomes) | np.isnan(self.more_tokens))]
        return float((np.abs(d) <= d.std() / 4).mean()) if len(d) else np.nan

    def consistency(self) -> float | None:
        """Return the share of answers whose two valid verdicts name the same winner, or a tie, in both orders.

        How strongly a verdict prefers its winner does not count. None where no answer has two valid verdicts.
        """
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
    verdicts = rows.judged_verdicts(run)
    verdicts = verdicts[verdicts["label"] == row["label"]]
    texts = ["answer", "answer_tokens", "baseline_answer", "baseline_tokens"]
    verdicts = verdicts.merge(run.answers[[*answer, *texts]], on=answer)
    judge_rows = []
    for judge, judge_verdicts in verdicts.groupby("judge"):
        wide = judge_verdicts.pivot_table(index="seed", columns="prompt_id", values="outcome", dropna=False)
        rate = statistics.row_interval(wide.to_numpy(dtype=float), rows.topics_by_prompt(run, wide.columns))
        columns = statistics.columns({"win_rate": rate})
        judge_rows.append(({**row, **columns, "judge": str(judge)}, Votes.of(judge_verdicts)))
    return judge_rows


def judging(run: results.Run, main: Table, difficulties: Difficulties | None = None) -> Table:
    """Return a row for each judged row of the main table; none where the exact judge gave all verdicts.

    In `frame` all rates are shares (0..1). difficulties: of the prompts, for AlpacaEval's rate.

    Raises:
        InputError: The difficulties are of other prompts.
    """
    judge = rows.judge_of(run)
    votes = votes_by_label(run)
    if (
        judge.partition(":")[0] == EXACT
        and difficulties is None
        and not any(row_votes.invalid for row_votes in votes.values())
    ):
        votes = {}
    judged_rows: list[tuple[dict[Any, Any], Votes]] = []
    for row in main.frame.to_dict("records"):
        judged_rows += [(row, votes[row["label"]])] if row["label"] in votes else of_panel(run, row)
    if not judged_rows:
        return empty("Of the judging there is nothing to say.")
    frame = pd.DataFrame([_row(str(row["label"]), row, row_votes) for row, row_votes in judged_rows])
    if difficulties is not None:
        prompts = pd.Index(rows.judged_answers(run)["prompt_id"].unique())
        topics = rows.topics_by_prompt(run, prompts)
        of_prompts = None if topics is None else pd.Series(topics, index=prompts)
        rates = [
            None
            if row_votes.answers is None
            else controlled.alpaca_eval_rate(row_votes.answers, difficulties, of_prompts)
            for _, row_votes in judged_rows
        ]
        frame = frame.join(pd.DataFrame([statistics.columns({"alpaca_eval": rate}) for rate in rates]))
    scope = "of each judge by itself" if "judge" in frame else "as in the main table"
    return Table(
        frame=frame,
        caption=f"{rows.name_of(run)}: what the verdicts say beyond the win rate. Judge {judge}; win rate {scope}, "
        "95 % intervals over prompts: of W_AH Wilson's score on the effective number of prompts, of LC and SC "
        "Student's on the log odds with robust errors.",
        notes=[*_notes(frame, difficulties), *_took(run)],
        columns=(
            Column("label", tuple(frame["label"]), numeric=False, keep=10),
            *((Column("judge", tuple(frame["judge"]), numeric=False, keep=10),) if "judge" in frame else ()),
            Column("win rate % [95 %]", interval_cells(frame, "win_rate", 1, scale=100)),
            *(
                Column(f"{head} % [95 %]", _rate_cells(frame, name), words=words and f"{words}, {head} % [95 %]")
                for head, name, words in RATES
                if name in frame
            ),
            Column("longer", numbers(frame, "more_tokens", 1, signed=True), keep=4),
            Column("near %", numbers(frame, "equal_lengths", 0, scale=100), keep=4),
            Column("consistent %", numbers(frame, "order_consistency", 1, scale=100)),
            Column("missing", cells(frame, _missing_cell)),
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
        f"{controlled.FEWEST} prompts a coefficient on. Arena-Hard's own number fits all models at once."
    )
    if any((has_interval & frame[rate].notna() & frame[f"{rate}_low"].isna()).any() for rate in rates):
        notes.append("LC and SC have no ends where all outcomes are the same.")
    if (frame["win_rate"].notna() & frame["length_controlled"].isna()).any():
        notes.append("No LC: length alone tells wins from losses, or equal length is too far from all answers.")
    notes += [
        "consistent: share of the answers with two valid verdicts that name the same winner, or a tie, in both orders.",
        "missing: verdicts that are missing, with the win rate if all of them were losses and if all were wins.",
    ]
    return notes + [f"Without ends: {statistics.TOO_FEW}."] * bool((frame["win_rate"].notna() & ~has_interval).any())


def _took(run: results.Run) -> list[str]:
    """Say what the judge took in the whole run, and why verdicts are missing, from the trials' own files."""
    files = [run.path / "trials" / str(trial_id) / results.JUDGING for trial_id in run.trials["trial_id"]]
    # Whoever copies a run may leave them out.
    records = [_read(file) for file in files if file.exists()]
    reasons: Counter[str] = Counter()
    for record in records:
        reasons.update(record["missing"])
        reasons["no valid verdict, however often it was asked for"] += record["invalid"]
    missing = [f"{count} since {reason}" for reason, count in sorted((+reasons).items())]
    judged = len(rows.judged_trials(run))
    scope = (
        "all trials"
        if len(records) >= judged
        else f"{len(records)} of {judged} trials, whose {results.JUDGING} is there"
    )
    sentences = [f"Missing verdicts of {scope}: {'; '.join(missing)}."] if missing else []
    for name, words in ASIDE.items():
        if count := sum(record.get(name, 0) for record in records):
            sentences.append(f"Of {scope} {count} {words}.")
    # Each trial tells of the run so far.
    last = max(records, key=lambda record: record["requests"], default=None)
    if last and last["requests"]:
        cost = "" if last["cost"] is None else f", cost {last['cost']:.2f}"
        tokens = last["input_tokens"] + last["output_tokens"]
        sentences.append(
            f"The judge took {last['requests']:,} requests and {tokens:,} tokens in this run so far{cost}."
        )
    return sentences


def _read(file: Path) -> dict[str, Any]:
    """Read what a trial's judge took. Raises InputError where that cannot be read."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        numbers = [record[name] for name in ("invalid", "requests", "input_tokens", "output_tokens")]
        if not all(isinstance(count, int) for count in [*numbers, *record["missing"].values()]):
            raise ValueError("it is not what a trial writes")
        return {"cost": None, **record}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} cannot be read: {error}. Copy it again, or delete it to report without it.") from None


def _rate_cells(frame: pd.DataFrame, name: str) -> tuple[str, ...]:
    far = frame[EXTRAPOLATED] & (name in ("length_controlled", "alpaca_eval"))
    intervals = interval_cells(frame, name, 1, scale=100)
    return tuple(f"{cell}{'*' * starred}" for cell, starred in zip(intervals, far, strict=True))


def _row(label: str, main: Mapping[Any, Any], votes: Votes) -> dict[str, object]:
    low, high = votes.bounds()
    equal = votes.equal_lengths()
    rates = {"arena_hard": votes.arena_hard(), "length_controlled": votes.length_controlled(), "style_controlled": None}
    if votes.answers is not None:
        style = controlled.features(votes.answers)
        rates["style_controlled"] = controlled.rate_at_equal_style(votes.outcomes, style, votes.prompts)
    return {
        "label": label,
        **({"judge": main["judge"]} if "judge" in main else {}),
        **{name: main[name] for name in statistics.interval_names("win_rate")},
        **statistics.columns(rates),
        EXTRAPOLATED: rates["length_controlled"] is not None and equal < FEWEST_EQUAL,
        "equal_lengths": equal,
        "more_tokens": float(np.nanmean(votes.more_tokens)) if (~np.isnan(votes.more_tokens)).any() else np.nan,
        "order_consistency": votes.consistency(),
        "verdicts": votes.points.size,
        "invalid_verdicts": votes.invalid,
        "worst_case": low,
        "best_case": high,
    }


def _missing_cell(row: pd.Series) -> str:
    bounds = f" ({100 * row['worst_case']:.1f}–{100 * row['best_case']:.1f})" if row["invalid_verdicts"] else ""
    return f"{row['invalid_verdicts']} of {row['verdicts']}{bounds}"
