"""What verdicts say beyond the win rate: Arena-Hard's score, length control, consistency, invalid ones.

The length-controlled rate is what the win rate would be if the policy's answers were as long as the baseline's: a
binomial GLM with logit link of an answer's outcome on x = tanh(d / sd), d its tokens more than the baseline's, sd their
standard deviation over the answers at hand. The rate is sigmoid(b0), the fitted outcome at x = 0 (Dubois et al. 2024,
without their terms for the model and the prompt).
"""

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

from . import rows, statistics, style
from .printing import Column, Table, cells, empty, interval_cells, numbers

STEPS = 25
CLOSE = 1e-3
"""Newton's method ends with a step as short as this: the error left is of the order of its square."""
FARTHEST = 20.0
"""Coefficients go no farther: those of a resample that has no finite optimum."""
AT_ONCE = 500_000
"""Answers times resamples that are held at a time: what a cache holds."""
FEWEST_EQUAL = 0.1
"""Below this share of answers near equal length LC rests on the form of the curve: it is extrapolated."""
EXTRAPOLATED = "length_controlled_extrapolated"
EXACT = "exact"
"""Its verdicts depend on neither order nor strength nor luck: only those that are missing have to be spoken of."""
ASIDE = {
    "failed": "comparisons were not judged, since an answer is $ERROR$, a failed generation",
    "empty": "comparisons have an empty answer, judged as it is",
}
"""What a trial's judging.json counts apart, in words."""


def length_controlled_rate(
    outcomes: np.ndarray,
    more_tokens: np.ndarray,
    prompts: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = statistics.RESAMPLES,
) -> statistics.Interval | None:
    """LC with its percentile interval; the prompts are resampled, with all answers to each. sd stays as it was.

    All (answers,). outcomes: 0 to 1. more_tokens: the answer's length minus the baseline answer's. prompts: the place
    of each answer's prompt, from 0. Answers that lack an outcome or a length are left out. Where all outcomes are
    the same so is LC, without ends; None without answers, and where length alone tells wins from losses.
    """
    known = ~(np.isnan(outcomes) | np.isnan(more_tokens))
    if not known.any():
        return None
    order = np.argsort(prompts[known], kind="stable")
    y, d = outcomes[known][order], more_tokens[known][order]
    names, places = np.unique(prompts[known][order], return_inverse=True)
    if np.ptp(y) == 0:
        return statistics.Interval(float(y[0]), np.nan, np.nan)
    spread = d.std()
    x = np.tanh(d / spread) if spread > 0 else np.zeros(len(d))
    if _told_apart(y, x):
        return None
    fitted = _fit(y, x, np.ones((len(y), 1)), np.zeros((2, 1)))
    counts = statistics.draws(len(names), seed, resamples)
    y, x, start = (values.astype(np.float32) for values in (y, x, fitted))
    intercepts = np.empty(resamples)
    size = max(1, AT_ONCE // len(y))
    for place in range(0, resamples, size):
        block = counts[:, place : place + size]
        # One answer to each prompt: they are in the order of the draws already.
        block = block if len(names) == len(y) else block[places]
        intercepts[place : place + size] = _fit(y, x, block, np.repeat(start, block.shape[1], axis=1))[0]
    return statistics.interval(float(_sigmoid(fitted[0, 0])), _sigmoid(intercepts), units=len(names))


def _told_apart(y: np.ndarray, x: np.ndarray) -> bool:
    """Whether a length divides all wins from all losses, what is neither standing at it: then no optimum is finite."""
    won, lost = x[y > 0], x[y < 1]
    return bool(x.min() < x.max() and (lost.max() <= won.min() or won.max() <= lost.min()))


def _fit(y: np.ndarray, x: np.ndarray, counts: np.ndarray, start: np.ndarray) -> np.ndarray:
    """(2, resamples) coefficients of maximum likelihood by Newton's method. counts: (answers, resamples)."""
    b = start
    design = np.stack([np.ones_like(x), x, x * x])
    # Keeps the steps finite where all x of a resample are equal; the optimum is not moved.
    little = 1e-6 * len(y)
    for _ in range(STEPS):
        fitted = _sigmoid(b[0] + x[:, None] * b[1])
        gradient = design[:2] @ (counts * (y[:, None] - fitted))
        h00, h01, h11 = design @ (counts * (fitted * (1 - fitted)))
        h00, h11 = h00 + little, h11 + little
        step = np.stack([h11 * gradient[0] - h01 * gradient[1], h00 * gradient[1] - h01 * gradient[0]])
        step /= h00 * h11 - h01 * h01
        b = np.clip(b + np.clip(step, -2, 2), -FARTHEST, FARTHEST).astype(y.dtype)
        if np.abs(step).max() < CLOSE:
            break
    return b


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-values)))


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
    style: np.ndarray | None = None
    """(answers, 4) differences of style, where the texts are known."""

    @classmethod
    def of(cls, answers: pd.DataFrame) -> "Votes":
        """The votes in rows of answers.parquet."""
        first, second = answers["verdict_ab"], answers["verdict_ba"]
        votes = [verdicts.map(statistics.VOTES).fillna(0) for verdicts in (first, second)]
        return cls(
            points=np.column_stack([first.map(statistics.POINTS), 1 - second.map(statistics.POINTS)]).astype(float),
            weights=np.column_stack(votes).astype(float),
            prompts=pd.factorize(answers["prompt_id"], sort=True)[0],
            more_tokens=(answers["answer_tokens"] - answers["baseline_tokens"]).to_numpy(dtype=float),
            style=style.features(answers) if "answer" in answers else None,
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
        """Win rates if every invalid verdict were a loss, and if every one were a win."""
        return self._rate(0.0), self._rate(1.0)

    def _rate(self, missing: float) -> float:
        outcomes = np.nan_to_num(self.points, nan=missing).mean(axis=1)
        return float((np.bincount(self.prompts, outcomes) / np.bincount(self.prompts)).mean())

    def arena_hard(self) -> statistics.Interval | None:
        """W_AH with its interval over prompts: `A>>B` counts as 3 votes, `A>B` as 1, a tie as one vote of 0.5."""
        won = np.bincount(self.prompts, (self.weights * np.nan_to_num(self.points)).sum(axis=1))
        cast = np.bincount(self.prompts, self.weights.sum(axis=1))
        return statistics.ratio_interval(won, cast)

    def length_controlled(self, *, resamples: int = statistics.RESAMPLES) -> statistics.Interval | None:
        """LC with its interval over prompts."""
        return length_controlled_rate(self.outcomes, self.more_tokens, self.prompts, resamples=resamples)

    def equal_lengths(self) -> float:
        """Share of the answers whose length is within a quarter sd of the baseline's; NaN where none has a length."""
        d = self.more_tokens[~(np.isnan(self.outcomes) | np.isnan(self.more_tokens))]
        return float((np.abs(d) <= d.std() / 4).mean()) if len(d) else np.nan

    def style_controlled(self) -> statistics.Interval | None:
        """The rate at equal style with its interval over prompts."""
        return None if self.style is None else style.rate_at_equal_style(self.outcomes, self.style, self.prompts)

    def consistency(self) -> float | None:
        """Share of the answers with two valid verdicts whose verdicts agree: the same winner, or a tie, in both orders.

        How strongly a verdict prefers its winner does not count. None where no answer has two valid verdicts.
        """
        both = self.points[~np.isnan(self.points).any(axis=1)]
        return float((both[:, 0] == both[:, 1]).mean()) if len(both) else None


def votes_by_label(run: results.Run) -> dict[str, Votes]:
    """The votes of every arm and confirmed winner of which one judge judged anything."""
    answers = rows.judged_answers(run)
    by_panel = answers["trial_id"].isin(rows.judged_verdicts(run)["trial_id"])
    answers = answers[answers["trial_id"].isin(rows.judged_trials(run)["trial_id"]) & ~by_panel]
    return {str(label): Votes.of(own) for label, own in answers.groupby("label")}


def of_panel(run: results.Run, row: Mapping[Any, Any]) -> list[tuple[dict[Any, Any], Votes]]:
    """A row of the main table once for each judge of a panel, with that judge's win rate and votes."""
    answer = ["trial_id", "prompt_id", "turn"]
    verdicts = rows.judged_verdicts(run)
    verdicts = verdicts[verdicts["label"] == row["label"]]
    texts = ["answer", "answer_tokens", "baseline_answer", "baseline_tokens"]
    verdicts = verdicts.merge(run.answers[[*answer, *texts]], on=answer)
    found = []
    for judge, own in verdicts.groupby("judge"):
        wide = own.pivot_table(index="seed", columns="prompt_id", values="outcome", dropna=False)
        rate = statistics.row_interval(wide.to_numpy(dtype=float), rows.topics_by_prompt(run, wide.columns))
        columns = statistics.columns({"win_rate": rate})
        found.append(({**row, **columns, "judge": str(judge)}, Votes.of(own)))
    return found


def judging(run: results.Run, main: Table) -> Table:
    """A row for each row of the main table that was judged; none where the exact judge gave all verdicts.

    In `frame` all rates are shares (0..1).
    """
    judge = rows.judge_of(run)
    votes = votes_by_label(run)
    if judge.partition(":")[0] == EXACT and not any(own.invalid for own in votes.values()):
        votes = {}
    shown: list[tuple[dict[Any, Any], Votes]] = []
    for row in main.frame.to_dict("records"):
        shown += [(row, votes[row["label"]])] if row["label"] in votes else of_panel(run, row)
    if not shown:
        return empty("Of the judging there is nothing to say.")
    frame = pd.DataFrame([_row(str(row["label"]), row, own) for row, own in shown])
    whose = "of each judge by itself" if "judge" in frame else "as in the main table"
    return Table(
        frame=frame,
        caption=f"{rows.name_of(run)}: what the verdicts say beyond the win rate. Judge {judge}; win rate {whose}, "
        "95 % intervals over prompts: of W_AH Wilson's score on the effective number of prompts, of LC percentile "
        f"bootstrap, {statistics.RESAMPLES:,} resamples.",
        notes=[
            "W_AH: Arena-Hard's score, in which A>>B counts as 3 votes, A>B as 1 and a tie as one vote of 0.5.",
            "LC: sigmoid(b0) of a binomial GLM of the outcomes on tanh(d / sd), d the answer's tokens minus the "
            "baseline answer's: the win rate at equal lengths, which is not AlpacaEval's number. longer: mean of d. "
            "near: share of the answers with |d| of at most sd / 4"
            + (
                f"; below {FEWEST_EQUAL:.0%} LC is extrapolated (*), and its interval does not say how far."
                if frame[EXTRAPOLATED].any()
                else "."
            ),
            "SC: rate at equal style, by Arena-Hard's features of length, headers, lists and bold texts, with robust "
            f"errors; from {style.FEWEST} prompts a coefficient on. Arena-Hard's own number fits all models at once.",
            *(["LC and SC have no ends where all outcomes are the same."] if _same_outcomes(frame) else []),
            "consistent: share of the answers with two valid verdicts that name the same winner, or a tie, in both "
            "orders.",
            "missing: verdicts that are missing, with the win rate if all of them were losses and if all were wins.",
            *(
                [f"Without ends: {statistics.TOO_FEW}."]
                if (frame["win_rate"].notna() & frame["win_rate_low"].isna()).any()
                else []
            ),
            *_took(run),
        ],
        columns=(
            Column("label", tuple(frame["label"]), numeric=False, keep=10),
            *((Column("judge", tuple(frame["judge"]), numeric=False, keep=10),) if "judge" in frame else ()),
            Column("win rate % [95 %]", interval_cells(frame, "win_rate", 1, scale=100)),
            Column(
                "W_AH % [95 %]",
                interval_cells(frame, "arena_hard", 1, scale=100),
                words="as Arena-Hard counts, W_AH % [95 %]",
            ),
            Column("LC % [95 %]", _length_controlled_cells(frame), words="length-controlled, LC % [95 %]"),
            Column(
                "SC % [95 %]",
                interval_cells(frame, "style_controlled", 1, scale=100),
                words="style-controlled, SC % [95 %]",
            ),
            Column("longer", numbers(frame, "more_tokens", 1, signed=True), keep=4),
            Column("near %", numbers(frame, "equal_lengths", 0, scale=100), keep=4),
            Column("consistent %", numbers(frame, "order_consistency", 1, scale=100)),
            Column("missing", cells(frame, _invalid_cell)),
        ),
    )


def _same_outcomes(frame: pd.DataFrame) -> bool:
    known = frame["win_rate_low"].notna()
    rates = ("length_controlled", "style_controlled")
    return any((known & frame[rate].notna() & frame[f"{rate}_low"].isna()).any() for rate in rates)


def _took(run: results.Run) -> list[str]:
    """What the judge took in the whole run, and why verdicts are missing: sentences from the trials' own files."""
    files = [run.path / "trials" / str(trial_id) / results.JUDGING for trial_id in run.trials["trial_id"]]
    # Whoever copies a run may leave them out.
    told = [_read(file) for file in files if file.exists()]
    reasons: Counter[str] = Counter()
    for one in told:
        reasons.update(one["missing"])
        reasons["no valid verdict, however often it was asked for"] += one["invalid"]
    why = [f"{count} since {reason}" for reason, count in sorted((+reasons).items())]
    judged = len(rows.judged_trials(run))
    whose = "all trials" if len(told) >= judged else f"{len(told)} of {judged} trials, whose {results.JUDGING} is there"
    said = [f"Missing verdicts of {whose}: {'; '.join(why)}."] if why else []
    for name, words in ASIDE.items():
        if count := sum(one.get(name, 0) for one in told):
            said.append(f"Of {whose} {count} {words}.")
    # Each trial tells of the run so far.
    last = max(told, key=lambda one: one["requests"], default=None)
    if last and last["requests"]:
        cost = "" if last["cost"] is None else f", cost {last['cost']:.2f}"
        tokens = last["input_tokens"] + last["output_tokens"]
        said.append(f"The judge took {last['requests']:,} requests and {tokens:,} tokens in this run so far{cost}.")
    return said


def _read(file: Path) -> dict[str, Any]:
    """What a trial's judge took. Raises InputError where that cannot be read."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        numbers = [said[name] for name in ("invalid", "requests", "input_tokens", "output_tokens")]
        if not all(isinstance(one, int) for one in [*numbers, *said["missing"].values()]):
            raise ValueError("it is not what a trial writes")
        return {"cost": None, **said}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} cannot be read: {error}. Copy it again, or delete it to report without it.") from None


def _length_controlled_cells(frame: pd.DataFrame) -> tuple[str, ...]:
    shown = interval_cells(frame, "length_controlled", 1, scale=100)
    return tuple(f"{cell}*" if far else cell for cell, far in zip(shown, frame[EXTRAPOLATED], strict=True))


def _row(label: str, main: Mapping[Any, Any], votes: Votes) -> dict[str, object]:
    low, high = votes.bounds()
    equal = votes.equal_lengths()
    found = {"arena_hard": votes.arena_hard(), "length_controlled": votes.length_controlled()}
    found["style_controlled"] = votes.style_controlled()
    return {
        "label": label,
        **({"judge": main["judge"]} if "judge" in main else {}),
        **{name: main[name] for name in ("win_rate", "win_rate_low", "win_rate_high")},
        **statistics.columns(found),
        EXTRAPOLATED: found["length_controlled"] is not None and equal < FEWEST_EQUAL,
        "equal_lengths": equal,
        "more_tokens": float(np.nanmean(votes.more_tokens)) if (~np.isnan(votes.more_tokens)).any() else np.nan,
        "order_consistency": votes.consistency(),
        "verdicts": votes.points.size,
        "invalid_verdicts": votes.invalid,
        "worst_case": low,
        "best_case": high,
    }


def _invalid_cell(row: pd.Series) -> str:
    bounds = f" ({100 * row['worst_case']:.1f}–{100 * row['best_case']:.1f})" if row["invalid_verdicts"] else ""
    return f"{row['invalid_verdicts']} of {row['verdicts']}{bounds}"
