"""What a run measured of its design: the outcomes of each cell, what two cells have in common, and what is missing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from slime_ray.config.design import Cell, Design
from slime_ray.runs import results

from . import effects, rows
from .effects import Claim
from .rows import Outcomes

METRICS = {"win_rate": "win rate", "preference_accuracy": "held-out accuracy", "stability": "stability S"}


@dataclass(frozen=True)
class Cells:
    """The cells of a design with their outcomes by label, of which those not measured are absent.

    rates: seeds and their (seeds, items) outcomes: prompts for the win rate, held-out pairs for accuracy; items in the
    same order for all cells, NaN where there is none. stability: seeds and their (seeds,) S, 0 for seeds that failed or
    diverged. rate: which of METRICS `rates` holds. planned: the seeds that were asked for.
    """

    design: Design
    rate: str
    rates: dict[str, Outcomes]
    stability: dict[str, Outcomes]
    planned: tuple[int, ...]
    ends: dict[tuple[str, int], str]
    """How trials ended that have no outcomes, by label and seed."""

    @classmethod
    def of(cls, run: results.Run, design: Design) -> "Cells":
        """Rates are win rates unless the design is about accuracy, or nothing was judged."""
        trials = run.trials[run.trials["phase"] == "arm"]
        by_accuracy = design.metric == "preference_accuracy" or not rows.is_judged(run)
        lost = trials[~trials["status"].isin(rows.MEASURED)]
        return cls(
            design,
            "preference_accuracy" if by_accuracy else "win_rate",
            _accuracies(run) if by_accuracy else rows.outcomes_by_label(run),
            _stabilities(trials),
            tuple(run.manifest.get("seeds") or sorted(trials["seed"].unique().tolist())),
            {(row["label"], row["seed"]): _end(row) for row in lost.to_dict("records")},
        )

    @property
    def metric(self) -> str | None:
        """What the design is about, or None where it was not measured: then nothing is tested."""
        return self.design.metric if self.design.metric in (self.rate, "stability") else None

    def outcomes(self, metric: str) -> dict[str, Outcomes]:
        """The outcomes by `stability`, or by the rate."""
        return self.stability if metric == "stability" else self.rates

    def difference(self, cell: Cell, metric: str) -> np.ndarray | None:
        """Outcomes of a cell minus those of its reference, (seeds, items) or (seeds,), on what both have.

        None where they have nothing in common.
        """
        found = self.outcomes(metric)
        if cell.label not in found or cell.reference not in found:
            return None
        _, (one, other) = common([found[cell.label], found[cell.reference]])
        return one - other if one.size else None

    def claims(self, cells: Iterable[Cell]) -> dict[str, Claim]:
        """What may be claimed by the design's metric of cells beside their references, corrected together, by label."""
        metric = self.metric
        return {} if metric is None else effects.claims({cell.label: self.difference(cell, metric) for cell in cells})

    def missing(self, cells: Iterable[Cell], metric: str) -> list[str]:
        """A phrase for every cell that lacks a planned seed: which, and why."""
        found, said = self.outcomes(metric), []
        for cell in cells:
            have = found[cell.label][0] if cell.label in found else []
            gone: dict[str, list[str]] = {}
            for seed in self.planned:
                if seed not in have:
                    gone.setdefault(self.ends.get((cell.label, seed), "not measured"), []).append(str(seed))
            said += [
                f"{cell.label} seed{'s' * (len(seeds) > 1)} {', '.join(seeds)} ({end})" for end, seeds in gone.items()
            ]
        return said


def common(outcomes: Sequence[Outcomes]) -> tuple[list[int], np.ndarray]:
    """The seeds that all have, and their outcomes, (cells, seeds, ...), with the items that all of these have.

    An item that any cell lacks with any of the seeds is left out for all.
    """
    seeds = sorted(set.intersection(*(set(seeds) for seeds, _ in outcomes)))
    values = np.stack([values[[own.index(seed) for seed in seeds]] for own, values in outcomes])
    if values.ndim == 3 and values.size:
        values = values[:, :, ~np.isnan(values).any(axis=(0, 1))]
    return seeds, values


def _end(row: dict) -> str:
    reason = row["reason"]
    return str(row["status"]) if pd.isna(reason) else f"{row['status']}: {reason}"


def _accuracies(run: results.Run) -> dict[str, Outcomes]:
    """1 where a held-out pair's chosen completion has the higher mean log-probability, 0.5 for a tie, by label."""
    measured = run.trials[(run.trials["phase"] == "arm") & run.trials["status"].isin(rows.MEASURED)]
    pairs = run.pairs[run.pairs["trial_id"].isin(measured["trial_id"])]
    right = np.sign(pairs["chosen_logp"] - pairs["rejected_logp"]) / 2 + 0.5
    wide = pairs.assign(right=right).pivot_table(
        index=["label", "seed"], columns="pair", values="right", aggfunc="mean", dropna=False
    )
    return {
        str(label): (own.index.get_level_values("seed").tolist(), own.to_numpy(dtype=float))
        for label, own in wide.dropna(how="all").groupby(level="label")
    }


def _stabilities(trials: pd.DataFrame) -> dict[str, Outcomes]:
    """S by label. A trial that failed or diverged counts as 0, however far it got."""
    scores = trials.assign(score=trials["stability"].where(~trials["status"].isin(rows.LOST), 0.0))
    scores = scores.dropna(subset=["score"]).sort_values("seed")
    return {
        str(label): (own["seed"].tolist(), own["score"].to_numpy(dtype=float)) for label, own in scores.groupby("label")
    }
