"""The win rate at equal style: a binomial GLM of the outcomes on Arena-Hard's features of style.

The features are those of Arena-Hard's style control, policy against baseline: (a - b) / (a + b) of the lengths in
tokens, and (a - b) / (a + b + 1) of the densities of headers, list items and bold texts, per token. Arena-Hard fits all
models at once on centred features; here each row of the table has a fit of its own, and its rate is at equal style.
"""

import re

import numpy as np
import pandas as pd

from . import statistics

MARKS = {
    "headers": re.compile(r"^#{1,6}\s", re.MULTILINE),
    "lists": re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}
_CODE = re.compile(r"```.*?```", re.DOTALL)
STEPS = 50
CLOSE = 1e-9
FARTHEST = 30.0
"""Log odds beyond which there is no finite optimum."""
FEWEST = 10
"""Prompts for each coefficient that a fit takes."""


def features(answers: pd.DataFrame) -> np.ndarray:
    """(answers, 4) differences of style; NaN where a number of tokens is not known."""
    sides = [
        np.column_stack([tokens, *(_counts(texts, mark) / (tokens + 1) for mark in MARKS.values())])
        for texts, tokens in (
            (answers["answer"], answers["answer_tokens"].to_numpy(dtype=float)),
            (answers["baseline_answer"], answers["baseline_tokens"].to_numpy(dtype=float)),
        )
    ]
    difference, total = sides[0] - sides[1], sides[0] + sides[1]
    total[:, 1:] += 1
    # Two answers without any token are equally long.
    return np.divide(difference, total, out=np.where(np.isnan(difference), np.nan, 0.0), where=total > 0)


def _counts(texts: pd.Series, mark: re.Pattern[str]) -> np.ndarray:
    return np.array([len(mark.findall(_CODE.sub("", str(text)))) for text in texts], dtype=float)


def rate_at_equal_style(outcomes: np.ndarray, style: np.ndarray, prompts: np.ndarray) -> statistics.Interval | None:
    """sigmoid(b0) with its 95 % interval; errors are robust, and answers to one prompt are kept together.

    Args:
        outcomes: (answers,) 0 to 1; NaN is left out.
        style: (answers, features), 0 at equal style.
        prompts: (answers,) place of each answer's prompt.

    Returns:
        The rate, without ends where all outcomes are the same; None where there are too few prompts for the features
        that vary, or style alone tells wins from losses.
    """
    known = ~(np.isnan(outcomes) | np.isnan(style).any(axis=1))
    y, x = outcomes[known], style[known]
    x = x[:, x.std(axis=0) > 0] if len(x) else x
    _, places = np.unique(prompts[known], return_inverse=True)
    units = int(places.max()) + 1 if len(places) else 0
    design = np.column_stack([np.ones(len(y)), x])
    if units < FEWEST * design.shape[1]:
        return None
    b = np.zeros(design.shape[1])
    for _ in range(STEPS):
        fitted = 1 / (1 + np.exp(-design @ b))
        curvature = (design.T * (fitted * (1 - fitted))) @ design
        try:
            step = np.linalg.solve(curvature, design.T @ (y - fitted))
        except np.linalg.LinAlgError:
            return None
        b = b + step
        if np.abs(design @ b).max() > FARTHEST:
            return None
        if np.abs(step).max() < CLOSE:
            break
    else:
        return None
    scores = np.zeros((units, len(b)))
    np.add.at(scores, places, design * (y - fitted)[:, None])
    inverse = np.linalg.inv(curvature)
    robust = inverse @ (scores.T @ scores) @ inverse * units / (units - len(b))
    half = 1.96 * float(np.sqrt(robust[0, 0])) if np.ptp(y) > 0 else np.nan
    low, value, high = (float(1 / (1 + np.exp(-logit))) for logit in (b[0] - half, b[0], b[0] + half))
    return statistics.Interval(value, low, high)
