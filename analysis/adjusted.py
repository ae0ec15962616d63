"""Win rates adjusted: at equal length or style, by prompts' difficulty, and by a few strong labels.

The first three are binomial regressions of the outcomes on what sets two answers apart. LC is on x = tanh(d / sd), d
the tokens by which an answer is longer than the baseline's (Dubois et al. 2024, without their terms for model and
prompt). SC is on the features of Arena-Hard's style control: (a - b) / (a + b) of the lengths in tokens, and (a - b) /
(a + b + 1) of the densities of headers, list items and bold texts, per token. Arena-Hard fits all models at once on
centred features; here each row of the table has a fit of its own. Both are sigmoid(b0).

AlpacaEval's own LC has three terms: tanh of the difference of lengths in characters, the prompt's difficulty and the
model. The penalty on their coefficients is chosen by cross-validation. Two answerers, told to be brief and to be
verbose, are fitted with each model, at a tenth of the weight each. The rate is the mean over prompts, at equal length.

Labels are outcomes y of n prompts by people, or a stronger judge; the judge's own are f, also of N other prompts. The
corrected rate is mean(y) + l (mean_N(f) - mean_n(f)) with l = cov(y, f) / ((1 + n / N) var(f)), whatever the judge's
bias (Angelopoulos et al. 2023, PPI++, arXiv 2311.01453). Labelled prompts have to be drawn at random from all.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from slime_ray.errors import InputError
from slime_ray.runs.results import Run

from . import rows, statistics
from .printing import Column, Table, cells, measure, names, numbers
from .statistics import Interval, Scatter

MARKS = {
    "headers": re.compile(r"^#{1,6}\s", re.MULTILINE),
    "lists": re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}
_CODE = re.compile(r"```.*?```", re.DOTALL)
STEPS, CLOSE = 100, 1e-9
FARTHEST = 30.0
"""Log odds beyond which there is no finite optimum."""
LONGEST = 5.0
"""By how much one step moves log odds at most."""
FEWEST = 10
"""Prompts for each coefficient that a fit on several features takes."""
FOLDS = 5
PENALTIES = 10.0 ** np.linspace(4, -4, 10)
GAMED_WEIGHT = 0.2 / 2
"""AlpacaEval's, of each of its two answerers."""
KEYS = ("trial_id", "prompt_id")
FEWEST_LABELLED = 20
"""Labelled prompts that a corrected rate takes: the spread of fewer says too little of its error."""
UNSEEN = 0.25
"""Labels that are added at either extreme of what judge and label may differ by: rare errors may not have been seen."""


def fit(y: np.ndarray, x: np.ndarray, weights: np.ndarray | None = None, *, penalty: float = 0.0) -> np.ndarray | None:
    """Fit coefficients by largest likelihood minus `penalty` times their absolute sum; None without an optimum.

    Newton's method. With a penalty each step ends where the quadratic model is best, found coordinate by coordinate.
    y: (rows,) outcomes from 0 to 1. x: (rows, features), an intercept among them where there is one.
    """
    w, b = np.ones(len(y)) if weights is None else weights, np.zeros(x.shape[1])
    for _ in range(STEPS):
        fitted = expit(x @ b)
        slope, curvature = x.T @ (w * (fitted - y)), _curvature(x, fitted, w)
        try:
            step = _lasso(b, slope, curvature, penalty) - b if penalty else -np.linalg.solve(curvature, slope)
        except np.linalg.LinAlgError:
            return None
        b = b + step * min(1.0, LONGEST / max(np.abs(x @ step).max(), LONGEST))
        if not penalty and np.abs(x @ b).max() > FARTHEST:
            return None
        if np.abs(step).max() < CLOSE:
            return b
    return None


def _curvature(x: np.ndarray, fitted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray((x.T * (weights * fitted * (1 - fitted))) @ x)


def _lasso(b: np.ndarray, slope: np.ndarray, curvature: np.ndarray, penalty: float) -> np.ndarray:
    """Minimise the quadratic model around b plus the penalty."""
    z = b.copy()
    for _ in range(STEPS):
        before = z.copy()
        for place, diagonal in enumerate(np.diag(curvature)):
            if diagonal > 0:
                pull = diagonal * z[place] - slope[place] - curvature[place] @ (z - b)
                z[place] = np.sign(pull) * max(abs(pull) - penalty, 0.0) / diagonal
        if np.abs(z - before).max() < CLOSE:
            break
    return z


def influence(
    y: np.ndarray, x: np.ndarray, at: np.ndarray, b: np.ndarray, extra_curvature: np.ndarray | float = 0.0
) -> np.ndarray:
    """Return (rows,) what each row stands for of the mean outcome at `at`, with its mean and its scatter.

    A row counts by its own place in `at`, and to first order by its pull on the coefficients. y: (rows,) outcomes; NaN
    pulls at nothing. x, at: (rows, features) as they are, and as they would be. b: coefficients; those that a penalty
    made 0 are taken to stay so. extra_curvature: (features, features) curvature of what else was fitted.
    """
    active, judged = b != 0, ~np.isnan(y)
    fitted, rates = expit(x @ b), expit(at @ b)
    inverse = np.linalg.pinv((_curvature(x, fitted, judged.astype(float)) + extra_curvature)[np.ix_(active, active)])
    pull = np.where(judged, y - fitted, 0.0)[:, None] * x[:, active]
    values = pull @ inverse @ (at.T @ (rates * (1 - rates)))[active] + rates
    return np.asarray(rates.mean() + values - values.mean())


def _wider(values: np.ndarray, coefficients: int) -> np.ndarray:
    """Widen the scatter of values drawn to a fit of `coefficients` to that around a fit of other data."""
    free = len(values) - coefficients
    return values.mean() + (values - values.mean()) * np.sqrt(len(values) / free if free > 0 else np.nan)


def rate_at_zero(outcomes: np.ndarray, x: np.ndarray, prompts: np.ndarray) -> Interval | None:
    """Return sigmoid(b0), the rate where all features are 0, with its interval over prompts.

    Without ends where all outcomes are the same; None without answers, where the features alone tell wins from losses,
    and where 0 is too far from the answers for a rate. outcomes: (answers,). x: (answers, features). An answer that
    lacks one of these is left out. prompts: (answers,) number of each one's prompt; answers to one are kept together.
    """
    complete = ~np.isnan(outcomes + x.sum(axis=1))
    y, x = outcomes[complete], x[complete]
    if not len(y):
        return None
    if np.ptp(y) == 0:
        return Interval(float(y[0]), np.nan, np.nan)
    design = np.column_stack([np.ones(len(y)), x[:, np.ptp(x, axis=0) > 0]])
    b = fit(y, design)
    # Answers that are all longer, by nearly as much, may put the rate at equal length beyond any number.
    if b is None or abs(b[0]) > FARTHEST:
        return None
    at = np.eye(1, len(b)).repeat(len(y), axis=0)
    values = statistics.by_topic(influence(y, design, at, b), prompts[complete])
    return statistics.logit_interval(float(expit(b[0])), Scatter.of(_wider(values, len(b))[None]))


def rate_at_equal_length(outcomes: np.ndarray, more_tokens: np.ndarray, prompts: np.ndarray) -> Interval | None:
    """Return LC: `rate_at_zero` of the lengths in standard deviations. more_tokens: (answers,) d, NaN if unknown."""
    complete = ~np.isnan(outcomes + more_tokens)
    spread = more_tokens[complete].std() if complete.any() else 0.0
    x = np.tanh(more_tokens / spread) if spread > 0 else np.where(complete, 0.0, np.nan)
    return rate_at_zero(outcomes, x[:, None], prompts)


def rate_at_equal_style(outcomes: np.ndarray, style: np.ndarray, prompts: np.ndarray) -> Interval | None:
    """Return SC: `rate_at_zero` of (answers, features) `style`; None below FEWEST prompts a coefficient, too."""
    complete = ~np.isnan(outcomes + style.sum(axis=1))
    varied = int((np.ptp(style[complete], axis=0) > 0).sum()) if complete.any() else 0
    enough = len(np.unique(prompts[complete])) >= FEWEST * (varied + 1)
    return rate_at_zero(outcomes, style, prompts) if enough else None


def features(answers: pd.DataFrame) -> np.ndarray:
    """Return (answers, 4) differences of style; NaN where a number of tokens is unknown."""
    sides = []
    for texts, tokens in (("answer", "answer_tokens"), ("baseline_answer", "baseline_tokens")):
        plain, count = [_CODE.sub("", str(text)) for text in answers[texts]], answers[tokens].to_numpy(dtype=float)
        marks = [np.array([len(mark.findall(text)) for text in plain], dtype=float) for mark in MARKS.values()]
        sides.append(np.column_stack([count, *(each / (count + 1) for each in marks)]))
    difference, total = sides[0] - sides[1], sides[0] + sides[1]
    total[:, 1:] += 1
    # Two answers without any token are equally long.
    return np.divide(difference, total, out=np.where(np.isnan(difference), np.nan, 0.0), where=total > 0)


@dataclass(frozen=True)
class Difficulties:
    """AlpacaEval's file: each prompt's difficulty by its id, and maybe the rows of its brief and verbose answerers.

    outcomes: (rows,) theirs. x: (rows, 3) their terms, of which the model's is 0.
    """

    place: Path
    by_prompt: pd.Series
    outcomes: np.ndarray
    x: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "Difficulties":
        """Read `df_gamed.csv` or `instruction_difficulty.csv`. Raises InputError where the file is neither."""
        place = f"--difficulties {path}"
        with rows.reading(place, "Give df_gamed.csv of AlpacaEval's data set, or a CSV like it."):
            table = pd.read_csv(path, dtype={"index": str, "prompt_id": str})
        ids = [name for name in ("prompt_id", "index") if name in table]
        if not ids or "instruction_difficulty" not in table:
            raise InputError(
                f"{place}: lacks index or instruction_difficulty. Give df_gamed.csv of AlpacaEval's data set, or a CSV "
                "of other prompts with these columns."
            )
        # Without the rows of its answerers none was judged.
        gamed = {"preference", "std_delta_len"} <= set(table)
        table = table if gamed else table.assign(preference=np.nan, std_delta_len=0.0)
        numbers_ = table[["std_delta_len", "instruction_difficulty", "preference"]].apply(
            pd.to_numeric, errors="coerce"
        )
        length, difficulty, outcome = numbers_.to_numpy(dtype=float).T
        bad = ~np.isfinite(length + difficulty) | (table["preference"].notna() & ~((outcome >= 0) & (outcome <= 1)))
        if bad.any():
            raise InputError(
                f"{place}: row {int(np.argmax(bad)) + 1} has no number, or a preference that is not from 0 to 1."
            )
        by_prompt = numbers_["instruction_difficulty"].groupby(table[ids[0]])
        if len(conflicts := by_prompt.nunique().loc[lambda counts: counts > 1]):
            raise InputError(f"{place}: the prompt {conflicts.index[0]} has several difficulties. Keep one.")
        judged = ~np.isnan(outcome)
        x = np.column_stack([np.tanh(length), difficulty, np.zeros(len(length))])
        return cls(path, by_prompt.first(), outcome[judged], x[judged])

    def of(self, prompts: pd.Series) -> np.ndarray:
        """Return the difficulties of these prompts. Raises InputError where some have none."""
        difficulties = prompts.map(self.by_prompt)
        if difficulties.isna().any():
            lacking = prompts[difficulties.isna()].unique()
            raise InputError(
                f"--difficulties {self.place}: {len(lacking)} of {prompts.nunique()} report prompts have no difficulty "
                f"there, the first {lacking[0]}. Its index or prompt_id has to be the id of the question."
            )
        return difficulties.to_numpy(dtype=float)


def alpaca_eval_rate(
    answers: pd.DataFrame, difficulties: Difficulties, topics: pd.Series | None = None
) -> Interval | None:
    """Return AlpacaEval's length-controlled rate, the mean of the trials', with the interval of a win rate.

    None where a trial has fewer than FEWEST judged answers to a coefficient. answers: rows of answers.parquet, of one
    or several trials. topics: the number of each prompt's topic by its id, where prompts come in topics.
    """
    values = {}
    for trial_id, of_trial in answers.groupby("trial_id"):
        by_answer = _of_model(of_trial, difficulties)
        if by_answer is None:
            return None
        values[trial_id] = pd.Series(by_answer).groupby(of_trial["prompt_id"].to_numpy()).mean()
    wide = pd.DataFrame(values).T
    of_topics = None if topics is None else topics.loc[wide.columns].to_numpy()
    scatter = statistics.row_scatter(wide.to_numpy(dtype=float), of_topics)
    return statistics.logit_interval(float(np.nanmean(wide, axis=1).mean()), scatter)


def _of_model(answers: pd.DataFrame, difficulties: Difficulties) -> np.ndarray | None:
    """Return (answers,) what each answer of one model stands for of the rate."""
    lengths = answers["baseline_answer"].str.len() - answers["answer"].str.len()
    more = lengths.to_numpy(dtype=float, na_value=np.nan)
    # An answer whose text was not kept says nothing of lengths.
    y, more = np.where(np.isnan(more), np.nan, answers["outcome"].to_numpy(dtype=float)), np.nan_to_num(more)
    valid = ~np.isnan(y)
    spread = more.std(ddof=1) if len(more) > 1 else 0.0
    at = np.column_stack([np.zeros(len(y)), difficulties.of(answers["prompt_id"]), np.ones(len(y))])
    if valid.sum() < FEWEST * at.shape[1]:
        return None
    x = at + np.array([1.0, 0.0, 0.0]) * np.tanh(more / spread if spread > 0 else np.zeros(len(y)))[:, None]
    all_y, all_x = np.append(difficulties.outcomes, y[valid]), np.vstack([difficulties.x, x[valid]])
    weights = np.append(np.full(len(difficulties.outcomes), GAMED_WEIGHT), np.ones(valid.sum()))
    b = _cross_validated(all_y, all_x, weights)
    if b is None:
        return None
    gamed = _curvature(difficulties.x, expit(difficulties.x @ b), np.full(len(difficulties.x), GAMED_WEIGHT))
    return _wider(influence(y, x, at, b, gamed), int((b != 0).sum()))


def _cross_validated(y: np.ndarray, x: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """Return the coefficients with the penalty of least loss on what was left out."""

    def loss(left_out: np.ndarray, penalty: float) -> float:
        b = fit(y[~left_out], x[~left_out], weights[~left_out], penalty=penalty)
        if b is None:
            return np.inf
        odds = x[left_out] @ b
        return float(np.mean(weights[left_out] * (np.logaddexp(0, odds) - y[left_out] * odds)))

    folds = np.arange(len(y))[::-1] % FOLDS
    losses = [np.mean([loss(folds == fold, penalty) for fold in range(FOLDS)]) for penalty in PENALTIES]
    return fit(y, x, weights, penalty=PENALTIES[int(np.argmin(losses))])


def corrected_rate(labels: np.ndarray, judged: np.ndarray, unlabelled: np.ndarray) -> tuple[Interval, float] | None:
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
    return statistics.score_interval(rate, Scatter(variance, n - 1, n)), weight


def read_labels(path: Path) -> pd.DataFrame:
    """Read trial_id, prompt_id, turn and outcome from a CSV or JSONL file; raise InputError where it holds others."""
    with rows.reading(f"--labels {path}", "Give a CSV or JSONL file with trial_id, prompt_id and outcome."):
        if path.suffix == ".csv":
            labels = pd.read_csv(path, dtype=dict.fromkeys(KEYS, str))
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            labels = pd.DataFrame([_label(line, number) for number, line in enumerate(lines, 1) if line.strip()])
    if missing := [name for name in (*KEYS, "outcome") if name not in labels]:
        raise InputError(f"--labels {path}: lacks {', '.join(missing)}. Give trial_id, prompt_id and outcome.")
    outcomes = pd.to_numeric(labels["outcome"], errors="coerce")
    if len(bad := np.flatnonzero(~outcomes.between(0, 1))):
        raise InputError(
            f"--labels {path}: label {bad[0] + 1} has the outcome {labels['outcome'].iloc[bad[0]]!r}. "
            "Give 1 for a win of the trial's answer over the baseline's, 0.5 for a tie, 0 for a loss."
        )
    return labels.assign(outcome=outcomes, **{key: labels[key].astype(str) for key in KEYS})


def _label(line: str, number: int) -> dict[str, Any]:
    """Read a line of JSON; a list or an object in it is no label's, and read as missing. Raises ValueError."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"line {number} holds no object")
    return {name: None if isinstance(item, (list, dict)) else item for name, item in value.items()}


def corrected(run: Run, main: Table, labels: pd.DataFrame) -> Table:
    """Return a corrected win rate for each row of the main table that has labels.

    Raises InputError where labels are of trials or prompts that the run has no judged answer of.
    """
    answers = _answers_with_labels(run, labels)
    records, notes = [], []
    for row in main.frame.to_dict("records"):
        answered = answers[(answers["label"] == row["label"]) & answers["outcome"].notna()]
        by_prompt = answered.groupby("prompt_id")["outcome"].mean()
        labelled = answered.dropna(subset="strong").groupby("prompt_id")[["strong", "outcome"]].mean()
        strong, judged = labelled.to_numpy(dtype=float).T
        estimate = corrected_rate(strong, judged, by_prompt.drop(labelled.index).to_numpy(dtype=float))
        if estimate is not None:
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
        elif len(labelled):
            notes.append(f"{row['label']} ({len(labelled)})")
    notes = [f"Fewer than {FEWEST_LABELLED} labelled prompts: {', '.join(notes)}."] if notes else []
    unjudged = answers[answers["outcome"].isna() & answers["label"].isin(main.frame["label"])]["strong"].count()
    if unjudged:
        notes.append(f"{unjudged} labels count for nothing: the judge has no valid verdict on their answers.")
    frame = pd.DataFrame(records, columns=None if records else ["label"])
    return Table(
        frame=frame,
        caption=f"{rows.name_of(run)}: the win rate of {rows.judge_of(run)}, corrected by labels "
        "(prediction-powered inference).",
        notes=[
            "Intervals are over prompts, of these checkpoints; labelled prompts are taken to be drawn at random. bias: "
            "what the judge gives more than the labels. weight: how much its verdicts on the other prompts count.",
            *notes,
        ],
        columns=(
            names("label", frame),
            Column("judge %", numbers(frame, "win_rate", 1, scale=100)),
            measure("corrected %", frame, "corrected", 1, scale=100, keep=9),
            Column("labels alone %", numbers(frame, "labels_alone", 1, scale=100)),
            Column("bias", numbers(frame, "bias", 1, scale=100, signed=True)),
            Column("weight", numbers(frame, "weight", 2)),
            Column("labelled", cells(frame, lambda row: f"{row['labelled']} of {row['prompts']}")),
        ),
    )


def _answers_with_labels(run: Run, labels: pd.DataFrame) -> pd.DataFrame:
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
