"""Whether what holds from one SFT checkpoint holds from others: a checkpoint is one draw, above its seeds."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from . import effects, factorial_table, statistics
from .ablation_table import METRICS, Cells
from .printing import Column, Sentences, Table, cells, interval_cells, number
from .rows import Outcomes, name_of
from .statistics import Interval, TwoWay, columns

Draw = np.ndarray
"""(items,) of one checkpoint, means over its seeds, or 0-d of what a seed has one number of; NaN where it has none."""


def draw(row: Outcomes, reference: Outcomes | None = None) -> Draw:
    """Return what one checkpoint says of a row, or of a row minus another on the seeds that both have."""
    if reference is None:
        return np.asarray(row[1].mean(axis=0))
    first, second = _together([row, reference])
    return np.asarray((first - second).mean(axis=0)) if len(first) else np.full(first.shape[1:], np.nan)


def over(draws: Sequence[Draw], topics: np.ndarray | None = None, *, least: float = -1.0) -> Interval | None:
    """Return the mean over checkpoints with Student's interval, over checkpoints and, of the same items, over these.

    Seeds are no unit here: those of one checkpoint say nothing of another's. With one checkpoint there are no ends.

    Args:
        draws: Of each checkpoint, those of (items,) with the same items in the same order.
        topics: (items,) where these come in topics.
        least: What a value is at least, and 1 at most: 0 of rates and of S, -1 of their differences. Student's ends
            know of no bounds.

    Returns:
        The interval; None where no checkpoint has a value.
    """
    from scipy.special import stdtrit

    known = [sample for sample in draws if np.isfinite(sample).any()]
    if not known:
        return None
    values = np.stack(known)
    if values.ndim == 1:
        if len(values) == 1:
            return Interval(float(values[0]), np.nan, np.nan)
        return _within(effects.interval(values), least)
    values, units = _units(values, topics)
    if not values.size:
        return None
    mean = float(values.mean())
    if min(units.shape) < 2:
        return Interval(mean, np.nan, np.nan)
    error = statistics.difference_error(TwoWay.of(units).error()[0] ** 2, values.shape[1])
    # Not Satterthwaite's degrees: where two or three checkpoints happen to look alike, these are too many.
    half = float(stdtrit(len(values) - 1, (1 + statistics.CONFIDENCE) / 2) * error)
    return _within(Interval(mean, mean - half, mean + half), least)


def _within(interval: Interval, least: float) -> Interval:
    return Interval(interval.value, *np.clip([interval.low, interval.high], least, 1.0).tolist())


def _units(values: np.ndarray, topics: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(checkpoints, items) values of the items that all have, and the same with each topic as one unit."""
    shared = np.isfinite(values).all(axis=0)
    values, topics = values[:, shared], None if topics is None else topics[shared]
    return values, statistics.by_topic(values, topics)


def to_settle(draws: Sequence[Draw], topics: np.ndarray | None = None) -> effects.Settling | None:
    """How many checkpoints would settle such a difference in four of five tries; None where too little is known."""
    known = [sample for sample in draws if np.isfinite(sample).any()]
    if len(known) < 2:
        return None
    values = np.stack(known)
    units = values if values.ndim == 1 else _units(values, topics)[1]
    return effects.to_settle(units, effects.LEVEL) if min(units.shape) > 1 else None


def settling_words(settling: effects.Settling | None) -> str:
    """The same as the end of a sentence; empty where it is not known."""
    if settling is None:
        return ""
    count = f"about {settling.seeds}" if settling.seeds else f"more than {effects.MOST_SEEDS:,}"
    items = f" and {settling.prompts:,} items" if settling.prompts else ""
    return f"; {count} checkpoints{items} would settle it, were the difference the one seen here"


def agreement(draws: Sequence[Draw], signs: Sequence[float]) -> dict[str, int]:
    """Return from how many checkpoints a difference has the sign of its mean, and from how many significantly so.

    Args:
        draws: Of each checkpoint that has one.
        signs: Of each checkpoint's significant difference, 0 where it has none.
    """
    means = [float(np.nanmean(sample)) for sample in draws if np.isfinite(sample).any()]
    sign = np.sign(np.mean(means)) if means else 0.0
    return {
        "same_sign": sum(bool(np.sign(mean) == sign != 0) for mean in means),
        "significant": sum(sample == sign != 0 for sample in signs),
        "checkpoints": len(means),
    }


def designs(results: Cells) -> Table | None:
    """A row per cell, or per component of a factorial, over the checkpoints; None of a design from one alone."""
    seeds, metric = results.design.sft_seeds, results.metric or results.rate
    if not seeds:
        return None
    rate = metric != "stability"
    scale, digits = (100, 1) if rate else (1, 2)
    rows = []
    for center, name, draws, signs in _effects(results) if results.design.kind == "factorial" else _cells(results):
        means = [float(np.nanmean(sample)) if np.isfinite(sample).any() else np.nan for sample in draws]
        rows.append(
            {
                "center": center,
                "effect_of": name,
                **columns({"difference": over(draws, results.topics if rate else None)}),
                "each": ", ".join(number(mean, digits, scale=scale, signed=True) for mean in means),
                **agreement(draws, signs),
                "settling": settling_words(to_settle(draws, results.topics if rate else None)),
            }
        )
    frame = pd.DataFrame(rows)
    several = frame["center"].nunique() > 1
    return Table(
        frame=frame,
        caption=f"{name_of(results.run)}: what holds from {len(seeds)} SFT checkpoints (sft.seed "
        f"{', '.join(map(str, seeds))}), by {METRICS[metric]}{' in points' if rate else ''}.",
        notes=[
            "over checkpoints: the mean, each checkpoint one draw with the mean of its seeds; 95 % over checkpoints "
            "and, of a rate, its items, one comparison each, not corrected. from each: in the order of the seeds. same "
            "sign: from how many the difference goes the way of the mean. matters: from how many the table of that "
            "checkpoint says so."
        ],
        columns=(
            Column("effect of", tuple(frame["effect_of"]), numeric=False, keep=10),
            *((Column("around", tuple(frame["center"]), numeric=False, keep=10),) if several else ()),
            Column(
                "over checkpoints [95 %]", interval_cells(frame, "difference", digits, scale=scale, signed=True), keep=9
            ),
            Column("from each", tuple(frame["each"]), keep=8),
            Column("same sign", cells(frame, lambda row: f"{row['same_sign']} of {row['checkpoints']}"), keep=8),
            Column("matters", cells(frame, lambda row: f"{row['significant']} of {row['checkpoints']}"), keep=9),
        ),
    )


Effects = Iterator[tuple[str, str, list[Draw], list[float]]]
"""Of each effect its center, its name, and of every checkpoint its values and the sign of what is significant."""


def _cells(results: Cells) -> Effects:
    """The cells but the references, each minus its reference."""
    compared = [cell for cell in results.design.cells if cell.label != cell.reference]
    outcomes, claims = results.outcomes(results.metric or results.rate), results.claims(compared)
    for center, variant in dict.fromkeys((cell.home, cell.variant) for cell in compared):
        draws, signs = [], []
        for cell in compared:
            if (cell.home, cell.variant) == (center, variant) and {cell.label, cell.reference} <= outcomes.keys():
                draws.append(draw(outcomes[cell.label], outcomes[cell.reference]))
                claim = claims.get(cell.label)
                signs.append(float(np.sign(claim.effect.difference.value)) if claim and claim.matters else 0.0)
        yield center, variant, draws, signs


def _effects(results: Cells) -> Effects:
    """The main effects of a factorial's components."""
    metric = results.metric or results.rate
    outcomes, table = results.outcomes(metric), factorial_table.factorial_effects(results).frame
    column = "stability_effect" if metric == "stability" else "effect"
    significant = table[table["verdict"].str.startswith("matters")]
    signs = {(row["center"], row["effect_of"]): float(np.sign(row[column])) for row in significant.to_dict("records")}
    for home in dict.fromkeys(cell.home for cell in results.design.cells):
        centers = dict.fromkeys(cell.center for cell in results.design.cells if cell.home == home)
        components = tuple(results.design.reference(next(iter(centers))).levels)
        weights, places = factorial_table.effect_weights(components), factorial_table.cells_of(components)
        grids = {}
        for center in centers:
            label_at = {
                frozenset(name for name in components if cell.levels.get(name)): cell.label
                for cell in results.design.around(center)
                if not cell.control
            }
            labels = [label_at.get(place, "") for place in places]
            if outcomes.keys() >= set(labels):
                grids[center] = _together([outcomes[label] for label in labels])
        for name in components:
            draws = [factorial_table.contrast(weights[(name,)], grid).mean(axis=0) for grid in grids.values()]
            yield home, name, list(map(np.asarray, draws)), [signs.get((center, name), 0.0) for center in grids]


def _together(outcomes: Sequence[Outcomes]) -> np.ndarray:
    """(rows, seeds, ...) outcomes on the seeds that all have; items that a row lacks stay, as NaN."""
    seeds = sorted(set.intersection(*(set(row_seeds) for row_seeds, _ in outcomes)))
    return np.stack([values[[row_seeds.index(seed) for seed in seeds]] for row_seeds, values in outcomes])


def sentences(table: Table) -> Sentences:
    """What a design leaves open over checkpoints, and what holds: an interval that leaves 0 out, from all of them."""
    open_, settled = [], []
    several = table.frame["center"].nunique() > 1
    for row in table.frame.to_dict("records"):
        around = f" around {row['center']}" if several else ""
        words = (
            f"{row['effect_of']}{around} differs over {row['checkpoints']} SFT checkpoints: {row['each']}; the same "
            f"sign from {row['same_sign']}, and it matters from {row['significant']}"
        )
        if not (row["difference_low"] > 0 or row["difference_high"] < 0):
            open_.append(f"Whether {words}; the interval over checkpoints covers 0{row['settling']}.")
        elif row["same_sign"] < row["checkpoints"]:
            open_.append(f"Whether {words}; it changes between checkpoints.")
        else:
            settled.append(f"{words}.")
    return open_, settled
