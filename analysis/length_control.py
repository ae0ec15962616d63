"""The length-controlled win rate: what the rate would be if the policy's answers were as long as the baseline's.

A binomial GLM with logit link of an answer's outcome on x = tanh(d / sd), d its tokens more than the baseline's, sd
their standard deviation over the answers at hand. The rate is sigmoid(b0), the fitted outcome at x = 0 (Dubois et al.
2024, without their terms for the model and the prompt).
"""

import numpy as np

from . import statistics

STEPS = 25
CLOSE = 1e-3
"""Newton's method ends with a step as short as this: the error left is of the order of its square."""
FARTHEST = 20.0
"""Coefficients go no farther: those of a resample that has no finite optimum."""
AT_ONCE = 500_000
"""Answers times resamples that are held at a time: what a cache holds."""


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
    of each answer's prompt, from 0. Answers that lack an outcome or a length are left out. Where all outcomes are 0, or
    all 1, so is LC; None without answers, and where length alone tells wins from losses.
    """
    known = ~(np.isnan(outcomes) | np.isnan(more_tokens))
    if not known.any():
        return None
    order = np.argsort(prompts[known], kind="stable")
    y, d = outcomes[known][order], more_tokens[known][order]
    names, places = np.unique(prompts[known][order], return_inverse=True)
    if (y == 0).all() or (y == 1).all():
        return statistics.interval(float(y[0]), y, units=len(names))
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
