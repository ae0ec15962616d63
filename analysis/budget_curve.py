"""What a search found for what it spent: hypervolume by trials and tokens, and the expected best of k random trials."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import statistics
from .knobs import Searched, unit_of
from .printing import Column, Table, cells, interval_cells, number

REFERENCE = {"win_rate": 0.0, "stability": 0.0, "preference_accuracy": 0.0}
"""Where the hypervolume starts: the worst that a goal can be. Other goals have no such end."""
ORDERS = 200
DRAWN_ANEW = 1_000


@dataclass(frozen=True)
class Spent:
    """A search by its first 1, 2, ... trials, in the order in which they were drawn.

    tokens: (trials,) that their training took so far. hypervolume: (trials,) of two goals, None where they have no
    reference point; shuffled: (orders, trials) the same for the same trials in random order. best: by goal, (trials,)
    the best so far. expected: by goal, (trials,) expected best of so many of them at random; resampled: by goal,
    (resamples, trials) the same with the trials drawn anew.
    """

    tokens: np.ndarray
    hypervolume: np.ndarray | None
    shuffled: np.ndarray | None
    best: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    resampled: dict[str, np.ndarray]

    @classmethod
    def of(cls, searched: Searched, *, seed: int = 0) -> "Spent | None":
        """None where no trial completed. Stopped and lost trials have cost their tokens and found nothing."""
        complete = searched.complete
        if not complete.any():
            return None
        rng = np.random.default_rng(seed)
        hypervolume = shuffled = None
        if _has_reference(searched):
            points = np.where(complete[:, None], searched.goals, 0.0)
            hypervolume = hypervolumes(points)
            orders = (rng.permutation(len(points)) for _ in range(ORDERS))
            shuffled = np.stack([hypervolumes(points[order]) for order in orders])
        drawn = rng.integers(0, len(complete), (DRAWN_ANEW, len(complete)))
        best, expected, resampled = {}, {}, {}
        for place, goal in enumerate(searched.names):
            sign, values = searched.signs[place], searched.goals[:, place]
            values = np.where(complete, values, values[complete].min())
            best[goal] = sign * np.maximum.accumulate(values)
            expected[goal] = sign * expected_best(values)
            resampled[goal] = sign * expected_best(values[drawn])
        tokens = searched.trials["tokens"].fillna(0).to_numpy(dtype=float).cumsum()
        return cls(tokens, hypervolume, shuffled, best, expected, resampled)


def hypervolumes(points: np.ndarray) -> np.ndarray:
    """(trials,) the area that the first 1, 2, ... trials dominate above (0, 0). points: (trials, 2), more is better."""
    points = np.maximum(points, 0.0)
    edges = np.unique(points[:, 0])
    widths = np.diff(edges, prepend=0.0)
    # Over each strip of the first goal stands the most of the second that a trial so far has which reaches it.
    reaches = points[:, :1] >= edges
    heights = np.maximum.accumulate(np.where(reaches, points[:, 1:], 0.0), axis=0)
    return np.asarray(heights @ widths)


def expected_best(values: np.ndarray) -> np.ndarray:
    """(..., trials) expected best of k = 1, 2, ... of the trials, drawn without replacement; more is better.

    The unbiased estimate of what Dodge et al. (2019) define: the i-th smallest of n is the best of k with probability
    C(i-1, k-1) / C(n, k). Drawing with replacement, as they do, comes out too low (Tang et al. 2020).
    """
    trials = values.shape[-1]
    smaller = np.arange(1, trials + 1)
    drawn = np.arange(trials)
    # C(i, k) / C(n, k), the probability that none of k lies above the i-th smallest.
    none_above = np.cumprod(np.maximum(smaller[:, None] - drawn, 0) / (trials - drawn), axis=1)
    return np.asarray(np.sort(values, axis=-1) @ np.diff(none_above, axis=0, prepend=0.0))


def budget_curve(searched: Searched, spent: Spent | None) -> Table:
    """What the first trials found, for 1, 2, 4, ... trials and all of them."""
    if spent is None:
        return Table(pd.DataFrame(columns=["trials"]), "No trial of the search completed.", [])
    count = len(searched.trials)
    rows = sorted({*(2**power for power in range(count.bit_length())), count})
    at = np.array(rows) - 1
    frame = pd.DataFrame({"trials": rows, "tokens": spent.tokens[at]})
    tail = (1 - statistics.CONFIDENCE) / 2
    if spent.hypervolume is not None and spent.shuffled is not None:
        frame["hypervolume"] = spent.hypervolume[at]
        frame["shuffled"] = spent.shuffled[:, at].mean(axis=0)
        frame["shuffled_low"], frame["shuffled_high"] = np.quantile(spent.shuffled[:, at], [tail, 1 - tail], axis=0)
    for goal in searched.names:
        frame[f"best_{goal}"] = spent.best[goal][at]
        frame[f"expected_{goal}"] = spent.expected[goal][at]
        ends = np.quantile(spent.resampled[goal][:, at], [tail, 1 - tail], axis=0)
        frame[f"expected_{goal}_low"], frame[f"expected_{goal}_high"] = ends
    columns = [
        Column("trials", tuple(map(str, rows)), keep=10),
        Column("tokens", tuple(f"{tokens:,.0f}" for tokens in frame["tokens"]), keep=6),
    ]
    if "hypervolume" in frame:
        columns += [
            Column("hypervolume", cells(frame, lambda row: number(row["hypervolume"], 3)), keep=9),
            Column("in random order [95 %]", interval_cells(frame, "shuffled", 3), keep=7),
        ]
    for goal in searched.names:
        head, scale, digits = unit_of(goal)
        own = f"expected_{goal}"
        columns.append(Column(f"expected best {head} [95 %]", interval_cells(frame, own, digits, scale=scale), keep=8))
    return Table(
        frame=frame,
        caption=f"What the search found for what it spent: its first trials of {count}.",
        notes=_budget_notes(searched, spent),
        columns=tuple(columns),
    )


def _has_reference(searched: Searched) -> bool:
    return len(searched.names) == 2 and all(
        name in REFERENCE and way == "maximize" for name, way in zip(searched.names, searched.ways, strict=True)
    )


def _budget_notes(searched: Searched, spent: Spent) -> list[str]:
    names = [name.replace("_", " ") for name in searched.names]
    notes = []
    if spent.hypervolume is None:
        notes.append(
            f"Hypervolume: none, since {' and '.join(names)} are not two goals that are at least 0 and to be maximized."
        )
    else:
        notes += [
            f"Hypervolume: the area that the completed trials so far dominate, above the reference point {names[0]} 0, "
            f"{names[1]} 0; the largest possible is 1.",
            f"In random order: the same trials, mean and 95 % of {ORDERS} orders. Where the search's own order runs "
            "below it, its later trials were better than its earlier ones; where it runs above, the early ones were "
            "(known points come first).",
        ]
    return [
        *notes,
        "Expected best: of so many of these trials drawn at random without replacement (Dodge et al. 2019, in the "
        f"unbiased form of Tang et al. 2020), with a 95 % percentile interval, the trials drawn anew {DRAWN_ANEW:,} "
        "times. It is that of a random search only if the trials were drawn at random; near all trials the interval "
        "is too narrow, since no resample holds a better trial than the best.",
        "Stopped, failed and diverged trials count with the tokens they took, and as the worst that completed.",
    ]
