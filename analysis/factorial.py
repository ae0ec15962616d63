"""A full 2^k design: main effects, interactions, exact Shapley values; and what holds over SFT checkpoints.

All of them are linear in the cells. Applied to outcomes of shape (cells, seeds, prompts) they give one value per seed
and prompt, of which the interval is that of any difference: nothing is approximated, and pairing is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.config.design import COMPONENTS, Cell, Design
from slime_ray.errors import InputError

from . import ablation, effects, rows, statistics
from .ablation import Cells
from .effects import Claim
from .printing import ABSENT, Column, Sentences, Table, cells, empty, interval_cells, measure, names, number, p_words
from .rows import METRICS, common, draw, few_seeds_notes, name_of, on_common_seeds
from .statistics import FEWEST_SEEDS

Present = frozenset[str]
"""The components that a cell has."""
ALL = "all components"
MARGINS = {"soft_margin", "hard_margin"}


def cells_of(components: Sequence[str]) -> list[Present]:
    """Return all 2^k cells: without any component first, with all of them last."""
    return [frozenset(some) for size in range(len(components) + 1) for some in combinations(components, size)]


def by_components(design: Design, center: str) -> dict[Present, Cell]:
    """Return the cells around a center by their components, without controls; two of the same are refused."""
    components = design.reference(center).levels
    cells_by_components: dict[Present, Cell] = {}
    for cell in design.around(center):
        present = frozenset(name for name in components if cell.levels.get(name))
        if present in cells_by_components and not cell.control:
            raise InputError(
                f"{cell.label} and {cells_by_components[present].label} have the same components: their "
                "design is no factorial one. Make one of them a control."
            )
        if not cell.control:
            cells_by_components[present] = cell
    return cells_by_components


def effect_weights(components: Sequence[str]) -> dict[tuple[str, ...], np.ndarray]:
    """Return (cells,) weights of each main effect and interaction, in the order of `cells_of`, main effects first.

    The standard contrasts: the product of a cell's signs (1 present, -1 absent) over the effect's components, over
    2^(k-1). A main effect is the mean of the cells with the component minus the mean of those without; an interaction
    of two is half the difference between the effect of one with the other present and with it absent, and so on.
    """
    cells = cells_of(components)
    return {
        effect: np.array([(-1) ** len(set(effect) - cell) for cell in cells]) / 2 ** (len(components) - 1)
        for size in range(1, len(components) + 1)
        for effect in combinations(components, size)
    }


def shapley_weights(components: Sequence[str]) -> dict[str, np.ndarray]:
    """Return (cells,) weights of each component's Shapley value, by `cells_of`; they add up to `total_weights`.

    The mean, over all orders in which components may be added, of what the component adds when its turn comes
    (Shapley 1953): with |S| of k components there before, |S|! (k - |S| - 1)! of the k! orders.
    """
    k, cells = len(components), cells_of(components)
    share = [factorial(size) * factorial(k - size - 1) / factorial(k) for size in range(k)]
    return {
        component: np.array([share[len(cell) - 1] if component in cell else -share[len(cell)] for cell in cells])
        for component in components
    }


def total_weights(components: Sequence[str]) -> np.ndarray:
    """Return (cells,) weights of the total effect: all components minus none."""
    weights = np.zeros(2 ** len(components))
    weights[-1], weights[0] = 1.0, -1.0
    return weights


def contrast(weights: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """Return (seeds, prompts) or (seeds,) values of an effect. outcomes: (cells, ...) of all cells."""
    return np.tensordot(weights, outcomes, axes=1)


def scale(weights: np.ndarray) -> float:
    """Return the factor that lets an effect scatter as the difference of two cells does.

    What was not seen is given room by that measure, and a mean of many cells needs less of it.
    """
    return float(np.sqrt(2 / (weights**2).sum()))


def factorial_effects(design_cells: Cells) -> Table:
    """Return for each center a row per component, per interaction, and one for the total.

    In `frame` effects are in the outcomes' unit: shares for rates. `shapley` is of the rate, `stability_shapley` of S.
    A center of which a cell is missing is not summed: its rows have no numbers.
    """
    design = design_cells.design
    if design.kind != "factorial":
        return empty("This run is no factorial design.", "effect")
    grids = {center: _Grid.of(design_cells, center) for center in design.centers}
    claims = effects.claims(
        {f"{center}/{name}": d for center, grid in grids.items() for name, d in grid.main(design_cells.metric).items()}
        if design_cells.metric
        else {},
        {f"{center}/{name}": grid.topics for center, grid in grids.items() for name in grid.components}
        if design_cells.metric == design_cells.rate
        else None,
    )
    frame = pd.DataFrame([row for center, grid in grids.items() for row in grid.records(center, design_cells, claims)])
    return Table(
        frame=frame,
        caption=f"{name_of(design_cells.run)}: effects of {len(design.cells)} cells on the "
        f"{METRICS[design_cells.rate]}, in points, and on stability S, with 95 % intervals. "
        f"Seeds {', '.join(map(str, design_cells.planned))}.",
        notes=_notes(design_cells, frame, [phrase for grid in grids.values() for phrase in grid.missing]),
        columns=_columns(frame),
    )


@dataclass(frozen=True)
class _Grid:
    """The outcomes of all cells around one center, on the seeds and items that all of them have.

    values: by rate (cells, seeds, items), by stability (cells, seeds), in the order of `cells_of`; None where
    a cell is missing. missing: what is, in phrases. topics: (items,) where the rate's items come in topics.
    """

    components: tuple[str, ...]
    values: dict[str, np.ndarray | None]
    missing: list[str]
    topics: np.ndarray | None

    @classmethod
    def of(cls, design_cells: Cells, center: str) -> "_Grid":
        """Collect the outcomes around a center. Controls are no part of them."""
        components = tuple(design_cells.design.reference(center).levels)
        cells_by_components = by_components(design_cells.design, center)
        absent = [place for place in cells_of(components) if place not in cells_by_components]
        missing = [f"{center} has no cell with {' and '.join(sorted(place)) or 'no component'}" for place in absent]
        missing += design_cells.missing(cells_by_components.values(), design_cells.rate)
        values: dict[str, np.ndarray | None] = {design_cells.rate: None, "stability": None}
        labels = [cells_by_components[place].label for place in cells_of(components) if place in cells_by_components]
        for metric in values:
            outcomes = design_cells.outcomes(metric)
            if not absent and outcomes.keys() >= set(labels):
                _, stack = common([outcomes[label] for label in labels])
                values[metric] = stack if stack.size else None
        return cls(components, values, missing, design_cells.topics_of(labels, design_cells.rate))

    def main(self, metric: str | None) -> dict[str, np.ndarray | None]:
        """Return each component's main effect per seed and item, on the scale of its test."""
        weights = effect_weights(self.components)
        return {name: self._contrast(weights[(name,)] * scale(weights[(name,)]), metric) for name in self.components}

    def _contrast(self, weights: np.ndarray, metric: str | None) -> np.ndarray | None:
        values = self.values.get(metric or "")
        return None if values is None else contrast(weights, values)

    def _interval(self, weights: np.ndarray, metric: str) -> statistics.Interval | None:
        times = scale(weights)
        values = self._contrast(weights * times, metric)
        if values is None:
            return None
        interval = effects.interval(values, self.topics if values.ndim > 1 else None, most=times)
        return statistics.Interval(interval.value / times, interval.low / times, interval.high / times)

    def records(self, center: str, design_cells: Cells, claims: dict[str, Claim]) -> Iterator[dict[str, Any]]:
        """Yield rows of components, interactions and the total, whose effect is the sum of the Shapley values."""
        shapley, total = shapley_weights(self.components), total_weights(self.components)
        tested = self.values[design_cells.metric or design_cells.rate]
        for effect, weights in [*effect_weights(self.components).items(), ((ALL,), total)]:
            name = " x ".join(effect)
            kind = "total" if effect == (ALL,) else "main" if len(effect) == 1 else "interaction"
            parts = {"effect": weights, "shapley": total if kind == "total" else shapley.get(name)}
            intervals = {
                prefix + part: None if part_weights is None else self._interval(part_weights, metric)
                for prefix, metric in (("", design_cells.rate), ("stability_", "stability"))
                for part, part_weights in parts.items()
            }
            claim = claims.get(f"{center}/{name}") if kind == "main" else None
            yield {
                "center": center,
                "effect_of": name,
                "kind": kind,
                **statistics.columns(intervals),
                **effects.p_columns(claim),
                "seeds": 0 if tested is None else tested.shape[1],
                "verdict": "" if kind != "main" else "not measured" if claim is None else claim.verdict,
            }


def _columns(frame: pd.DataFrame) -> tuple[Column, ...]:
    several = frame["center"].nunique() > 1
    return (
        names("effect of", frame, "effect_of"),
        *((names("around", frame, "center"),) if several else ()),
        Column("effect, points", interval_cells(frame, "effect", 1, scale=100), keep=9),
        Column("corrected p", cells(frame, lambda row: p_words(row["p"]) if row["kind"] == "main" else ABSENT), keep=9),
        Column("Shapley, points", interval_cells(frame, "shapley", 1, scale=100), keep=8),
        Column("effect on S", interval_cells(frame, "stability_effect"), keep=7),
        Column("Shapley of S", interval_cells(frame, "stability_shapley"), keep=6),
        names("verdict", frame),
    )


def _notes(design_cells: Cells, frame: pd.DataFrame, missing: list[str]) -> list[str]:
    notes = [
        "Main effect: mean of the cells with a component minus mean of those without. Interaction of two: half the "
        "change that one's presence makes to the other's effect; of more in the same way. Shapley: a component's part "
        "of all components together.",
        *few_seeds_notes(frame["seeds"]),
    ]
    if missing:
        notes.append(
            f"Missing: {'; '.join(missing)}. Nothing is averaged over that: effects are of the seeds and items that "
            "all cells have, and where a cell has none there are no effects."
        )
    if (frame["seeds"] >= FEWEST_SEEDS).any():
        count, metric = int((frame["kind"] == "main").sum()), METRICS[design_cells.design.metric]
        notes.append(
            f'"matters": as in the ablation table, by {metric}, after Holm\'s correction over the '
            f"{count} main effects. Interactions and Shapley values are not tested; their intervals are not corrected."
        )
        notes += rows.seeds_behind_claims(frame["verdict"], frame["seeds"])
    nothing = " Without any component nothing is trained." if set(frame["effect_of"]) >= {*COMPONENTS} else ""
    notes.append(
        f"{ALL}: minus none. The Shapley values add up to it: each is the mean, over all orders of adding "
        f"components, of what its component adds.{nothing} Every number is linear in the cells; its interval is that "
        "of the same sum for each seed and prompt."
    )
    if set(frame["effect_of"]) >= MARGINS:
        notes.append(
            "Without either margin the margin term is a constant and trains nothing: those cells have no margin at "
            "all, so either margin alone is what brings the term in."
        )
    if any(cell.control for cell in design_cells.design.cells):
        notes.append("Controls are no part of these sums.")
    return notes


def sentences(design_cells: Cells, table: Table) -> Sentences:
    """Say what the table leaves open, and what it shows, of the main effects in the design's metric."""
    main = replace(table, frame=table.frame[table.frame["kind"] == "main"])
    claim = "matters: its main effect is"
    return ablation.sentences(design_cells, main, of="effect_of", claim=claim, columns=("effect", "stability_effect"))


def agreement(draws: Sequence[np.ndarray], signs: Sequence[float]) -> dict[str, int]:
    """Count the checkpoints whose difference has the sign of its mean, and significantly so.

    signs: Of each checkpoint's significant difference, 0 where it has none.
    """
    means = [float(np.nanmean(sample)) for sample in draws if np.isfinite(sample).any()]
    sign = np.sign(np.mean(means)) if means else 0.0
    return {
        "same_sign": sum(bool(np.sign(mean) == sign != 0) for mean in means),
        "significant": sum(sample == sign != 0 for sample in signs),
        "checkpoints": len(means),
    }


def over_checkpoints(results: Cells) -> Table | None:
    """Return a row per cell, or per component of a factorial, over checkpoints; None for a single checkpoint."""
    seeds, metric = results.design.sft_seeds, results.metric or results.rate
    if not seeds:
        return None
    rate = metric != "stability"
    unit, digits = (100, 1) if rate else (1, 2)
    rows = []
    topics = results.topics if rate else None
    for center, name, draws, signs in _effects(results) if results.design.kind == "factorial" else _cells(results):
        means = [float(np.nanmean(sample)) if np.isfinite(sample).any() else np.nan for sample in draws]
        rows.append(
            {
                "center": center,
                "effect_of": name,
                **statistics.columns({"difference": effects.over(draws, topics)}),
                "each": ", ".join(number(mean, digits, scale=unit, signed=True) for mean in means),
                **agreement(draws, signs),
                "settling": effects.settling_words(draws, topics),
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
            names("effect of", frame, "effect_of"),
            *((names("around", frame, "center"),) if several else ()),
            measure("over checkpoints", frame, "difference", digits, scale=unit, signed=True, keep=9),
            Column("from each", tuple(frame["each"]), keep=8),
            Column("same sign", cells(frame, lambda row: f"{row['same_sign']} of {row['checkpoints']}"), keep=8),
            Column("matters", cells(frame, lambda row: f"{row['significant']} of {row['checkpoints']}"), keep=9),
        ),
    )


Effects = Iterator[tuple[str, str, list[np.ndarray], list[float]]]
"""Of each effect its center, its name, and of every checkpoint its values and the sign of what is significant."""


def _cells(results: Cells) -> Effects:
    """Return the cells but the references, each minus its reference."""
    compared = [cell for cell in results.design.cells if cell.label != cell.reference]
    outcomes, claims = results.outcomes(results.metric or results.rate), results.claims(compared)
    for center, variant in dict.fromkeys((cell.home, cell.variant) for cell in compared):
        draws, signs = [], []
        for cell in compared:
            if (cell.home, cell.variant) == (center, variant) and {cell.label, cell.reference} <= outcomes.keys():
                draws.append(draw(outcomes[cell.label], outcomes[cell.reference]))
                claim = claims.get(cell.label)
                signs.append(float(np.sign(claim.difference.value)) if claim and claim.matters else 0.0)
        yield center, variant, draws, signs


def _effects(results: Cells) -> Effects:
    """Return the main effects of a factorial's components."""
    metric = results.metric or results.rate
    outcomes, table = results.outcomes(metric), factorial_effects(results).frame
    column = "stability_effect" if metric == "stability" else "effect"
    significant = table[table["verdict"].str.startswith("matters")]
    signs = {(row["center"], row["effect_of"]): float(np.sign(row[column])) for row in significant.to_dict("records")}
    for home in dict.fromkeys(cell.home for cell in results.design.cells):
        centers = dict.fromkeys(cell.center for cell in results.design.cells if cell.home == home)
        components = tuple(results.design.reference(next(iter(centers))).levels)
        weights, places = effect_weights(components), cells_of(components)
        grids = {}
        for center in centers:
            cells_ = by_components(results.design, center)
            labels = [cells_[place].label for place in places if place in cells_]
            if len(labels) == len(places) and outcomes.keys() >= set(labels):
                grids[center] = on_common_seeds([outcomes[label] for label in labels])[1]
        for name in components:
            draws = [contrast(weights[(name,)], grid).mean(axis=0) for grid in grids.values()]
            yield home, name, list(map(np.asarray, draws)), [signs.get((center, name), 0.0) for center in grids]


def sentences_over(table: Table) -> Sentences:
    """Say what a design leaves open over checkpoints, and what holds from all: its interval leaves 0 out."""
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
